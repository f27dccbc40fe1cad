//! Whether what is on this disk is in a commit: a mark beside the restore's journal, which names it.
//!
//! The engine sets it after a commit that has all there is, and takes it away when one fails or lacks something. A boot
//! sets it for what it has restored, and takes it away before anything may work on that; a live restore takes it away. So
//! state that nobody has seen committed, whoever brought it, is never taken for a copy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::model::CommitId;

/// The mark of one disk.
#[derive(Debug, Clone)]
pub struct Saved(PathBuf);

impl Saved {
    /// The mark in `work`, a local directory that is the same at every boot of the disk.
    pub fn in_dir(work: &Path) -> Saved {
        Saved(work.join("saved"))
    }

    /// The commit, if there is one. A mark that cannot be read is none.
    pub fn commit(&self) -> Option<CommitId> {
        fs::read_to_string(&self.0).ok()?.parse().ok()
    }

    /// Sets or takes away the mark. It is not there if it cannot be set.
    pub fn set(&self, commit: Option<CommitId>) {
        let done = match commit {
            Some(id) => self.write(id),
            None => fs::remove_file(&self.0),
        };
        match done {
            Err(error) if commit.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if commit.is_none() => {
                tracing::error!(path = %self.0.display(), %error, "this file says that the state is in a snapshot, and cannot be removed: remove it");
            }
            Err(error) => {
                tracing::debug!(path = %self.0.display(), %error, "it cannot be noted that the state is in a snapshot");
            }
            Ok(()) => {}
        }
    }

    /// Cut off, it is no commit's name.
    fn write(&self, id: CommitId) -> io::Result<()> {
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&self.0, id.to_string())
    }
}
