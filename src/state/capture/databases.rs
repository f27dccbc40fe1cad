//! Images of the databases among what a look has found.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use super::{
    Before, Notes,
    content::{beginning, is_zero_after},
    look::{Found, Look, Places, beside},
    memory::Inode,
};
use crate::state::{
    changes::{Changes, Depth},
    chunk,
    model::{Extent, Kind, TreePath},
    segment::{SegmentError, SegmentWriter},
    sqlite::{self, CaptureError, SMALLEST, Users},
    walk::{Stat, What, split},
};

/// The root that is moltinit's own. Its databases are open in this process, so they are known by their names and
/// never opened as files (see [`sqlite`]).
const OWN: &str = "moltinit";

/// How a database came out.
pub enum Image {
    New(Kind),
    /// The one in the snapshot is as good as can be had now, if there is one.
    Old,
    /// It is none; its bytes are to be stored.
    None,
}

/// The databases of one capture.
pub struct Databases<'a> {
    before: Before<'a>,
    /// What each file was like when it was asked whether it is a database.
    asked: BTreeMap<TreePath, Stat>,
    /// The file that each image is of.
    taken: BTreeMap<TreePath, Inode>,
    pub images: BTreeMap<TreePath, Image>,
}

impl<'a> Databases<'a> {
    pub fn new(before: Before<'a>) -> Databases<'a> {
        Databases {
            before,
            asked: BTreeMap::new(),
            taken: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }

    /// Captures every database among what was found up to now that has not been captured yet.
    pub fn capture(
        &mut self,
        look: &mut Look,
        notes: &mut Notes,
        writer: &mut SegmentWriter,
    ) -> Result<(), SegmentError> {
        // Another file may have taken the place of one that was captured.
        self.taken.retain(|path, inode| match look.found.get(path) {
            Some(Found::At(stat)) => stat.inode() == *inode,
            _ => false,
        });
        self.images.retain(|path, _| self.taken.contains_key(path));
        let files = look.found.iter().filter_map(|(path, found)| match found {
            Found::At(stat) if stat.what == What::File => Some((path, *stat)),
            _ => None,
        });
        let files: Vec<(TreePath, Stat)> = files
            .filter(|(path, stat)| stat.len >= SMALLEST || is_own(path))
            .filter(|(path, stat)| !self.images.contains_key(*path) && self.asked.get(*path) != Some(stat))
            .filter(|(path, stat)| !self.before.has_restored(&look.found, path, stat))
            .map(|(path, stat)| (path.clone(), stat))
            .collect();
        for (path, stat) in files {
            if self.is_database(&mut look.places, &path, &stat) {
                let image = self.image(&mut look.places, &path, &stat, notes, writer)?;
                self.taken.insert(path.clone(), stat.inode());
                self.images.insert(path, image);
            } else {
                if has_log(&mut look.places, &path, &stat) {
                    let why = "is written to like an SQLite database, but cannot be read as one (it may be \
                               encrypted), so its bytes are stored as they are";
                    notes.update.troubles.push((path.clone(), why.into()));
                }
                self.asked.insert(path, stat);
            }
        }
        Ok(())
    }

    /// Databases that changed after they were captured are captured again next time: the look after that change has
    /// seen the file as it is now, the image has not.
    pub fn changed_since(&self, late: &Changes, notes: &mut Notes) {
        for path in late.paths.keys() {
            let base = beside(path).unwrap_or(path);
            for path in [path.as_slice(), base] {
                if self.images.contains_key(path) {
                    notes.later(path, Depth::Itself);
                }
            }
        }
        if late.rescan.is_some() {
            self.images.keys().for_each(|path| notes.later(path, Depth::Itself));
        }
    }

    fn is_database(&self, places: &mut Places, path: &[u8], stat: &Stat) -> bool {
        is_own(path)
            || self.before.memory.database(path, stat.inode()).is_some()
            || begins(places, path).is_some_and(|begin| begin == *sqlite::MAGIC)
    }

    fn image(
        &self,
        places: &mut Places,
        path: &TreePath,
        stat: &Stat,
        notes: &mut Notes,
        writer: &mut SegmentWriter,
    ) -> Result<Image, SegmentError> {
        let Before { tree, memory } = self.before;
        let Some(real) = places.below(path).and_then(|(below, rel)| below.real_path(rel).ok()) else {
            return Ok(Image::Old);
        };
        let old = match tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::Sqlite { page_size, extents, .. }) if writer.has(extents) => {
                Some((*page_size, extents.as_slice()))
            }
            _ => None,
        };
        let known = memory.database(path, stat.inode());
        // SQLite opens by path. What it opened is what was looked at if that is there before and after.
        let there = || fs::symlink_metadata(&real).is_ok_and(|now| (now.dev(), now.ino()) == stat.inode());
        let users = if is_own(path) { Users::Ourselves } else { Users::Others };
        let (mark, alone) = (writer.mark(), writer.is_empty());
        let captured = if there() {
            sqlite::capture(&real, users, old, known, writer)
        } else {
            Err(CaptureError::Unavailable("it was replaced".into()))
        };
        match captured {
            Ok(captured) if there() => {
                let path_shown = crate::state::walk::show(path);
                tracing::debug!(path = path_shown, pages = captured.read, "database captured");
                let (mut len, page_size, mut extents) = (captured.len, captured.page_size, captured.extents);
                match captured
                    .behind
                    .map(|behind| (behind, behind_is(places, path, stat, len)))
                {
                    None => {}
                    Some((behind, Behind::Room)) => {
                        chunk::push(&mut extents, Extent::Hole { len: behind });
                        len += behind;
                    }
                    Some((_, Behind::Changing)) => notes.again(path),
                    Some((behind, Behind::Other)) => {
                        let why = format!(
                            "has {behind} bytes after its last page that are no part of the database, so its bytes are \
                             stored as they are"
                        );
                        notes.update.troubles.push((path.clone(), why));
                        notes.update.no_databases.push(path.clone());
                        return Ok(Image::None);
                    }
                }
                notes
                    .update
                    .databases
                    .push((path.clone(), stat.inode(), captured.known));
                Ok(Image::New(Kind::Sqlite {
                    len,
                    page_size,
                    extents,
                }))
            }
            Ok(_) => {
                let why = "was replaced while it was captured, and is captured again";
                notes.trouble(path, Depth::Itself, why.into());
                Ok(Image::Old)
            }
            Err(CaptureError::Segment(error @ SegmentError::NoRoom { .. })) => {
                writer.roll_back(mark)?;
                notes.no_room(path, &error, tree.contains_key(path), alone);
                Ok(Image::Old)
            }
            Err(CaptureError::Segment(error)) => Err(error),
            Err(error @ CaptureError::Damaged(_)) if !is_own(path) => {
                notes.update.troubles.push((path.clone(), error.to_string()));
                notes.update.no_databases.push(path.clone());
                Ok(Image::None)
            }
            // Bytes of several moments are better than none, where an image cannot be had again and again.
            Err(CaptureError::Unavailable(why))
                if tree.get(path).is_none() && memory.is_troubled(path) && !is_own(path) =>
            {
                let why =
                    format!("cannot be opened as an SQLite database ({why}), so its bytes are stored as they are");
                notes.trouble(path, Depth::Itself, why);
                Ok(Image::None)
            }
            Err(error) => {
                notes.trouble(path, Depth::Itself, error.to_string());
                Ok(Image::Old)
            }
        }
    }
}

