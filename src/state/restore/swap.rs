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

use super::{Back, RestoreError, aside};
use crate::state::{model::CommitId, saved::Saved};

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

/// Carries out the moves. Returns where present state went to. After an error everything is as it was, what is staged too,
/// unless it is [`RestoreError::Unfinished`].
pub fn swap(commit: Option<CommitId>, moves: Vec<Move>, work: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let mut journal = Journal {
        commit,
        phase: Phase::Aside,
        moves,
    };
    journal.write(work)?;
    journal.finish(work).map_err(|error| match journal.phase {
        Phase::Aside if journal.undo(work).is_ok() => error,
        // What is in place already stays there: taken back, it could be taken for what was there before.
        Phase::Aside | Phase::Place => RestoreError::Unfinished(Box::new(error)),
    })
}

/// Whether a swap was begun and is not over.
pub fn is_unfinished(work: &Path) -> bool {
    work.join(JOURNAL).exists()
}

/// Finishes a swap that was cut off, and gives the way back from that. Boot calls it before anything looks at the state;
/// where nothing was cut off it does nothing.
pub fn resume(work: &Path) -> Result<Option<Back>, RestoreError> {
    let path = work.join(JOURNAL);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| RestoreError::local("reading", &path, source))?,
    };
    let mut journal: Journal =
        serde_json::from_slice(&text).map_err(|error| RestoreError::local("reading", &path, error.into()))?;
    journal
        .finish(work)
        .map_err(|error| RestoreError::Unfinished(Box::new(error)))?;
    Ok(Some(Back::from(&journal.moves)))
}

impl Journal {
    fn write(&self, work: &Path) -> Result<(), RestoreError> {
        let (path, new) = (work.join(JOURNAL), work.join("restore.json.new"));
        let write = || {
            fs::create_dir_all(work)?;
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            crash_point()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| RestoreError::local("writing", &path, source))
    }

    /// Every step may have been done before.
    fn finish(&mut self, work: &Path) -> Result<Vec<PathBuf>, RestoreError> {
        if self.phase == Phase::Aside {
            for step in &self.moves {
                staying(step)
                    .and_then(|staying| move_tree(&step.target, &step.aside, &staying))
                    .map_err(|source| RestoreError::local("moving aside", &step.target, source))?;
            }
            self.phase = Phase::Place;
            if let Err(error) = self.write(work) {
                self.phase = Phase::Aside;
                return Err(error);
            }
        }
        for step in &self.moves {
            move_tree(&step.staged, &step.target, &[])
                .map_err(|source| RestoreError::local("putting in place", &step.target, source))?;
        }
        // What was there before was saved, or was not.
        Saved::in_dir(work).set(None);
        remove(work)?;
        let asides = self.moves.iter().map(|step| step.aside.clone());
        // An empty directory that was in the way is nothing to keep; `remove_dir` refuses anything more.
        Ok(asides
            .filter(|aside| fs::remove_dir(aside).is_err() && fs::symlink_metadata(aside).is_ok())
            .collect())
    }

    /// Brings back what was moved aside. Cut off, it may be called again, or everything finished after all.
    fn undo(&self, work: &Path) -> Result<(), RestoreError> {
        for step in &self.moves {
            move_tree(&step.aside, &step.target, &[])
                .map_err(|source| RestoreError::local("bringing back", &step.target, source))?;
        }
        remove(work)
    }
}

fn remove(work: &Path) -> Result<(), RestoreError> {
    let journal = work.join(JOURNAL);
    crash_point()
        .and_then(|()| fs::remove_file(&journal))
        .map_err(|source| RestoreError::local("removing", &journal, source))
}

