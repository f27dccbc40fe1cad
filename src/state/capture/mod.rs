//! From paths that changed to what changed in the tree, with the chunks put into a segment.
//!
//! Databases first, then files: a file that a database names is older than the image that names it. Nothing that
//! is wrong with a file makes a commit fail. What cannot be captured stays in the snapshot as it was, is named,
//! and is looked at again.

mod content;
mod links;
mod look;
mod memory;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
};

use content::{ReadFailure, Steady};
use look::{Found, Look, Places, SIDECARS, beside};
pub use memory::{Memory, Update};

use super::{
    head::Head,
    model::{Delta, Entry, Kind, Tree, TreePath},
    segment::{SegmentError, SegmentWriter},
    sqlite,
    walk::{Root, Stat, What, is_gone, split},
    watch::{Changes, Depth, Watch},
};

/// The root that is moltinit's own. Its databases are open in this process, so they are known by their names and
/// never opened as files (see [`sqlite`]).
const OWN: &str = "moltinit";

/// A page, of the smallest size that SQLite has.
const SMALLEST_DATABASE: u64 = 512;

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
    /// Something went while it was to be read. If it went to another name, it may be under neither.
    pub vanished: bool,
    /// Roots that are not there.
    pub missing: Vec<String>,
}

/// Looks in a row until nothing more has changed, after which it is not waited for any longer.
const LOOKS: usize = 20;

/// Looks at `changes` and at what changes meanwhile, which is added to them, and puts what is new into `writer`.
pub fn capture(
    roots: &[Root],
    head: &Head,
    memory: &Memory,
    watch: &Watch,
    changes: &mut Changes,
    writer: &mut SegmentWriter,
) -> Result<Captured, SegmentError> {
    let tree = head.tree();
    let mut look = Look::new(roots, tree, memory, watch);
    look.at(changes);
    let mut work = Work::new(tree, memory);
    work.databases(&mut look, writer)?;
    // What is gone may have another name now, of which the kernel told at the same time: only when it has nothing more
    // to tell, everything has been looked for where it is.
    for _ in 0..LOOKS {
        let late = watch.take();
        if late.is_empty() {
            break;
        }
        look.at(&late);
        work.look_again(&late);
        changes.merge(late);
    }
    let Look {
        mut places,
        found,
        unlisted,
        refused,
        skipped,
        ..
    } = look;
    work.files(&mut places, &found, writer)?;
    for (path, why) in unlisted {
        work.trouble(&path, Depth::Below, why);
    }
    let too_deep = |path| (path, "lies too deep, and is not captured".to_owned());
    work.update.troubles.extend(refused.into_iter().map(too_deep));
    if skipped > 0 {
        tracing::debug!(skipped, "sockets, pipes and devices are not captured");
    }
    Ok(work.finish(places.missing()))
}

/// A tree in the making.
struct Work<'a> {
    tree: &'a Tree,
    memory: &'a Memory,
    upsert: BTreeMap<TreePath, Entry>,
    remove: BTreeSet<TreePath>,
    /// How each database that was looked at came out.
    images: BTreeMap<TreePath, Image>,
    /// The first name of each file that has several.
    leaders: HashMap<(Vec<u8>, (u64, u64)), TreePath>,
    update: Update,
    again: Changes,
    incomplete: bool,
    vanished: bool,
}

enum Image {
    New(Kind),
    /// The one in the snapshot is as good as can be had now, if there is one.
    Old,
    /// It is none; its bytes are to be stored.
    None,
}

