//! From what was found to what changed in the tree; files are read here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io, mem,
    time::Instant,
};

use super::{
    Before, Finds, Notes,
    content::{self, LONG, ReadFailure, Steady},
    databases::Image,
    fit::fit,
    links,
    look::{Found, Look, Places, SIDECARS, Unseen, beside},
    memory::Reading,
};
use crate::state::{
    changes::Depth,
    model::{Delta, Entry, Kind, Tree, TreePath, below},
    segment::{SegmentError, SegmentWriter},
    walk::{Stat, What, is_gone, split},
};

/// A tree in the making.
pub struct Entries<'a> {
    before: Before<'a>,
    tree: &'a Tree,
    upsert: BTreeMap<TreePath, Entry>,
    /// What is not there any more.
    gone: BTreeSet<TreePath>,
    /// What has no place beside what is there now.
    remove: BTreeSet<TreePath>,
    /// What is there and is not captured: it may have had another name.
    left: Vec<(TreePath, Stat)>,
    /// Something is not captured that was captured before, or was not there.
    newly_left: bool,
    /// There is a place to which something may have come, and it is not known what is there.
    unseen: bool,
    /// How each database that was looked at came out.
    images: BTreeMap<TreePath, Image>,
    /// The first name of each file that has several, and is no database.
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
            gone: BTreeSet::new(),
            remove: BTreeSet::new(),
            left: Vec::new(),
            newly_left: false,
            unseen: false,
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
            left,
            ..
        } = look;
        self.written = written;
        let is_no_dir = |found: &Found| match found {
            Found::Gone => true,
            Found::At(stat) => stat.what != What::Dir,
            Found::Unknown(_) => false,
        };
        let is_in_none = |path: &TreePath| parents(path).any(|dir| finds.get(dir).is_some_and(is_no_dir));
        for (path, found) in &finds {
            if is_in_none(path) {
                continue;
            }
            match found {
                Found::Gone => self.gone(path),
                Found::Unknown(unseen) => self.unseen(path, unseen),
                Found::At(stat) => self.there(&mut places, &finds, path.clone(), *stat, writer)?,
            }
        }
        for (path, unseen) in unlisted {
            self.unseen(&path, &unseen);
            if let Some(Found::At(stat)) = finds.get(&path) {
                self.left(&path, stat);
            }
        }
        left.iter().for_each(|path| self.notes.still(path));
        let earlier = self.before.memory.left().iter();
        let still = earlier.filter(|(path, _)| !finds.contains_key(*path) && !is_in_none(path));
        self.left.extend(still.map(|(path, stat)| (path.clone(), *stat)));
        // What was known of it is not known to be so when it can be looked at again.
        self.notes.update.unsure.extend(refused.keys().cloned());
        self.notes.update.troubles.extend(refused);
        Ok(())
    }

    fn gone(&mut self, path: &TreePath) {
        self.gone.extend(self.tree.contains_key(path).then(|| path.clone()));
        self.gone.extend(below(self.tree, path).cloned());
        self.notes.update.gone.push(path.clone());
    }

    fn unseen(&mut self, path: &[u8], unseen: &Unseen) {
        self.notes.trouble(path, Depth::Below, unseen.why.clone());
        self.unseen |= unseen.passing || !self.before.memory.is_troubled(path);
        self.notes.lacking = true;
    }

    /// It is there, and the snapshot does not get it as it is.
    fn left(&mut self, path: &TreePath, stat: &Stat) {
        self.newly_left |= !self.before.memory.left().contains_key(path);
        self.left.push((path.clone(), *stat));
        self.notes.lacking = true;
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
                Some(Err(error)) => {
                    self.not_read(&path, &error);
                    None
                }
                None => None,
            },
            What::File => return self.file(places, finds, path, stat, writer),
        };
        if let Some(kind) = kind {
            self.notes.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
        } else {
            self.left(&path, &stat);
        }
        Ok(())
    }

    fn not_read(&mut self, path: &TreePath, error: &io::Error) {
        if is_gone(error) {
            // Something has happened to it since, of which the watch tells; and if there is none, this does.
            self.notes.still(path);
        } else {
            self.notes
                .trouble(path, Depth::Itself, format!("cannot be read: {error}"));
        }
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
            self.take_out(&path);
            self.notes.update.stats.push((path, stat));
            return Ok(());
        }
        // What is left in its place says that it is a database.
        let image = self.images.get_mut(&path).map(|image| match image {
            Image::New(_) => mem::replace(image, Image::Old),
            Image::Old => Image::Old,
            Image::None => Image::None,
        });
        // A log belongs to a name: whatever else its file is called, a database is what it is by this one.
        let is_database = matches!(image, Some(Image::New(_) | Image::Old));
        let leader = (stat.links > 1 && !is_database).then(|| (split(&path).0.as_bytes().to_vec(), stat.inode()));
        if let Some(to) = leader.as_ref().and_then(|leader| self.leaders.get(leader)) {
            let kind = Kind::HardLink { to: to.clone() };
            self.notes.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
            return Ok(());
        }
        let old = self.tree.get(&path).map(|entry| &entry.kind);
        let looked_at = stat;
        let unchanged = !self.written.contains(&path)
            && (self.before.memory.stat(&path).is_some_and(|then| then.is_still(&stat))
                || self.before.has_restored(finds, &path, &stat));
        if let Some(Kind::File { .. }) = old
            && !self.images.contains_key(&path)
            && let Some(read) = self.before.memory.is_read_enough(&path, &stat)
        {
            self.notes.rests(&path, read);
            return Ok(());
        }
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
        let then = self.before.memory.stat(&path).map(Stat::inode);
        let is_kept = matches!(old, Some(Kind::File { .. } | Kind::Sqlite { .. })) && then == Some(looked_at.inode());
        if let Some(leader) = leader.filter(|_| kind.is_some() || is_kept) {
            self.leaders.insert(leader, path.clone());
        }
        if kind.is_none() || stat.inode() != looked_at.inode() {
            self.left(&path, &looked_at);
        }
        match (kind, old) {
            (Some(kind), _) => self.set(path, &stat, kind),
            // What it is a name of may be captured, and be something else by now.
            (None, Some(Kind::HardLink { .. })) => {
                let older = self.older(&path).cloned();
                self.upsert.extend(older.map(|older| (path, older)));
            }
            _ => {}
        }
        Ok(())
    }

    /// The content that the snapshot has of a file.
    fn older(&self, path: &[u8]) -> Option<&'a Entry> {
        let entry = self.tree.get(path)?;
        let entry = match &entry.kind {
            Kind::HardLink { to } => self.tree.get(to)?,
            _ => entry,
        };
        matches!(entry.kind, Kind::File { .. } | Kind::Sqlite { .. }).then_some(entry)
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
        let (mark, alone, began) = (writer.mark(), writer.is_empty(), Instant::now());
        let content = match content::read(below, rel, even_a_database, writer) {
            Ok(content) => content,
            Err(ReadFailure::Segment(error @ SegmentError::NoRoom { .. })) => {
                writer.roll_back(mark)?;
                self.notes.no_room(path, &error, self.older(path).is_some(), alone);
                return Ok((None, stat));
            }
            Err(ReadFailure::Segment(error)) => return Err(error),
            // It has become one since the databases were captured.
            Err(ReadFailure::Database) => {
                self.notes.again(path);
                return Ok((None, stat));
            }
            Err(ReadFailure::File(error)) => {
                self.not_read(path, &error);
                return Ok((None, stat));
            }
        };
        let kind = Kind::File {
            len: content.stat.len,
            extents: content.extents,
        };
        if content.stat.len > LONG && content.steady != Steady::Torn {
            let reading = Reading::of(&content.stat, began);
            self.notes.update.readings.push((path.clone(), reading));
        }
        let older = self
            .older(path)
            .is_some_and(|entry| matches!(entry.kind, Kind::File { .. }));
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

    /// Has no place any more for what is in the tree at `path`, and below it.
    fn take_out(&mut self, path: &TreePath) {
        self.remove.extend(self.tree.contains_key(path).then(|| path.clone()));
        self.remove.extend(below(self.tree, path).cloned());
    }

    fn set(&mut self, path: TreePath, stat: &Stat, kind: Kind) {
        let old = self.tree.get(&path);
        if kind != Kind::Dir && old.is_some_and(|old| old.kind == Kind::Dir) {
            self.take_out(&path);
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
            // Whatever else is called like one is none.
            let is_file = |entry: &Entry| matches!(entry.kind, Kind::File { .. } | Kind::HardLink { .. });
            let sidecars = SIDECARS.iter().map(|end| [&path, *end].concat());
            self.remove
                .extend(sidecars.filter(|path| self.tree.get(path).is_some_and(is_file)));
        }
        if old != Some(&entry) {
            self.upsert.insert(path, entry);
        }
    }

    /// Keeps what is gone where it was, if it may be in a place where it was not captured. `known` is what may not, where
    /// not all places are watched.
    fn keep(&mut self, known: Option<&BTreeSet<TreePath>>) {
        let identity = |stat: &Stat| (stat.inode(), stat.what);
        let left: HashSet<_> = self.left.iter().map(|(_, stat)| identity(stat)).collect();
        let may_be_elsewhere = |path: &TreePath| {
            let stat = self.before.memory.stat(path);
            let is_left = stat.map_or(self.newly_left, |stat| left.contains(&identity(stat)));
            self.unseen || is_left || known.is_some_and(|known| !known.contains(path))
        };
        let kept: Vec<TreePath> = self
            .gone
            .iter()
            .filter(|path| may_be_elsewhere(path))
            .cloned()
            .collect();
        if !kept.is_empty() {
            let with_parents = |path| parents(path).chain([path]);
            let stay: BTreeSet<&[u8]> = kept.iter().flat_map(|path| with_parents(path.as_slice())).collect();
            // With the directories that it is in, which are looked at for nothing else.
            let (still, gone_for_good) = mem::take(&mut self.gone)
                .into_iter()
                .partition::<BTreeSet<_>, _>(|path| stay.contains(path.as_slice()));
            self.gone = gone_for_good;
            still.iter().for_each(|path| self.notes.still(path));
            let gone = &mut self.notes.update.gone;
            // Each for itself, since it is forgotten with all that is below it.
            gone.retain(|path| !stay.contains(path.as_slice()));
            gone.extend(self.gone.iter().cloned());
        }
        self.remove.append(&mut self.gone);
        // Whatever went is not looked for at the same place again; what is in trouble is.
        let troubles: HashSet<&TreePath> = self.notes.update.troubles.iter().map(|(path, _)| path).collect();
        self.left.retain(|(path, _)| troubles.contains(path));
        self.notes.update.left = mem::take(&mut self.left);
    }

    pub fn finish(mut self, known: Option<&BTreeSet<TreePath>>, writer: &SegmentWriter) -> (Delta, Notes) {
        self.keep(known);
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
        let mut delta = if nothing {
            // The time of a directory goes with the next commit whose look comes by: what is remembered is what it was.
            let (upsert, memory) = (&self.upsert, self.before.memory);
            let waits = |path: &TreePath, stat: &Stat| {
                let is_known = memory.stat(path).is_some_and(|then| then.inode() == stat.inode());
                stat.what == What::Dir && upsert.contains_key(path) && is_known && !memory.is_troubled(path)
            };
            self.notes.update.stats.retain(|(path, stat)| !waits(path, stat));
            Delta::default()
        } else {
            Delta {
                upsert: self.upsert.into_iter().collect(),
                remove: self.remove.into_iter().collect(),
            }
        };
        for (path, why) in fit(tree, &mut delta, |delta| writer.check(delta)) {
            self.notes.has_no_place(&path, why, tree.contains_key(&path));
        }
        (delta, self.notes)
    }
}

/// The directories that a path is in, innermost first.
pub fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at])
}