/// What of a target stays where it is while all else moves aside: mounts, which are moves of their own or nobody's, and
/// in a target that is a mount point itself what restores have to have inside of it.
fn staying(step: &Move) -> io::Result<Vec<PathBuf>> {
    let mut staying: Vec<PathBuf> = mounts_below(&step.target)?
        .into_iter()
        .map(|mount| mount.point)
        .collect();
    if step.aside.starts_with(&step.target) {
        staying.extend([step.staged.clone(), step.aside.clone()]);
        match fs::read_dir(&step.target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            children => {
                for child in children? {
                    let child = child?;
                    if aside::is_inside(&child.file_name()) && child.file_type()?.is_dir() {
                        staying.push(child.path());
                    }
                }
            }
        }
    }
    Ok(staying)
}

/// Moves `from` to `to` by renaming, or where that is refused (a mount point; a directory of an image's lower layer
/// on overlayfs) by renaming what is in it. Merges into a `to` that is there, so that it can be cut off at any
/// moment and called again; nothing is ever overwritten. Leaves `spare` where it is.
fn move_tree(from: &Path, to: &Path, spare: &[PathBuf]) -> io::Result<()> {
    if spare.iter().any(|path| path == from) {
        return Ok(());
    }
    let meta = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let spared = spare.iter().any(|path| path.starts_with(from));
    if !spared {
        match rename(from, to, meta.is_dir()) {
            Err(error) if meta.is_dir() && in_the_way(&error) => {}
            other => return other,
        }
    }
    crash_point()?;
    match fs::create_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(to)?.is_dir() => {}
        other => other?,
    }
    for child in fs::read_dir(from)? {
        let child = child?.path();
        if let Some(name) = child.file_name() {
            move_tree(&child, &to.join(name), spare)?;
        }
    }
    crash_point()?;
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

/// What a mount point, a lower layer and a directory that was begun before give for a rename.
fn in_the_way(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EXDEV | Errno::EBUSY | Errno::EEXIST))
}

fn rename(from: &Path, to: &Path, is_dir: bool) -> io::Result<()> {
    crash_point()?;
    if refused(is_dir) {
        return Err(Errno::EXDEV.into());
    }
    let renamed = match knows_noreplace() {
        true => renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE),
        false => Err(Errno::EINVAL),
    };
    match renamed {
        // NFS, 9p, FUSE and others know no such flag. Nobody but us writes here, so looking first is as good.
        Err(Errno::EINVAL | Errno::ENOSYS) => match fs::symlink_metadata(to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
            Ok(_) => Err(Errno::EEXIST.into()),
        },
        renamed => Ok(renamed?),
    }
}

/// Where a test has the process die.
#[cfg(not(test))]
fn crash_point() -> io::Result<()> {
    Ok(())
}

/// Where a test has the file system refuse to rename a directory.
#[cfg(not(test))]
fn refused(_is_dir: bool) -> bool {
    false
}

/// Where a test has a file system without `RENAME_NOREPLACE`.
#[cfg(not(test))]
fn knows_noreplace() -> bool {
    true
}

/// To which a test adds mounts that there are not.
#[cfg(not(test))]
use crate::store::mounts::below as mounts_below;

