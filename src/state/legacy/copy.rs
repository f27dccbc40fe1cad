//! Copying a backup to the local disk, laid out as the roots of a snapshot.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use super::{Backup, CONFIG, LegacyError, MARKER, SKILLS, local};
use crate::{
    state::{parallel, restore::Progress, walk::Root},
    store::{Store, StoreError},
};

/// Bytes copied at once.
const STEP: u64 = 4 << 20;

pub struct Copier<'a> {
    from: &'a Store,
    progress: &'a Progress,
    left_out: Mutex<Vec<String>>,
}

/// A backup on the local disk.
pub struct Copied {
    pub roots: Vec<Root>,
    /// What of the backup was not copied, by name, and why.
    pub left_out: Vec<String>,
}

impl<'a> Copier<'a> {
    pub fn new(from: &'a Store, progress: &'a Progress) -> Copier<'a> {
        Copier {
            from,
            progress,
            left_out: Mutex::default(),
        }
    }

    /// Copies to `dir`, a directory for each root of a snapshot.
    pub fn copy(
        self,
        backup: &Backup,
        dir: &Path,
        is_apart: &dyn Fn(Option<&[u8]>) -> bool,
    ) -> Result<Copied, LegacyError> {
        let roots = self.copy_roots(backup, dir, is_apart)?;
        let mut left_out = self.left_out.into_inner().unwrap_or_else(PoisonError::into_inner);
        left_out.sort();
        Ok(Copied { roots, left_out })
    }

    fn copy_roots(
        &self,
        backup: &Backup,
        dir: &Path,
        is_apart: &dyn Fn(Option<&[u8]>) -> bool,
    ) -> Result<Vec<Root>, LegacyError> {
        let nothing = BTreeSet::new();
        let state = dir.join("state");
        make(&state)?;
        if let Some((name, config)) = &backup.state {
            let but = if name.is_empty() { &backup.beside } else { &nothing };
            self.copy_dir(name, &state, but)?;
            let (old, new) = (state.join(config), state.join(CONFIG));
            if old.exists() && !new.exists() {
                fs::rename(&old, &new).map_err(|error| local(&old, error))?;
            }
        }
        let root = |name: &str, path: &Path| Root {
            name: name.into(),
            path: path.to_owned(),
        };
        let mut roots = vec![root("state", &state)];
        if backup.workspace.is_none() && !backup.skills {
            return Ok(roots);
        }
        let config = fs::read(state.join(CONFIG)).ok();
        let workspace = if is_apart(config.as_deref()) {
            let path = dir.join("workspace");
            roots.push(root("workspace", &path));
            path
        } else {
            state.join("workspace")
        };
        make(&workspace)?;
        if let Some(name) = &backup.workspace {
            self.copy_dir(name, &workspace, &nothing)?;
        }
        if backup.skills {
            self.copy_dir(SKILLS, &workspace.join(SKILLS), &nothing)?;
        }
        Ok(roots)
    }

    /// Copies what is in a directory of the store, but for some names at its top, into `to`.
    fn copy_dir(&self, name: &str, to: &Path, but: &BTreeSet<String>) -> Result<(), LegacyError> {
        let mut dirs = vec![(name.to_owned(), to.to_owned())];
        let mut files = Vec::new();
        // Level by level, each level's directories at the same time.
        while !dirs.is_empty() {
            let next = Mutex::new((Vec::new(), Vec::new()));
            parallel::for_each(&dirs, || {
                |(dir, to): &(String, PathBuf)| {
                    if to.is_file() {
                        return self.leave_out(dir, "another part of the backup has a file there");
                    }
                    make(to)?;
                    for item in self.from.list(dir)? {
                        if (dir == name && but.contains(&item.name)) || item.name == MARKER {
                            continue;
                        }
                        let path = if dir.is_empty() {
                            item.name.clone()
                        } else {
                            format!("{dir}/{}", item.name)
                        };
                        let pair = (path, to.join(&item.name));
                        let (dirs, files) = &mut *next.lock().unwrap_or_else(PoisonError::into_inner);
                        if item.is_dir { dirs } else { files }.push(pair);
                    }
                    Ok::<_, LegacyError>(())
                }
            })?;
            let (below, more) = next.into_inner().unwrap_or_else(PoisonError::into_inner);
            dirs = below;
            files.extend(more);
        }
        parallel::for_each(&files, || |(path, to): &(String, PathBuf)| self.copy_file(path, to))
    }

    fn copy_file(&self, name: &str, to: &Path) -> Result<(), LegacyError> {
        let object = match self.from.get(name) {
            Ok(object) if object.meta().is_file() => object,
            Ok(_) => return self.leave_out(name, "neither a file nor a directory"),
            Err(StoreError::NotFound { .. }) => {
                return self.leave_out(name, "deleted since it was listed, or of a name that is not UTF-8");
            }
            Err(StoreError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::ELOOP) => {
                return self.leave_out(name, "a link, which leads nowhere in a backup");
            }
            Err(error) => return Err(error.into()),
        };
        if to.is_dir() {
            return self.leave_out(name, "another part of the backup has a directory there");
        }
        // As a restore by moltworker does, a later part writes over an earlier one.
        let mut file = File::create(to).map_err(|error| local(to, error))?;
        self.progress.total.fetch_add(object.len(), Ordering::Relaxed);
        let mut at = 0;
        while at < object.len() {
            let bytes = object.read(at..at + STEP)?;
            if bytes.is_empty() {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the backup's file ends before its end");
                return Err(local(to, source));
            }
            file.write_all(&bytes).map_err(|error| local(to, error))?;
            at += bytes.len() as u64;
            self.progress.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        // A bucket knows little of modes: nobody else is to read this, and a script stays one.
        let mode = 0o600 | (object.meta().permissions().mode() & 0o100);
        let modified = object.meta().modified().unwrap_or(SystemTime::UNIX_EPOCH);
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
            .and_then(|()| file.set_modified(modified))
            .map_err(|error| local(to, error))
    }

    fn leave_out(&self, name: &str, why: &str) -> Result<(), LegacyError> {
        tracing::warn!(name, why, "a part of the backup is left out");
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        left_out.push(format!("{name}: left out of the import: {why}"));
        Ok(())
    }
}

fn make(dir: &Path) -> Result<(), LegacyError> {
    let make = || {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|error| local(dir, error))
}
