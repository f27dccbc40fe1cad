//! The store's calls on a real directory, mounted or plain. Every function here may block for ever; only the
//! threads of [`super::pool`] call them.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::{
    Backend, Expect, Item, StoreError,
    mounts::{self, Mount},
    s3fs,
};

/// A directory, and what kind of place it has to be.
pub struct Directory {
    root: PathBuf,
    expect: Expect,
}

const COPY: usize = 1 << 20;

impl Directory {
    pub fn new(root: PathBuf, expect: Expect) -> Directory {
        Directory { root, expect }
    }

    /// The directories above an object, made one by one. The mount's own is never made: that would be the plain
    /// directory that swallows commits.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let mut dir = match &self.expect {
            Expect::MountAt(point) if self.root.starts_with(point) => point.clone(),
            Expect::MountAt(_) | Expect::Existing | Expect::Directory => self.root.clone(),
        };
        let below = path.strip_prefix(&dir).unwrap_or(path);
        if self.expect == Expect::Directory {
            fs::create_dir_all(&dir)?;
        }
        for part in below.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let create = || OpenOptions::new().write(true).create_new(true).open(path);
        match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parents(path)?;
                create()
            }
            other => other,
        }
    }

    /// The mount that the root is on, or will be once it is made.
    fn mount(&self, point: &Path) -> io::Result<Mount> {
        let mut found = mounts::covering(&self.root);
        for above in self
            .root
            .ancestors()
            .skip(1)
            .take_while(|above| above.starts_with(point))
        {
            match found {
                Err(error) if error.kind() == io::ErrorKind::NotFound => found = mounts::covering(above),
                _ => break,
            }
        }
        found
    }

    /// Fails unless `found` is the mount it has to be.
    fn expected(&self, found: io::Result<Mount>) -> Result<(), StoreError> {
        let Expect::MountAt(point) = &self.expect else {
            return Ok(());
        };
        let found = match found {
            Ok(mount) if mount.point == *point => return Ok(()),
            Ok(mount) => format!("it is on {} mounted at {}", mount.source, mount.point.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it does not exist".to_owned(),
            Err(error) => return Err(StoreError::from_io("checking", self.root.clone(), error)),
        };
        Err(StoreError::NotAMount {
            path: self.root.clone(),
            found,
        })
    }

    fn write(&self, file: File, body: &File, len: u64) -> io::Result<()> {
        let mut file = file;
        let mut buffer = vec![0; COPY.min(usize::try_from(len).unwrap_or(COPY))];
        let mut at = 0;
        while at < len {
            let want = usize::try_from(len - at).unwrap_or(COPY).min(buffer.len());
            body.read_exact_at(&mut buffer[..want], at)?;
            file.write_all(&buffer[..want])?;
            at += want as u64;
        }
        match file.sync_all() {
            Err(error) if !matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOSYS)) => {
                return Err(error);
            }
            _ => {}
        }
        // s3fs reports a failed upload from `close`, and dropping a `File` would not tell.
        nix::unistd::close(file.into_raw_fd())?;
        Ok(())
    }
}

impl Backend for Directory {
    fn check(&self) -> Result<(), StoreError> {
        match &self.expect {
            Expect::Directory => Ok(()),
            Expect::Existing => match fs::metadata(&self.root) {
                Ok(found) if found.is_dir() => Ok(()),
                Ok(_) => Err(StoreError::NotADirectory {
                    path: self.root.clone(),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing {
                    path: self.root.clone(),
                }),
                Err(error) => Err(StoreError::from_io("checking", self.root.clone(), error)),
            },
            Expect::MountAt(point) => self.expected(self.mount(point)),
        }
    }

    fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError> {
        self.check()?;
        let path = self.root.join(dir);
        let fail = |error| StoreError::from_io("listing", path.clone(), error);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fail)?,
        };
        let mut items = Vec::new();
        for entry in entries {
            let entry = entry.map_err(fail)?;
            // Names of ours are ASCII; whatever else lies in the bucket is not ours to judge.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let is_dir = entry.file_type().map_err(fail)?.is_dir();
            items.push(Item { name, is_dir });
        }
        items.sort();
        Ok(items)
    }

    fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let fail = |error| StoreError::from_io("writing", path.clone(), error);
        self.check()?;
        let file = self.create(&path).map_err(fail)?;
        let mount = mounts::of(&file);
        // A new name is durable once its directory is; an object store has no such thing.
        let sync_parent = !mount.as_ref().is_ok_and(Mount::is_fuse);
        // Asked of the file itself: no mount can go away between this look and the writing.
        let written = self.expected(mount).and_then(|()| {
            self.write(file, body, len).map_err(fail)?;
            match path.parent() {
                Some(parent) if sync_parent => File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail),
                _ => Ok(()),
            }
        });
        if written.is_err() {
            // Ours, and not whole: readers would only pass over it. Best effort, the store is in trouble already.
            let _ = fs::remove_file(&path);
        }
        written
    }

    fn open(&self, name: &str) -> Result<(File, Metadata), StoreError> {
        let path = self.root.join(name);
        self.check()?;
        let open = || {
            // No object of a store is a link, and none is a pipe to wait for.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path)?;
            let meta = file.metadata()?;
            Ok((file, meta))
        };
        open().map_err(|error| StoreError::from_io("opening", path.clone(), error))
    }

    fn read(&self, name: &str, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::from_io("reading", self.root.join(name), error)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.root.join(name);
        self.check()?;
        fs::remove_file(&path).map_err(|error| StoreError::from_io("deleting", path.clone(), error))
    }

    fn delete_dir(&self, name: &str) -> Result<(), StoreError> {
        let path = self.root.join(name);
        self.check()?;
        match fs::remove_dir(&path) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOTEMPTY) => Ok(()),
            other => other.map_err(|error| StoreError::from_io("removing", path.clone(), error)),
        }
    }

    fn operations(&self, len: u64) -> u64 {
        match &self.expect {
            // Looking at a mount by the path of its root asks nothing of its server.
            Expect::MountAt(point) if mounts::covering(point).is_ok_and(|mount| mount.is_fuse()) => {
                s3fs::operations(len)
            }
            _ => 1,
        }
    }
}
