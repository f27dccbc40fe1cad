//! Putting a commit's tree on the disk.
//!
//! Chunks are read in large ranges by a few threads, checked against their hashes and written into staging
//! directories beside the targets ([`stage`]). Only when all of it is there do the staged trees take the targets' places
//! ([`Staged::place`]); what was there moves aside, to a dated sibling.

mod aside;
mod back;
mod disk;
mod places;
mod plan;
mod stage;
mod swap;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use self::{
    places::Places,
    plan::{Plan, is_sidecar},
    stage::{Stage, below},
    swap::Move,
};
use super::{
    fetch::{Fetcher, Packed, Read},
    head::Head,
    history::History,
    model::{CommitId, Entry, Extent, Kind},
    parallel,
    saved::Saved,
    segment::reader::ReadError,
};
pub use aside::{ASIDE, STAGED};
pub use back::Back;
pub use swap::{is_unfinished, resume};

/// Reads, of half a MiB at the most, that may lie in memory before they are unpacked.
const AHEAD: usize = 8;

/// Why a restore did not happen. The targets are as they were, but for [`RestoreError::Unfinished`].
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{what} {}: {source}", path.display())]
    Local {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} has room for {} MiB and the snapshot needs {}; make room, or give it a larger disk{}", dir.display(), free >> 20, needs.div_ceil(1 << 20), removable(asides))]
    NoRoom {
        dir: PathBuf,
        needs: u64,
        free: u64,
        /// What earlier restores have moved aside there, and only a person can say whether it is missed.
        asides: Vec<PathBuf>,
    },
    /// Some of what was there is aside and some of what is new is in place. Nothing may use the targets before
    /// [`resume`] has worked.
    #[error(
        "{0}; the state is half-way from one snapshot to another, and nothing is started on it before that is over"
    )]
    Unfinished(Box<RestoreError>),
    #[error("{} is not empty; name a directory that is empty or does not exist", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is inside of {}; state and workspace have to be apart, or one root", .0.display(), .1.display())]
    Nested(PathBuf, PathBuf),
    #[error("{} is a mount, and the snapshot has no directory there; start without it, or take the snapshot out with `moltinit restore --to`", .0.display())]
    Mount(PathBuf),
    #[error("{} cannot be made another name of {}, which is on another mount; start without that mount", .0.display(), .1)]
    Apart(PathBuf, String),
}

impl RestoreError {
    pub fn local(what: &'static str, path: &Path, source: io::Error) -> RestoreError {
        RestoreError::Local {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

fn removable(asides: &[PathBuf]) -> String {
    if asides.is_empty() {
        return String::new();
    }
    let names: Vec<String> = asides.iter().map(|aside| aside.display().to_string()).collect();
    format!(
        "; delete what nobody needs of the states that earlier restores have moved aside: {}",
        names.join(", ")
    )
}

/// How far a restore is, in plain bytes of chunks. Written by the restore, read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    pub done: AtomicU64,
    pub total: AtomicU64,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub commit: Option<CommitId>,
    pub files: u64,
    pub bytes: u64,
    /// Where state went that was there before.
    pub aside: Vec<PathBuf>,
    /// Roots of the snapshot that no target was named for; nothing of them was written.
    pub unplaced: Vec<String>,
}

/// A tree that is on the disk beside the place where it goes, every byte of it checked.
#[derive(Debug)]
pub struct Staged {
    moves: Vec<Move>,
    placed: Placed,
}

/// Puts the tree of `head` in place of the directories in `targets`, each named with the root that goes there.
///
/// `work` is a local directory of ours, the same at every boot, for the journal of the last step. A target whose
/// root is not in the snapshot is left alone.
pub fn restore(
    history: &History,
    head: &Head,
    targets: &[(String, PathBuf)],
    work: &Path,
    progress: &Progress,
) -> Result<Placed, RestoreError> {
    resume(work)?;
    let (placed, _) = stage(history, head, targets, progress)?.place(work)?;
    Ok(placed)
}

/// Writes the tree of `head` beside `targets`, which stay as they are.
pub fn stage(
    history: &History,
    head: &Head,
    targets: &[(String, PathBuf)],
    progress: &Progress,
) -> Result<Staged, RestoreError> {
    let places = Places::of(head, targets)?;
    disk::make_room(head, &places)?;
    let unplaced = stage_all(history, head, &places, progress)?;
    let (files, bytes) = head.totals();
    Ok(Staged {
        moves: places.into_moves(),
        placed: Placed {
            commit: head.id(),
            files,
            bytes,
            aside: Vec::new(),
            unplaced,
        },
    })
}

impl Staged {
    /// Moves what is there aside and this into its place: all of it, or on an error nothing. Gives the way back, too.
    pub fn place(mut self, work: &Path) -> Result<(Placed, Back), RestoreError> {
        if Saved::in_dir(work).commit().is_none() {
            for step in &mut self.moves {
                step.aside = aside::unsaved(&step.aside);
            }
        }
        let aside = match swap::swap(self.placed.commit, self.moves.clone(), work) {
            // Whoever finds the journal needs what is staged.
            Err(error @ RestoreError::Unfinished(_)) => return Err(error),
            Err(error) => {
                self.discard();
                return Err(error);
            }
            Ok(aside) => aside,
        };
        aside.iter().for_each(|aside| aside::thin(aside));
        Ok((Placed { aside, ..self.placed }, Back::from(&self.moves)))
    }

    /// Takes it away again.
    pub fn discard(self) {
        for step in &self.moves {
            if let Err(error) = fs::remove_dir_all(&step.staged)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %step.staged.display(), %error, "what was restored for nothing could not be removed");
            }
        }
    }
}

