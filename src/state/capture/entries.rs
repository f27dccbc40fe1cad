//! From what was found to what changed in the tree; files are read here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io, mem,
};

use super::{
    Before, Finds, Notes,
    content::{self, ReadFailure, Steady},
    databases::Image,
    links,
    look::{Found, Look, Places, SIDECARS, beside},
};
use crate::state::{
    changes::Depth,
    model::{Delta, Entry, Kind, Tree, TreePath},
    segment::{SegmentError, SegmentWriter},
    walk::{Stat, What, is_gone, split},
};

/// A tree in the making.
pub struct Entries<'a> {
    before: Before<'a>,
    tree: &'a Tree,
    upsert: BTreeMap<TreePath, Entry>,
    remove: BTreeSet<TreePath>,
    /// How each database that was looked at came out.
    images: BTreeMap<TreePath, Image>,
    /// The first name of each file that has several.
    leaders: HashMap<(Vec<u8>, (u64, u64)), TreePath>,
    /// What was written to, whatever its times say.
    written: HashSet<TreePath>,
    notes: Notes,
}

impl<'a> Entries<'a> {
    pub fn new(before: Before<'a>, images: BTreeMap<TreePath, Image>, notes: Notes) -> Entries<'a> {
        Entries {
            before,
            tree: before.tree,
            upsert: BTreeMap::new(),
            remove: BTreeSet::new(),
            images,
            leaders: HashMap::new(),
            written: HashSet::new(),
            notes,
        }
    }

    /// Makes entries of what was found; reads files.
    pub fn make(&mut self, look: Look, writer: &mut SegmentWriter) -> Result<(), SegmentError> {
        let Look {
            mut places,
            found: finds,
            unlisted,
            refused,
            written,
            ..
        } = look;
        self.written = written;
        for (path, found) in &finds {
            if parents(path).any(|dir| finds.get(dir) == Some(&Found::Gone)) {
                continue;
            }
            match found {
                Found::Gone => self.gone(path),
                Found::Unknown(why) => self.notes.trouble(path, Depth::Below, why.clone()),
                Found::At(stat) => self.there(&mut places, &finds, path.clone(), *stat, writer)?,
            }
        }
        for (path, why) in unlisted {
            self.notes.trouble(&path, Depth::Below, why);
        }
        let too_deep = |path| (path, "lies too deep, and is not captured".to_owned());
        self.notes.update.troubles.extend(refused.into_iter().map(too_deep));
        Ok(())
    }

    fn gone(&mut self, path: &TreePath) {
        self.remove.extend(self.tree.contains_key(path).then(|| path.clone()));
        self.remove_below(path);
        self.notes.update.gone.push(path.clone());
    }

    fn remove_below(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let inside = self
            .tree
            .range(below.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&below));
        self.remove.extend(inside.cloned());
    }

    fn there(
        &mut self,
        places: &mut Places,
        finds: &Finds,
        path: TreePath,
        stat: Stat,
        writer: &mut SegmentWriter,
    ) -> Result<(), SegmentError> {
        let kind = match stat.what {
            What::Special => return Ok(()),
            What::Dir => Some(Kind::Dir),
            What::Symlink => match places.below(&path).map(|(below, rel)| below.link_target(rel)) {
                Some(Ok(target)) => Some(Kind::Symlink { target }),
                Some(Err(error)) => self.not_read(&path, &error),
                None => None,
            },
            What::File => return self.file(places, finds, path, stat, writer),
        };
        if let Some(kind) = kind {
            self.notes.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
        }
        Ok(())
    }

    fn not_read(&mut self, path: &TreePath, error: &io::Error) -> Option<Kind> {
        if is_gone(error) {
            // Something has happened to it since, of which the watch tells; and if there is none, this does.
            self.notes.again.add(path.clone(), Depth::Below);
            (self.notes.incomplete, self.notes.vanished) = (true, true);
        } else {
            self.notes
                .trouble(path, Depth::Itself, format!("cannot be read: {error}"));
        }
        None
    }

    fn file(
        &mut self,
        places: &mut Places,
        finds: &Finds,
        path: TreePath,
        stat: Stat,
        writer: &mut SegmentWriter,
    ) -> Result<(), SegmentError> {
        if beside(&path).is_some_and(|base| self.will_be_database(finds, base)) {
            self.remove.extend(self.tree.contains_key(&path).then(|| path.clone()));
            self.notes.update.stats.push((path, stat));
            return Ok(());
        }
        let leader = (split(&path).0.as_bytes().to_vec(), stat.inode());
        if stat.links > 1
            && let Some(to) = self.leaders.get(&leader)
        {
            let kind = Kind::HardLink { to: to.clone() };
            self.notes.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
            return Ok(());
        }
        let old = self.tree.get(&path).map(|entry| &entry.kind);
        let unchanged = !self.written.contains(&path)
            && (self.before.memory.stat(&path).is_some_and(|then| then.is_still(&stat))
                || self.before.has_restored(finds, &path, &stat));
        // What is left in its place says that it is a database.
        let image = self.images.get_mut(&path).map(|image| match image {
            Image::New(_) => mem::replace(image, Image::Old),
            Image::Old => Image::Old,
            Image::None => Image::None,
        });
        let (kind, stat) = match image {
            Some(Image::New(kind)) => {
                self.notes.update.stats.push((path.clone(), stat));
                (Some(kind), stat)
            }
            Some(Image::Old) => (None, stat),
            Some(Image::None) | None => match old {
                Some(kind @ (Kind::File { .. } | Kind::Sqlite { .. })) if unchanged => {
                    self.notes.update.stats.push((path.clone(), stat));
                    (Some(kind.clone()), stat)
                }
                _ => self.read(places, &path, stat, image.is_some(), writer)?,
            },
        };
        let is_there = kind.is_some() || matches!(old, Some(Kind::File { .. } | Kind::Sqlite { .. }));
        if stat.links > 1 && is_there {
            self.leaders.insert(leader, path.clone());
        }
        if let Some(kind) = kind {
            self.set(path, &stat, kind);
        }
        Ok(())
    }

