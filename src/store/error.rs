//! What can go wrong with a store, and what to do about it.

use std::{io, path::PathBuf, time::Duration};

/// A store call that did not succeed. None of these says that an object is damaged: that is for its reader to find.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what} {path}: no answer within {after:?}; the mount may hang: check its network and its s3fs process", path = path.display())]
    TimedOut {
        what: &'static str,
        path: PathBuf,
        after: Duration,
    },
    #[error("{what} {path}: not tried, {stuck} earlier calls are still stuck in the store; end its s3fs, unmount it and mount it again", path = path.display())]
    Stuck {
        what: &'static str,
        path: PathBuf,
        stuck: usize,
    },
    #[error("{path} is not the mount it should be ({found}); nothing was written there: mount the store again", path = path.display())]
    NotAMount { path: PathBuf, found: String },
    #[error("what is in the place of {path} is not the store that was there ({found}; {anchor} is not in it); nothing was written: mount the store again, or start again to go on with what is there", path = path.display())]
    Swapped {
        path: PathBuf,
        found: String,
        anchor: String,
    },
    #[error("{path} is listed and yet said not to be there; the mount remembers that it failed to look: tried again", path = path.display())]
    Unsure { path: PathBuf },
    #[error("{what} {path}: the mount's server is gone ({source}); unmount it with `umount -l` and mount it again", path = path.display())]
    Disconnected {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} {path}: the store is full ({source}); make room, or `moltinit snapshot prune`", path = path.display())]
    NoSpace {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} does not exist; name the directory that holds the snapshots, or make it", path = path.display())]
    Missing { path: PathBuf },
    #[error("{path} is not a directory; move what is there out of the way, or name another place", path = path.display())]
    NotADirectory { path: PathBuf },
    #[error("{path}: no such object in the store", path = path.display())]
    NotFound { path: PathBuf },
    #[error("{path} is there already, and objects are never overwritten; use the next number", path = path.display())]
    Exists { path: PathBuf },
    #[error("{what} {path}: {source}; check the permissions of the store and its keys", path = path.display())]
    Denied {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} {path}: {source}; see the log of the mount (s3fs), or the disk's", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl StoreError {
    /// The kind of failure that an errno stands for on a mounted store.
    pub(super) fn from_io(what: &'static str, path: PathBuf, source: io::Error) -> StoreError {
        use nix::errno::Errno as E;
        match source.raw_os_error().map(E::from_raw) {
            Some(E::ENOENT) => StoreError::NotFound { path },
            Some(E::ENOTDIR) => StoreError::NotADirectory { path },
            Some(E::EEXIST) => StoreError::Exists { path },
            Some(E::ENOSPC | E::EDQUOT | E::EFBIG) => StoreError::NoSpace { what, path, source },
            Some(E::ENOTCONN | E::ECONNABORTED | E::ESTALE | E::ENODEV) => {
                StoreError::Disconnected { what, path, source }
            }
            Some(E::EACCES | E::EPERM | E::EROFS) => StoreError::Denied { what, path, source },
            _ => StoreError::Io { what, path, source },
        }
    }

    /// Whether the object is known not to be there, as opposed to not known at all.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }
}