impl Placed {
    /// Says what of it is not as somebody may expect.
    pub fn tell(&self) {
        for root in &self.unplaced {
            tracing::error!(
                root,
                "this part of the snapshot has no place here, and was left out; `moltinit restore --to` writes it"
            );
        }
        for aside in &self.aside {
            if aside::is_unsaved(aside) {
                tracing::warn!(path = %aside.display(), "state that was there before the restore is in no snapshot; it was moved aside, where it stays: take from it what you miss, and delete it");
            } else {
                tracing::info!(path = %aside.display(), "state that was there before the restore was moved aside");
            }
        }
    }
}

/// Writes every root of the tree as a directory into `dir`, which is empty or does not exist.
pub fn restore_into_empty_dir(
    history: &History,
    head: &Head,
    dir: &Path,
    progress: &Progress,
) -> Result<Placed, RestoreError> {
    fs::create_dir_all(dir).map_err(|source| RestoreError::local("making", dir, source))?;
    let mut present = fs::read_dir(dir).map_err(|source| RestoreError::local("reading", dir, source))?;
    if present.next().is_some() {
        return Err(RestoreError::NotEmpty(dir.to_owned()));
    }
    let roots = head.tree().keys().filter(|path| below(path).is_none());
    let roots: Vec<(String, PathBuf)> = roots
        .map(|root| String::from_utf8_lossy(root).into_owned())
        .map(|root| (root.clone(), dir.join(root)))
        .collect();
    let work = dir.join(".moltinit-restore");
    let placed = restore(history, head, &roots, &work, progress);
    let cleared = fs::remove_dir_all(&work);
    let placed = placed?;
    match cleared {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RestoreError::local("removing", &work, error)),
        _ => Ok(placed),
    }
}

/// Stages what has a place. Clears away everything again if one fails.
fn stage_all(
    history: &History,
    head: &Head,
    places: &Places,
    progress: &Progress,
) -> Result<Vec<String>, RestoreError> {
    let mut stages: BTreeMap<&[u8], Stage> = BTreeMap::new();
    // A mount of which the snapshot has nothing is left empty.
    let mut parts = places.parts().filter(|(part, _)| head.tree().contains_key(*part));
    let result = parts
        .try_for_each(|(part, step)| {
            stages.insert(part, Stage::create(&step.staged, part)?);
            Ok(())
        })
        .and_then(|()| fill(history, head, places, &stages, progress));
    if result.is_err() {
        for step in places.moves() {
            // The error that led here is what matters; the next restore clears what is left.
            let _ = fs::remove_dir_all(&step.staged);
        }
    }
    result?;
    let roots = head
        .tree()
        .keys()
        .filter(|path| below(path).is_none() && places.part(path).is_none());
    Ok(roots.map(|root| String::from_utf8_lossy(root).into_owned()).collect())
}