impl<'a> Work<'a> {
    fn new(tree: &'a Tree, memory: &'a Memory) -> Work<'a> {
        Work {
            tree,
            memory,
            upsert: BTreeMap::new(),
            remove: BTreeSet::new(),
            images: BTreeMap::new(),
            leaders: HashMap::new(),
            update: Update::default(),
            again: Changes::default(),
            incomplete: false,
            vanished: false,
        }
    }

    fn trouble(&mut self, path: &[u8], depth: Depth, why: String) {
        tracing::debug!(path = super::walk::show(path), why, "not captured as it should be");
        self.update.troubles.push((path.to_vec(), why));
        self.update.unsure.push(path.to_vec());
        self.again.add(path.to_vec(), depth);
        self.incomplete = true;
    }

    /// Captures every database among what was found.
    fn databases(&mut self, look: &mut Look, writer: &mut SegmentWriter) -> Result<(), SegmentError> {
        let files = look.found.iter().filter_map(|(path, found)| match found {
            Found::At(stat) if stat.what == What::File && stat.len >= SMALLEST_DATABASE => Some((path, *stat)),
            _ => None,
        });
        let files: Vec<(TreePath, Stat)> = files
            .filter(|(path, stat)| !self.as_restored(&look.found, path, stat))
            .map(|(path, stat)| (path.clone(), stat))
            .collect();
        for (path, stat) in files {
            if self.is_database(&mut look.places, &path, &stat) {
                let image = self.database(&mut look.places, &path, &stat, writer)?;
                self.images.insert(path, image);
            }
        }
        Ok(())
    }

    /// Whether a file that was never looked at is as the snapshot has it: a restore has just put it there.
    fn as_restored(&self, found: &Finds, path: &[u8], stat: &Stat) -> bool {
        let Some(entry) = self.tree.get(path).filter(|_| self.memory.is_new()) else {
            return false;
        };
        match entry.kind {
            Kind::File { len, .. } => len == stat.len && entry.mtime_ns == stat.mtime_ns,
            Kind::Sqlite { len, .. } => {
                let written = |end: &&[u8]| matches!(found.get(&[path, end].concat()), Some(Found::At(_)));
                len == stat.len && entry.mtime_ns == stat.mtime_ns && !SIDECARS.iter().any(written)
            }
            _ => false,
        }
    }

    fn is_database(&self, places: &mut Places, path: &[u8], stat: &Stat) -> bool {
        let (root, rel) = split(path);
        if self.memory.database(path, stat.inode()).is_some() || root == OWN && rel.ends_with(b".sqlite") {
            return true;
        }
        let header = places
            .below(path)
            .map(|(below, rel)| content::beginning::<16>(below, rel));
        matches!(header, Some(Ok(header)) if header == sqlite::MAGIC)
    }

    fn database(
        &mut self,
        places: &mut Places,
        path: &TreePath,
        stat: &Stat,
        writer: &mut SegmentWriter,
    ) -> Result<Image, SegmentError> {
        let Some(real) = places.below(path).and_then(|(below, rel)| below.real_path(rel).ok()) else {
            return Ok(Image::None);
        };
        let old = match self.tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::Sqlite { page_size, extents, .. }) => Some((*page_size, extents.as_slice())),
            _ => None,
        };
        let known = self.memory.database(path, stat.inode());
        // SQLite opens by path. What it opened is what was looked at if that is there before and after.
        let there = || fs::symlink_metadata(&real).is_ok_and(|now| (now.dev(), now.ino()) == stat.inode());
        let captured = if there() {
            sqlite::capture(&real, old, known, writer)
        } else {
            Err(sqlite::CaptureError::Unavailable("it was replaced".into()))
        };
        match captured {
            Ok(captured) if there() => {
                let path_shown = super::walk::show(path);
                tracing::debug!(path = path_shown, pages = captured.read, "database captured");
                self.update.databases.push((path.clone(), stat.inode(), captured.known));
                let (len, page_size, extents) = (captured.len, captured.page_size, captured.extents);
                Ok(Image::New(Kind::Sqlite {
                    len,
                    page_size,
                    extents,
                }))
            }
            Ok(_) => {
                let why = "was replaced while it was captured, and is captured again";
                self.trouble(path, Depth::Itself, why.into());
                Ok(Image::Old)
            }
            Err(sqlite::CaptureError::Segment(error)) => Err(error),
            Err(error @ sqlite::CaptureError::Damaged(_)) => {
                self.update.troubles.push((path.clone(), error.to_string()));
                self.update.no_databases.push(path.clone());
                Ok(Image::None)
            }
            Err(error) => {
                self.trouble(path, Depth::Itself, error.to_string());
                Ok(Image::Old)
            }
        }
    }

    /// Databases that changed after they were captured are captured again next time: the look after that change has
    /// seen the file as it is now, the image has not.
    fn look_again(&mut self, late: &Changes) {
        for path in late.paths.keys() {
            let base = beside(path).unwrap_or(path);
            for path in [path.as_slice(), base] {
                if self.images.contains_key(path) {
                    self.again.add(path.to_vec(), Depth::Itself);
                    self.update.unsure.push(path.to_vec());
                }
            }
        }
    }

    /// Makes entries of what was found; reads files.
    fn files(&mut self, places: &mut Places, finds: &Finds, writer: &mut SegmentWriter) -> Result<(), SegmentError> {
        for (path, found) in finds {
            if parents(path).any(|dir| finds.get(dir) == Some(&Found::Gone)) {
                continue;
            }
            match found {
                Found::Gone => self.gone(path),
                Found::Unknown(why) => self.trouble(path, Depth::Below, why.clone()),
                Found::At(stat) => self.there(places, finds, path.clone(), *stat, writer)?,
            }
        }
        Ok(())
    }

    fn gone(&mut self, path: &TreePath) {
        self.remove.extend(self.tree.contains_key(path).then(|| path.clone()));
        self.remove_below(path);
        self.update.gone.push(path.clone());
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
            self.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
        }
        Ok(())
    }

    fn not_read(&mut self, path: &TreePath, error: &io::Error) -> Option<Kind> {
        if is_gone(error) {
            // Something has happened to it since, of which the watch tells; and if there is none, this does.
            self.again.add(path.clone(), Depth::Below);
            (self.incomplete, self.vanished) = (true, true);
        } else {
            self.trouble(path, Depth::Itself, format!("cannot be read: {error}"));
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
            self.update.stats.push((path, stat));
            return Ok(());
        }
        let leader = (split(&path).0.as_bytes().to_vec(), stat.inode());
        if stat.links > 1
            && let Some(to) = self.leaders.get(&leader)
        {
            let kind = Kind::HardLink { to: to.clone() };
            self.update.stats.push((path.clone(), stat));
            self.set(path, &stat, kind);
            return Ok(());
        }
        let old = self.tree.get(&path).map(|entry| &entry.kind);
        let unchanged =
            self.memory.stat(&path).is_some_and(|then| then.is_still(&stat)) || self.as_restored(finds, &path, &stat);
        let (kind, stat) = match self.images.remove(&path) {
            Some(Image::New(kind)) => {
                self.update.stats.push((path.clone(), stat));
                (Some(kind), stat)
            }
            Some(Image::Old) => (None, stat),
            Some(Image::None) | None => match old {
                Some(kind @ (Kind::File { .. } | Kind::Sqlite { .. })) if unchanged => {
                    self.update.stats.push((path.clone(), stat));
                    (Some(kind.clone()), stat)
                }
                _ => self.read(places, &path, stat, writer)?,
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
        writer: &mut SegmentWriter,
    ) -> Result<(Option<Kind>, Stat), SegmentError> {
        let Some((below, rel)) = places.below(path) else {
            return Ok((None, stat));
        };
        let content = match content::read(below, rel, writer) {
            Ok(content) => content,
            Err(ReadFailure::Segment(error)) => return Err(error),
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
                self.update.stats.push((path.clone(), content.stat));
                Ok((Some(kind), content.stat))
            }
            Steady::Grew => {
                self.again.add(path.clone(), Depth::Itself);
                self.update.unsure.push(path.clone());
                Ok((Some(kind), content.stat))
            }
            Steady::Torn => {
                let kept = if older {
                    "an older copy is kept"
                } else {
                    "it is stored as it was read"
                };
                self.trouble(
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

    fn finish(mut self, missing: Vec<String>) -> Captured {
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
        Captured {
            delta,
            update: self.update,
            again: self.again,
            incomplete: self.incomplete,
            vanished: self.vanished,
            missing,
        }
    }
}

/// The directories that a path is in, innermost first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests;