#[cfg(test)]
use tests::{crash_point, knows_noreplace, mounts_below, refused};

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeSet,
    };

    use super::*;
    use crate::store::mounts::{self, Mount};

    thread_local! {
        /// Steps until the process dies, for tests.
        static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
        /// Steps until one fails, and only that one.
        static FAULT: Cell<u32> = const { Cell::new(u32::MAX) };
        /// Renaming a directory is refused, as on overlayfs.
        static ONLY_FILES: Cell<bool> = const { Cell::new(false) };
        /// `RENAME_NOREPLACE` is not known, as on NFS.
        static PLAINLY: Cell<bool> = const { Cell::new(false) };
        /// Taken for mounts as well.
        static MOUNTS: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    pub fn crash_point() -> io::Result<()> {
        let (left, fault) = (LEFT.get(), FAULT.get());
        LEFT.set(left.saturating_sub(1));
        FAULT.set(fault.checked_sub(1).unwrap_or(u32::MAX));
        match (left, fault) {
            (0, _) => Err(io::Error::other("killed")),
            (_, 0) => Err(Errno::ENOSPC.into()),
            _ => Ok(()),
        }
    }

    pub fn refused(is_dir: bool) -> bool {
        is_dir && ONLY_FILES.get()
    }

    pub fn knows_noreplace() -> bool {
        !PLAINLY.get()
    }

    pub fn mounts_below(dir: &Path) -> io::Result<Vec<Mount>> {
        let feigned = |point: &PathBuf| {
            (point != dir && point.starts_with(dir)).then(|| Mount {
                id: 0,
                device: String::new(),
                point: point.clone(),
                fstype: String::new(),
                source: String::new(),
            })
        };
        let mut mounts = mounts::below(dir)?;
        mounts.extend(MOUNTS.with_borrow(|points| points.iter().filter_map(feigned).collect::<Vec<_>>()));
        Ok(mounts)
    }

    const ROOTS: [&str; 2] = ["state", "workspace"];

    /// What there may be below the roots.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Ground {
        Plain,
        /// Overlayfs, where only files can be renamed.
        Overlay,
        /// NFS, where nothing can be renamed without replacing.
        Nfs,
        /// A mount in each root, `d/e`.
        Mounts,
    }

    const GROUNDS: [Ground; 4] = [Ground::Plain, Ground::Overlay, Ground::Nfs, Ground::Mounts];

    impl Ground {
        fn is_here(self, dir: &Path) {
            ONLY_FILES.set(self == Ground::Overlay);
            PLAINLY.set(self == Ground::Nfs);
            let mounts = ROOTS.map(|root| dir.join(root).join("d/e"));
            MOUNTS.set(mounts.into_iter().filter(|_| self == Ground::Mounts).collect());
        }
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    const OLD: [&str; 3] = ["a", "d/e/b", "d/old"];
    const NEW: [&str; 3] = ["a", "d/e/b", "d/new"];

    /// Two roots with old state and staged new state.
    fn prepare(dir: &Path, ground: Ground) -> Vec<Move> {
        let mut moves = Vec::new();
        for root in ROOTS {
            let (target, staged) = (dir.join(root), dir.join(format!("staged-{root}")));
            OLD.iter().for_each(|file| write(&target.join(file), "old"));
            NEW.iter().for_each(|file| write(&staged.join(file), "new"));
            if ground == Ground::Mounts {
                let mount = target.join("d/e");
                let inner = Move {
                    staged: mount.join(".moltinit-restoring-"),
                    aside: mount.join(INNER_ASIDE),
                    target: mount,
                };
                fs::rename(staged.join("d/e"), &inner.staged).unwrap();
                write(&inner.target.join(".before-restore-20250101T000000Z/b"), "older");
                moves.push(inner);
            }
            let aside = dir.join(format!("{root}-aside"));
            moves.push(Move { staged, target, aside });
        }
        ground.is_here(dir);
        moves
    }

    const INNER_ASIDE: &str = ".before-restore-20260102T030405Z";

    /// Roots with something new staged for each, and what is in the old and the new of one.
    struct Prepared {
        dir: tempfile::TempDir,
        work: PathBuf,
        moves: Vec<Move>,
        old: BTreeSet<(PathBuf, String)>,
        new: BTreeSet<(PathBuf, String)>,
    }

    impl Prepared {
        fn new(ground: Ground) -> Prepared {
            let dir = tempfile::tempdir().unwrap();
            let all = |files: [&str; 3], word: &str| files.map(|file| (file.into(), word.into())).into();
            Prepared {
                work: dir.path().join("work"),
                moves: prepare(dir.path(), ground),
                old: all(OLD, "old"),
                new: all(NEW, "new"),
                dir,
            }
        }

        /// What of a root was moved aside.
        fn aside(&self, root: &str) -> BTreeSet<(PathBuf, String)> {
            let mut found = words(&self.dir.path().join(format!("{root}-aside")));
            let inner = words(&self.dir.path().join(root).join("d/e").join(INNER_ASIDE));
            found.extend(
                inner
                    .into_iter()
                    .map(|(path, word)| (Path::new("d/e").join(path), word)),
            );
            found
        }
    }

    #[test]
    fn what_restores_have_left_in_a_mount_stays_where_it_is() {
        let prepared = Prepared::new(Ground::Mounts);
        swap(None, prepared.moves.clone(), &prepared.work).unwrap();
        for root in ROOTS {
            let older = prepared
                .dir
                .path()
                .join(root)
                .join("d/e/.before-restore-20250101T000000Z/b");
            assert_eq!(fs::read_to_string(older).unwrap(), "older");
        }
    }

    /// The words in the files below a directory, with their paths, but for what restores have left.
    fn words(dir: &Path) -> BTreeSet<(PathBuf, String)> {
        let mut found = BTreeSet::new();
        let mut left = vec![dir.to_owned()];
        while let Some(next) = left.pop() {
            for child in fs::read_dir(next).into_iter().flatten() {
                let path = child.unwrap().path();
                match fs::read_to_string(&path) {
                    Ok(word) => drop(found.insert((path.strip_prefix(dir).unwrap().to_owned(), word))),
                    Err(_) if aside::is_inside(path.file_name().unwrap()) => {}
                    Err(_) => left.push(path),
                }
            }
        }
        found
    }

    #[test]
    fn killed_at_any_step_all_roots_are_old_or_all_are_new_and_nothing_is_lost() {
        for ground in GROUNDS {
            let mut deaths = 0;
            for step in 0.. {
                let prepared = Prepared::new(ground);
                let Prepared {
                    dir, work, old, new, ..
                } = &prepared;
                let moves = prepared.moves.clone();
                LEFT.set(step);
                let died = swap(None, moves, work).is_err();
                LEFT.set(u32::MAX);
                let journal = work.join(JOURNAL).exists();
                // The next boot dies as well, half-way, and the one after it comes through.
                LEFT.set(step / 2);
                let _ = resume(work);
                LEFT.set(u32::MAX);
                resume(work).unwrap();
                let expected = if journal || !died { new } else { old };
                for root in ROOTS {
                    assert_eq!(
                        &words(&dir.path().join(root)),
                        expected,
                        "{root}, killed at step {step}, {ground:?}"
                    );
                    if expected == new {
                        assert_eq!(&prepared.aside(root), old, "{ground:?}");
                        assert!(!dir.path().join(format!("staged-{root}")).exists());
                    }
                }
                assert!(!work.join(JOURNAL).exists());
                deaths += u32::from(died);
                if !died {
                    break;
                }
            }
            assert!(deaths > 5, "{deaths} deaths");
        }
    }

    #[test]
    fn after_a_fault_at_any_step_the_old_state_is_back_or_the_new_comes_with_the_next_try() {
        for ground in GROUNDS {
            let mut undone = 0;
            for step in 0.. {
                let prepared = Prepared::new(ground);
                let Prepared {
                    dir, work, old, new, ..
                } = &prepared;
                let moves = prepared.moves.clone();
                FAULT.set(step);
                let swapped = swap(None, moves, work);
                FAULT.set(u32::MAX);
                let expected = match &swapped {
                    Ok(_) => new,
                    Err(RestoreError::Unfinished(_)) => {
                        resume(work).unwrap();
                        new
                    }
                    Err(_) => {
                        undone += 1;
                        old
                    }
                };
                for root in ROOTS {
                    assert_eq!(
                        &words(&dir.path().join(root)),
                        expected,
                        "{root}, a fault at step {step}, {ground:?}"
                    );
                }
                assert!(!work.join(JOURNAL).exists(), "a fault at step {step}");
                if swapped.is_ok() {
                    break;
                }
            }
            assert!(undone > 2, "{undone} undone");
        }
    }

    #[test]
    fn an_empty_directory_in_the_way_is_not_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let moves = prepare(dir.path(), Ground::Plain);
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::remove_dir_all(dir.path().join("workspace")).unwrap();
        assert!(swap(None, moves, &dir.path().join("work")).unwrap().is_empty());
        assert_eq!(words(&dir.path().join("state")), words(&dir.path().join("workspace")));
    }
}