/// What lies after the last page of a database.
enum Behind {
    /// Zeros: a user of it makes room in advance.
    Room,
    /// Something that nobody is just writing.
    Other,
    Changing,
}

fn behind_is(places: &mut Places, path: &[u8], stat: &Stat, len: u64) -> Behind {
    let Some((below, rel)) = places.below(path).filter(|_| !is_own(path)) else {
        return Behind::Changing;
    };
    let is_zero = is_zero_after(below, rel, len);
    let is_still = below
        .stat(rel)
        .is_ok_and(|now| now.settled && Stat { settled: true, ..*stat } == now);
    match is_zero {
        Ok(true) => Behind::Room,
        Ok(false) if is_still => Behind::Other,
        _ => Behind::Changing,
    }
}

fn is_own(path: &[u8]) -> bool {
    let (root, rel) = split(path);
    root == OWN && rel.ends_with(b".sqlite")
}

fn begins(places: &mut Places, path: &[u8]) -> Option<Vec<u8>> {
    let (below, rel) = places.below(path)?;
    beginning::<{ sqlite::MAGIC.len() }>(below, rel).ok()
}

/// Whether beside a file that could be made of pages there is a log of SQLite's, by how those begin.
fn has_log(places: &mut Places, path: &[u8], stat: &Stat) -> bool {
    const JOURNAL: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut begin = |end: &[u8]| begins(places, &[path, end].concat()).unwrap_or_default();
    stat.len.is_multiple_of(SMALLEST) && (begin(b"-journal").starts_with(&JOURNAL) || sqlite::is_log(&begin(b"-wal")))
}
