//! Putting staged trees where they belong and what was there aside, all of them or none, whatever is killed when.
//!
//! Once every tree is staged and verified a journal is written; from then on the swap is finished by whoever comes
//! next ([`resume`]). Before it, what is staged is only rubbish to be cleared away.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::state::model::CommitId;

const JOURNAL: &str = "restore.json";

/// One root's move.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Move {
    pub staged: PathBuf,
    pub target: PathBuf,
    pub aside: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    /// What is at the targets is what was there before.
    Aside,
    /// What is at the targets is new.
    Place,
}

#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    commit: Option<CommitId>,
    phase: Phase,
    moves: Vec<Move>,
}

/// Carries out the moves. Returns where present state went to.
pub fn swap(commit: Option<CommitId>, moves: Vec<Move>, work: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let mut journal = Journal {
        commit,
        phase: Phase::Aside,
        moves,
    };
    journal.write(work)?;
    journal.finish(work)
}

/// Finishes a swap that was cut off, and says which commit is in place now. Boot calls it before anything looks at
/// the state; where nothing was cut off it does nothing.
pub fn resume(work: &Path) -> Result<Option<CommitId>, RestoreError> {
    let path = work.join(JOURNAL);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| RestoreError::local("reading", &path, source))?,
    };
    let mut journal: Journal =
        serde_json::from_slice(&text).map_err(|error| RestoreError::local("reading", &path, error.into()))?;
    journal.finish(work)?;
    Ok(journal.commit)
}

impl Journal {
    fn write(&self, work: &Path) -> Result<(), RestoreError> {
        let (path, new) = (work.join(JOURNAL), work.join("restore.json.new"));
        let write = || {
            fs::create_dir_all(work)?;
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| RestoreError::local("writing", &path, source))
    }

    /// Every step may have been done before.
    fn finish(&mut self, work: &Path) -> Result<Vec<PathBuf>, RestoreError> {
        if self.phase == Phase::Aside {
            for step in &self.moves {
                move_tree(&step.target, &step.aside, &[&step.staged, &step.aside])
                    .map_err(|source| RestoreError::local("moving aside", &step.target, source))?;
            }
            self.phase = Phase::Place;
            self.write(work)?;
        }
        for step in &self.moves {
            move_tree(&step.staged, &step.target, &[])
                .map_err(|source| RestoreError::local("putting in place", &step.target, source))?;
        }
        let journal = work.join(JOURNAL);
        fs::remove_file(&journal).map_err(|source| RestoreError::local("removing", &journal, source))?;
        let asides = self.moves.iter().map(|step| step.aside.clone());
        // An empty directory that was in the way is nothing to keep; `remove_dir` refuses anything more.
        Ok(asides
            .filter(|aside| fs::remove_dir(aside).is_err() && fs::symlink_metadata(aside).is_ok())
            .collect())
    }
}

/// Moves `from` to `to` by renaming, or where that is refused (a mount point; a directory of an image's lower layer
/// on overlayfs) by renaming what is in it. Merges into a `to` that is there, so that it can be cut off at any
/// moment and called again; nothing is ever overwritten. Leaves `spare` where it is.
fn move_tree(from: &Path, to: &Path, spare: &[&Path]) -> io::Result<()> {
    let meta = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let spared = spare.iter().any(|path| path.starts_with(from));
    if !spared {
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXDEV | Errno::EBUSY | Errno::EEXIST) if meta.is_dir() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match fs::create_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(to)?.is_dir() => {}
        other => other?,
    }
    for child in fs::read_dir(from)? {
        let child = child?.path();
        if let Some(name) = child.file_name()
            && !spare.contains(&child.as_path())
        {
            move_tree(&child, &to.join(name), &[])?;
        }
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    File::open(to)?.set_modified(meta.modified()?)?;
    match fs::remove_dir(from) {
        // A mount point stays, and so does what holds something that was spared.
        Err(error) if spared || error.raw_os_error() == Some(nix::libc::EBUSY) => Ok(()),
        other => other,
    }
}
