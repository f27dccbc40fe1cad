//! From paths that changed to what changed in the tree, with the chunks put into a segment.
//!
//! Databases first, then files: a file that a database names is older than the image that names it. Nothing that
//! is wrong with a file makes a commit fail. What cannot be captured stays in the snapshot as it was, is named,
//! and is looked at again.

mod content;
mod databases;
mod entries;
mod fit;
mod links;
mod look;
mod lost;
mod memory;
mod remote;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use databases::Databases;
use entries::{Entries, parents};
use look::{Found, Look, SIDECARS};
pub use memory::{Memory, Update};

use super::{
    changes::{Changes, Depth},
    head::Head,
    model::{Delta, Kind, Tree, TreePath},
    segment::{SegmentError, SegmentWriter},
    walk::{Root, Stat},
    watch::Watch,
};

type Finds = BTreeMap<TreePath, Found>;

/// What a capture found.
#[derive(Debug)]
pub struct Captured {
    pub delta: Delta,
    pub update: Update,
    /// What could not be captured as it is now.
    pub again: Changes,
    /// Some of that is not in as it was when the capture began.
    pub incomplete: bool,
    /// Something is there that is in the snapshot as it was at best.
    pub lacking: bool,
    /// Roots that are not there.
    pub missing: Vec<String>,
    /// Sockets, pipes and devices, where everything was looked at.
    pub skipped: Option<u64>,
}

/// Looks in a row until nothing more has changed, after which it is not waited for any longer.
const LOOKS: usize = 20;

/// Looks at `changes` and at what changes meanwhile, which is added to them, and puts what is new into `writer`. Where
/// some directories are not watched, only those of `known` are removed, if it is given.
pub fn capture(
    roots: &[Root],
    head: &Head,
    memory: &Memory,
    watch: &Watch,
    changes: &mut Changes,
    writer: &mut SegmentWriter,
    known: Option<&BTreeSet<TreePath>>,
) -> Result<Captured, SegmentError> {
    let before = Before {
        tree: head.tree(),
        memory,
    };
    let mut look = Look::new(roots, before.tree, memory, watch);
    let mut notes = Notes::default();
    let mut databases = Databases::new(before);
    look.at(changes);
    databases.capture(&mut look, &mut notes, writer)?;
    // What is gone may have another name now, of which the kernel told at the same time: only when it has nothing more
    // to tell, everything has been looked for where it is. Each look is followed by images of the databases it found.
    for number in 1..=LOOKS {
        let late = watch.take();
        if late.is_empty() {
            break;
        }
        databases.changed_since(&late, &mut notes);
        if number < LOOKS {
            look.at(&late);
        } else {
            look.at_last(&late);
        }
        changes.merge(late);
        databases.capture(&mut look, &mut notes, writer)?;
    }
    let missing = look.places.missing();
    let skipped = changes.rescan.is_some().then_some(look.skipped);
    let mut entries = Entries::new(before, databases.images, notes);
    entries.make(look, writer)?;
    let (mut delta, mut notes) = entries.finish(known.filter(|_| watch.blind().is_some()), writer);
    lost::leave_out(head, writer, &mut delta, &mut notes);
    // What could not be captured is as old as what it was to be captured for; what has grown since it was is not.
    if notes.incomplete || notes.crowded {
        notes.again.noticed(changes.since);
    }
    Ok(Captured {
        delta,
        update: notes.update,
        again: notes.again,
        incomplete: notes.incomplete,
        lacking: notes.lacking,
        missing,
        skipped,
    })
}

/// What is known before a capture.
#[derive(Clone, Copy)]
struct Before<'a> {
    tree: &'a Tree,
    memory: &'a Memory,
}

impl Before<'_> {
    /// Whether a file that was never looked at is as the snapshot has it: a restore has just put it there.
    fn has_restored(&self, finds: &Finds, path: &[u8], stat: &Stat) -> bool {
        let Some(entry) = self.tree.get(path).filter(|_| self.memory.is_new()) else {
            return false;
        };
        match entry.kind {
            Kind::File { len, .. } => len == stat.len && entry.mtime_ns == stat.mtime_ns,
            Kind::Sqlite { len, .. } => {
                let written = |end: &&[u8]| matches!(finds.get(&[path, end].concat()), Some(Found::At(_)));
                len == stat.len && entry.mtime_ns == stat.mtime_ns && !SIDECARS.iter().any(written)
            }
            _ => false,
        }
    }
}

/// What is found out on the way, beside the tree.
#[derive(Debug, Default)]
struct Notes {
    update: Update,
    again: Changes,
    incomplete: bool,
    lacking: bool,
    /// There was no room for something.
    crowded: bool,
}

impl Notes {
    /// It is not captured as it should be. That is said, and it is tried again.
    fn trouble(&mut self, path: &[u8], depth: Depth, why: String) {
        tracing::debug!(path = super::walk::show(path), why, "not captured as it should be");
        self.update.troubles.push((path.to_vec(), why));
        self.later(path, depth);
        self.incomplete = true;
    }

    /// It does not fit into this snapshot. What was put before may be all that is in its way, and is not in the next one's:
    /// without that, it is not to be hoped for that it soon fits.
    fn no_room(&mut self, path: &[u8], error: &SegmentError, older: bool, alone: bool) {
        let instead = if older {
            "an older copy is kept"
        } else {
            "it is in no snapshot"
        };
        self.update
            .troubles
            .push((path.to_vec(), format!("{error}; {instead}")));
        self.later(path, Depth::Itself);
        self.crowded = true;
        self.incomplete |= !alone;
    }

    /// It cannot be in the snapshot as it is, by what is known of it and of the directories that it is in.
    fn has_no_place(&mut self, path: &TreePath, why: &str, is_left: bool) {
        let kept = if is_left {
            "an older copy is kept"
        } else {
            "it is left out"
        };
        self.update.stats.retain(|(other, _)| other != path);
        self.update.databases.retain(|(other, ..)| other != path);
        self.update.readings.retain(|(other, _)| other != path);
        self.update.unsure.extend(parents(path).map(<[u8]>::to_vec));
        self.trouble(
            path,
            Depth::Below,
            format!("has no place in the snapshot ({why}): {kept}"),
        );
    }

    /// It is not captured as it is now; only that is not worth a word.
    fn again(&mut self, path: &[u8]) {
        self.later(path, Depth::Itself);
        self.incomplete = true;
    }

    /// It stays in the snapshot as it was until it is known what has become of it.
    fn still(&mut self, path: &[u8]) {
        self.again.add(path.to_vec(), Depth::Below);
        self.incomplete = true;
    }

    /// It has grown since it was `read`, and is left alone for a while.
    fn rests(&mut self, path: &[u8], read: Instant) {
        self.later(path, Depth::Itself);
        self.again.noticed(Some(read));
    }

    /// It was captured, and has changed since.
    fn later(&mut self, path: &[u8], depth: Depth) {
        self.update.unsure.push(path.to_vec());
        self.again.add(path.to_vec(), depth);
    }
}

#[cfg(test)]
mod tests;