/// A name of the tree, and where it is staged.
struct Item<'a> {
    stage: &'a Stage,
    /// Below what is staged there; empty for that itself.
    path: &'a [u8],
    entry: &'a Entry,
}

fn fill(
    history: &History,
    head: &Head,
    places: &Places,
    stages: &BTreeMap<&[u8], Stage>,
    progress: &Progress,
) -> Result<(), RestoreError> {
    let items: Vec<Option<Item>> = head
        .tree()
        .iter()
        .map(|(path, entry)| {
            let (part, _) = places.part(path)?;
            let stage = stages.get(part)?;
            (!is_sidecar(head.tree(), path, entry)).then(|| Item {
                stage,
                path: stage.below(path).unwrap_or_default(),
                entry,
            })
        })
        .collect();
    let below_roots = || items.iter().flatten().filter(|item| !item.path.is_empty());
    for item in below_roots().filter(|item| item.entry.kind == Kind::Dir) {
        item.stage.make_dir(item.path)?;
    }
    let plan = Plan::new(head, |place| items[place].is_some());
    let total = plan.chunks.iter().map(|(chunk, _)| u64::from(chunk.raw_len)).sum();
    progress.total.store(total, Ordering::Relaxed);
    progress.done.store(0, Ordering::Relaxed);
    write_chunks(history, &plan, &items, progress)?;
    for item in below_roots() {
        if let Kind::File { len, extents } | Kind::Sqlite { len, extents, .. } = &item.entry.kind
            && !matches!(extents.last(), Some(Extent::Data { .. }))
        {
            item.stage.extend(item.path, *len)?;
        }
    }
    for item in items.iter().flatten() {
        if let Kind::HardLink { to } = &item.entry.kind
            && places.part(to).is_none_or(|(part, _)| part != item.stage.part())
        {
            let path = item.stage.path().join(OsStr::from_bytes(item.path));
            return Err(RestoreError::Apart(path, String::from_utf8_lossy(to).into_owned()));
        }
        item.stage.link(item.path, item.entry)?;
    }
    // From the bottom up, as each step changes the time of the directory it is in.
    for item in items.iter().flatten().rev() {
        item.stage.finish(item.path, item.entry)?;
    }
    Ok(())
}

fn write_chunks(
    history: &History,
    plan: &Plan,
    items: &[Option<Item>],
    progress: &Progress,
) -> Result<(), RestoreError> {
    // s3fs fetches 25 MB from where it is asked and answers nobody meanwhile. So each object is read by one thread, from
    // front to back, or it would be fetched in bits; and what has been read is unpacked by others meanwhile.
    let read = || {
        let mut fetcher = Fetcher::new(history);
        move |read: &Read| Ok(fetcher.read(read)?)
    };
    let write = || {
        let mut writer = Writer { items, file: None };
        move |packed: Packed| {
            let chunks = plan.chunks[packed.read.chunks.clone()].iter().map(|(chunk, _)| chunk);
            packed.unpack(history.key(), chunks, |n, plain| {
                for target in &plan.chunks[n].1 {
                    let bytes = &plain[target.from as usize..][..target.len as usize];
                    writer.write(target.file, target.at, bytes)?;
                }
                progress.done.fetch_add(plain.len() as u64, Ordering::Relaxed);
                Ok(())
            })
        }
    };
    parallel::piped(&plan.by_object(), AHEAD, read, write)
}

/// Writes for one thread, keeping the last file open.
struct Writer<'a> {
    items: &'a [Option<Item<'a>>],
    file: Option<(u32, fs::File)>,
}

impl Writer<'_> {
    fn write(&mut self, file: u32, at: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let Some(item) = &self.items[file as usize] else {
            return Ok(());
        };
        let handle = match self.file.take() {
            Some((open, handle)) if open == file => handle,
            _ => item.stage.open(item.path)?,
        };
        let written = handle.write_all_at(bytes, at);
        self.file = Some((file, handle));
        let path = || item.stage.path().join(String::from_utf8_lossy(item.path).as_ref());
        written.map_err(|source| RestoreError::local("writing", &path(), source))
    }
}