    fn read(
        &mut self,
        places: &mut Places,
        path: &TreePath,
        stat: Stat,
        even_a_database: bool,
        writer: &mut SegmentWriter,
    ) -> Result<(Option<Kind>, Stat), SegmentError> {
        let Some((below, rel)) = places.below(path) else {
            return Ok((None, stat));
        };
        let content = match content::read(below, rel, even_a_database, writer) {
            Ok(content) => content,
            Err(ReadFailure::Segment(error)) => return Err(error),
            // It has become one since the databases were captured.
            Err(ReadFailure::Database) => {
                self.notes.again(path);
                return Ok((None, stat));
            }
            Err(ReadFailure::File(error)) => return Ok((self.not_read(path, &error), stat)),
        };
        let kind = Kind::File {
            len: content.stat.len,
            extents: content.extents,
        };
        let older = matches!(
            self.tree.get(path),
            Some(Entry {
                kind: Kind::File { .. },
                ..
            })
        );
        match content.steady {
            Steady::Still => {
                self.notes.update.stats.push((path.clone(), content.stat));
                Ok((Some(kind), content.stat))
            }
            Steady::Grew => {
                self.notes.later(path, Depth::Itself);
                Ok((Some(kind), content.stat))
            }
            Steady::Torn => {
                let kept = if older {
                    "an older copy is kept"
                } else {
                    "it is stored as it was read"
                };
                self.notes.trouble(
                    path,
                    Depth::Itself,
                    format!("changes faster than it can be read: {kept}"),
                );
                Ok(((!older).then_some(kind), content.stat))
            }
        }
    }

    /// Whether `path` is a database in the tree that is being made.
    fn will_be_database(&self, found: &Finds, path: &[u8]) -> bool {
        let was = || {
            matches!(
                self.tree.get(path),
                Some(Entry {
                    kind: Kind::Sqlite { .. },
                    ..
                })
            )
        };
        if matches!(self.images.get(path), Some(Image::New(_) | Image::Old)) {
            return true;
        }
        match (self.upsert.get(path), found.get(path)) {
            (Some(entry), _) => matches!(entry.kind, Kind::Sqlite { .. }),
            (None, Some(Found::Gone)) => false,
            (None, _) => was(),
        }
    }

    fn set(&mut self, path: TreePath, stat: &Stat, kind: Kind) {
        let old = self.tree.get(&path);
        if kind != Kind::Dir && old.is_some_and(|old| old.kind == Kind::Dir) {
            self.remove_below(&path);
        }
        let Stat {
            mode,
            uid,
            gid,
            mtime_ns,
            ..
        } = *stat;
        let entry = Entry {
            mode,
            uid,
            gid,
            mtime_ns,
            kind,
        };
        if matches!(entry.kind, Kind::Sqlite { .. }) {
            let left = SIDECARS
                .iter()
                .map(|end| [&path, *end].concat())
                .filter(|path| self.tree.contains_key(path));
            self.remove.extend(left);
        }
        if old != Some(&entry) {
            self.upsert.insert(path, entry);
        }
    }

    pub fn finish(mut self) -> (Delta, Notes) {
        links::settle(self.tree, &mut self.upsert, &mut self.remove);
        self.remove.retain(|path| !self.upsert.contains_key(path));
        // The time of a directory, or of a database whose pages are the same, is no reason for a commit.
        let tree = self.tree;
        let incidental = |(path, entry): (&TreePath, &Entry)| {
            let same = tree.get(path).is_some_and(|old| {
                Entry {
                    mtime_ns: entry.mtime_ns,
                    ..old.clone()
                } == *entry
            });
            same && matches!(entry.kind, Kind::Dir | Kind::Sqlite { .. })
        };
        let nothing = self.remove.is_empty() && self.upsert.iter().all(incidental);
        let delta = if nothing {
            Delta::default()
        } else {
            Delta {
                upsert: self.upsert.into_iter().collect(),
                remove: self.remove.into_iter().collect(),
            }
        };
        (delta, self.notes)
    }
}

/// The directories that a path is in, innermost first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at])
}
