//! The place of a store's directory: which mount it is on, that it stays there, and that what is mounted there is still
//! the store.
//!
//! A mount may go away and another appear at any moment, under the same path. So whenever the table of mounts has changed
//! since the last look, an object that has to be there, the anchor, is looked for before anything else is done.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    Expect, StoreError,
    mounts::{self, Mount, Table},
};

pub struct Place {
    root: PathBuf,
    expect: Expect,
    table: Table,
    /// The mount at the first look. It need not be the same one for ever, but has to be at the same point.
    first: OnceLock<Mount>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// An object that is in the store for certain.
    anchor: Option<String>,
    /// The state of the mounts at which what is there was found to be the store.
    at: Option<State>,
}

/// How often the table of mounts has changed, and the mount that the root is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    changes: u64,
    mount: u64,
}

impl Place {
    pub fn new(root: PathBuf, expect: Expect) -> Place {
        Place {
            root,
            expect,
            table: Table::open(),
            first: OnceLock::new(),
            known: Mutex::default(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From now on the store is known by this object.
    pub fn anchor(&self, name: &str) {
        self.lock().anchor = Some(name.to_owned());
    }

    /// Fails unless the root is where it has to be, and still the same store.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.expect == Expect::Existing {
            self.exists()?;
        }
        let changes = self.table.changes();
        let mount = self.must_be_on(self.mount())?;
        let state = Some(State {
            changes,
            mount: mount.id,
        });
        if self.lock().at != state {
            self.is_the_same(&mount)?;
            self.lock().at = state;
        }
        Ok(())
    }

    /// Fails unless `found` is a mount that the root may be on.
    pub fn must_be_on(&self, found: io::Result<Mount>) -> Result<Mount, StoreError> {
        let mount = found.map_err(|error| StoreError::from_io("checking", self.root.clone(), error))?;
        let of = |found| StoreError::NotAMount {
            path: self.root.clone(),
            found,
        };
        match &self.expect {
            Expect::MountAt(point) if !mount.point.starts_with(point) => return Err(of(described(&mount))),
            _ => {}
        }
        let first = self.first.get_or_init(|| mount.clone());
        if first.point == mount.point {
            return Ok(mount);
        }
        let before = first.point.display();
        Err(of(format!("{}, and was on {before} before", described(&mount))))
    }

    /// Where directories may be made: nothing above is the store's.
    pub fn top(&self) -> &Path {
        self.first.get().map_or(&self.root, |mount| &mount.point)
    }

    /// Whether each call is a request to a user-space server, as far as is known.
    pub fn is_fuse(&self) -> bool {
        self.first.get().is_some_and(Mount::is_fuse)
    }

    /// Whether a path of the store that is said not to be there is not. s3fs says so, for a minute, of whatever it has
    /// failed to look at; a listing it always asks of the bucket.
    pub fn is_absent(&self, path: &Path) -> io::Result<bool> {
        match self.first.get() {
            Some(mount) if mount.is_fuse() => is_absent(path, &mount.point),
            _ => Ok(true),
        }
    }

    fn exists(&self) -> Result<(), StoreError> {
        let path = self.root.clone();
        match fs::metadata(&self.root) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(StoreError::NotADirectory { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing { path }),
            Err(error) => Err(StoreError::from_io("checking", path, error)),
        }
    }

    /// The mount that the root is on, or will be once it is made.
    fn mount(&self) -> io::Result<Mount> {
        let mut found = Err(io::ErrorKind::NotFound.into());
        for path in self.root.ancestors() {
            found = mounts::covering(path);
            match &found {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
        }
        found
    }

    fn is_the_same(&self, mount: &Mount) -> Result<(), StoreError> {
        let Some(anchor) = self.lock().anchor.clone() else {
            return Ok(());
        };
        let path = self.root.join(&anchor);
        let fail = |error| StoreError::from_io("checking", path.clone(), error);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop).map_err(fail),
        }
        if !self.is_absent(&path).map_err(fail)? {
            return Err(StoreError::Unsure { path });
        }
        Err(StoreError::Swapped {
            path: self.root.clone(),
            found: described(mount),
            anchor,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn described(mount: &Mount) -> String {
    format!("it is on {} mounted at {}", mount.source, mount.point.display())
}

/// Whether no listing shows `path`, nor anything above it below `top`.
fn is_absent(path: &Path, top: &Path) -> io::Result<bool> {
    let mut path = path;
    while let (Some(dir), Some(name)) = (path.parent(), path.file_name())
        && dir.starts_with(top)
    {
        match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => path = dir,
            Err(error) => return Err(error),
            Ok(entries) => {
                for entry in entries {
                    if entry?.file_name() == name {
                        return Ok(false);
                    }
                }
                return Ok(true);
            }
        }
    }
    // The mount itself is there, or this would not be asked.
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listing_says_that_something_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (top, there) = (dir.path(), dir.path().join("a/b"));
        fs::create_dir_all(&there).unwrap();
        assert!(!is_absent(&there, top).unwrap());
        assert!(is_absent(&there.join("c"), top).unwrap());
        assert!(is_absent(&top.join("x/y/z"), top).unwrap());
        // Nothing was listed.
        assert!(!is_absent(top, top).unwrap());
    }
}
