//! Finding out what is at the paths that changed, without reading any file.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
};

use nix::errno::Errno;

use super::{links, memory::Memory, remote::Remote};
use crate::state::{
    changes::{Changes, Depth},
    exclude::excluded,
    model::{Kind, Tree, TreePath},
    walk::{Below, Root, Stat, What, is_gone, join, split},
    watch::Watch,
};

/// Deeper than this or with a longer path nothing is captured: no tool could use it, and each level takes an open
/// directory.
const MOST_LEVELS: usize = 128;
const LONGEST: usize = 4000;

/// What SQLite puts beside a database, by the end of its name. Changes to the first two are changes of the database.
pub const SIDECARS: [&[u8]; 3] = [b"-wal", b"-journal", b"-shm"];

/// The database that a path would be a sidecar of.
pub fn beside(path: &[u8]) -> Option<&[u8]> {
    SIDECARS
        .iter()
        .find_map(|end| path.strip_suffix(*end))
        .filter(|base| !base.ends_with(b"/"))
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing that a snapshot would hold, nor below it.
    Gone,
    At(Stat),
    /// It is not known what is there; for the snapshot, what was there before.
    Unknown(Unseen),
}

/// Why it is not known what is somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    pub why: String,
    /// We lack something for it at the moment; what is there may be as well as ever.
    pub passing: bool,
}

impl Unseen {
    fn of(what: &str, error: &io::Error) -> Unseen {
        Unseen {
            why: format!("{what}: {error}"),
            passing: matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
            ),
        }
    }
}

/// The roots, open.
pub struct Places<'a> {
    roots: BTreeMap<&'a str, Place>,
    /// What they are, to know one where it is mounted inside of another as well: there can be but one watch on it.
    inodes: Vec<(u64, u64)>,
}

enum Place {
    Open(Below, Remote),
    Missing,
    Closed(Unseen),
}

impl<'a> Places<'a> {
    fn open(roots: &'a [Root]) -> Places<'a> {
        let open = |root: &'a Root| {
            let place = match Below::open(root) {
                Ok(mut below) => {
                    let remote = Remote::below(&mut below).unwrap_or_default();
                    Place::Open(below, remote)
                }
                Err(error) if is_gone(&error) => Place::Missing,
                Err(error) => Place::Closed(Unseen::of("cannot be opened", &error)),
            };
            (root.name.as_str(), place)
        };
        let mut roots: BTreeMap<_, _> = roots.iter().map(open).collect();
        let inode = |place: &mut Place| match place {
            Place::Open(below, _) => below.stat(b"").ok().map(|stat| stat.inode()),
            _ => None,
        };
        let inodes = roots.values_mut().filter_map(inode).collect();
        Places { roots, inodes }
    }

    pub fn missing(&self) -> Vec<String> {
        let missing = self.roots.iter().filter(|(_, place)| matches!(place, Place::Missing));
        missing.map(|(name, _)| (*name).to_owned()).collect()
    }

    /// Access to what is below the root of `path`, and the path there.
    pub fn below<'p>(&mut self, path: &'p [u8]) -> Option<(&mut Below, &'p [u8])> {
        let (root, rel) = split(path);
        match self.roots.get_mut(root) {
            Some(Place::Open(below, _)) => Some((below, rel)),
            _ => None,
        }
    }

    /// Where what `path` is on is mounted and why that is not entered, if so.
    fn remote(&self, path: &[u8]) -> Option<(TreePath, String)> {
        let (root, rel) = split(path);
        let Some(Place::Open(_, remote)) = self.roots.get(root) else {
            return None;
        };
        let (point, fstype) = remote.at(rel)?;
        let why = format!("is a mount of another file system ({fstype}), and is not in snapshots");
        Some((join(root.as_bytes(), point), why))
    }

    fn find(&mut self, path: &[u8]) -> Found {
        let (root, rel) = split(path);
        let below = match self.roots.get_mut(root) {
            None | Some(Place::Missing) => return Found::Gone,
            Some(Place::Closed(why)) => return Found::Unknown(why.clone()),
            Some(Place::Open(below, _)) => below,
        };
        match below.stat(rel) {
            Ok(stat) if !rel.is_empty() && excluded(root, rel, stat.what == What::Dir).is_some() => Found::Gone,
            Ok(stat) if !rel.is_empty() && self.inodes.contains(&stat.inode()) => Found::Gone,
            Ok(stat) => Found::At(stat),
            Err(error) if is_gone(&error) => Found::Gone,
            Err(error) => Found::Unknown(Unseen::of("cannot be looked at", &error)),
        }
    }
}

/// Looks at paths, and remembers what it found there unless that is known already.
pub struct Look<'a> {
    pub places: Places<'a>,
    tree: &'a Tree,
    memory: &'a Memory,
    watch: &'a Watch,
    /// Everything found that is not as it is remembered, in path order.
    pub found: BTreeMap<TreePath, Found>,
    /// Looked at once more although nothing about them has changed.
    forced: HashSet<TreePath>,
    /// Files that a writer has closed: their content may have changed and their times not, through a memory map.
    pub written: HashSet<TreePath>,
    /// The names that the snapshot has of each file that it has by several, by the first.
    linked: HashMap<&'a TreePath, Vec<&'a TreePath>>,
    queue: Vec<(TreePath, Depth)>,
    /// Directories listed by this look: what comes to one afterwards is an event, and so the next look's.
    listed: HashSet<TreePath>,
    /// Nothing is looked for that comes to another place from now on.
    last: bool,
    /// What has left its place in the last look.
    pub left: Vec<TreePath>,
    /// Directories that could not be listed, and why.
    pub unlisted: Vec<(TreePath, Unseen)>,
    /// What is not captured because of where it is, and why.
    pub refused: BTreeMap<TreePath, String>,
    /// Sockets, pipes and devices passed by.
    pub skipped: u64,
}

impl<'a> Look<'a> {
    pub fn new(roots: &'a [Root], tree: &'a Tree, memory: &'a Memory, watch: &'a Watch) -> Look<'a> {
        Look {
            places: Places::open(roots),
            tree,
            memory,
            watch,
            found: BTreeMap::new(),
            forced: HashSet::new(),
            written: HashSet::new(),
            linked: links::by_first_name(tree),
            queue: Vec::new(),
            listed: HashSet::new(),
            last: false,
            left: Vec::new(),
            unlisted: Vec::new(),
            refused: BTreeMap::new(),
            skipped: 0,
        }
    }

    /// Looks at everything that may have changed; at all there is when names were lost.
    pub fn at(&mut self, changes: &Changes) {
        self.listed.clear();
        if changes.rescan.is_some() {
            let roots: Vec<TreePath> = self.places.roots.keys().map(|name| name.as_bytes().to_vec()).collect();
            self.queue.extend(roots.into_iter().map(|root| (root, Depth::Below)));
        }
        for (path, depth) in &changes.paths {
            // What comes and goes changes the time of the directory.
            if let Some((parent, _)) = parent(path) {
                self.queue.push((parent.to_vec(), Depth::Itself));
            }
            self.queue.push((path.clone(), *depth));
        }
        while let Some((path, depth)) = self.queue.pop() {
            self.examine(path, depth);
        }
    }

    /// Looks once more although others go on changing things. What leaves its place meanwhile may come to one that has
    /// been looked at already. So what has left is left for the next capture, and is until then where it was.
    pub fn at_last(&mut self, changes: &Changes) {
        self.last = true;
        self.at(changes);
    }

    fn examine(&mut self, path: TreePath, depth: Depth) {
        let (root, rel) = split(&path);
        if !self.places.roots.contains_key(root) {
            return;
        }
        if rel.len() > LONGEST || rel.iter().filter(|byte| **byte == b'/').count() >= MOST_LEVELS {
            self.refused
                .insert(path, "lies too deep, and is not captured".to_owned());
            return;
        }
        if let Some((point, why)) = self.places.remote(&path) {
            self.refused.insert(point, why);
            return;
        }
        if let Some(top) = self.unseen_parent(&path) {
            self.queue.push((top, Depth::Below));
            return;
        }
        let mut found = self.places.find(&path);
        if matches!(&found, Found::At(stat) if stat.what == What::Special) {
            self.skipped += 1;
            found = Found::Gone;
        }
        if let Some(base) = beside(&path).filter(|_| !path.ends_with(b"-shm"))
            && !self.is_still(&path, &found)
        {
            self.force(base.to_vec());
        }
        self.force_other_names(&path, &found);
        if depth == Depth::Written && self.is_read_as_file(&path, &found) {
            self.forced.insert(path.clone());
            self.written.insert(path.clone());
        }
        match &found {
            Found::At(stat) => {
                let in_tree = self.tree.get(&path).is_some_and(|entry| entry.kind == Kind::Dir);
                let same_dir = in_tree && self.memory.stat(&path).map(Stat::inode) == Some(stat.inode());
                if stat.what == What::Dir && (depth == Depth::Below || !same_dir) {
                    self.list(&path);
                }
                if !self.is_still(&path, &found) || self.forced.contains(&path) || self.found.contains_key(&path) {
                    self.note(path, found);
                }
            }
            Found::Gone | Found::Unknown(_) => self.note(path, found),
        }
    }

    fn note(&mut self, path: TreePath, found: Found) {
        if !self.last || !self.has_left(&path, &found) {
            self.found.insert(path, found);
        } else if !self.is_file(&path) || !matches!(found, Found::At(stat) if stat.what == What::File) {
            self.left.push(path);
        }
        // A file in the place of one that was to be read is read in its stead.
    }

    fn is_file(&self, path: &[u8]) -> bool {
        matches!(self.found.get(path), Some(Found::At(stat)) if stat.what == What::File)
    }

    /// Whether something was at `path` up to now, and it may be elsewhere.
    fn has_left(&self, path: &[u8], found: &Found) -> bool {
        let inode = |found: &Found| match found {
            Found::At(stat) => Some(stat.inode()),
            _ => None,
        };
        if matches!(found, Found::Unknown(_)) {
            return false;
        }
        match self.found.get(path) {
            Some(Found::At(before)) => Some(before.inode()) != inode(found),
            Some(_) => false,
            None => self.tree.contains_key(path) && self.memory.stat(path).map(Stat::inode) != inode(found),
        }
    }

    /// A database is not: SQLite writes without a map.
    fn is_read_as_file(&self, path: &[u8], found: &Found) -> bool {
        matches!(found, Found::At(stat) if stat.what == What::File && self.memory.database(path, stat.inode()).is_none())
    }

    fn is_still(&self, path: &[u8], found: &Found) -> bool {
        let known = self.memory.stat(path);
        matches!((known, found), (Some(known), Found::At(stat)) if known.is_still(stat))
    }

    /// The topmost directory above `path` that the snapshot does not have and that was not looked at.
    fn unseen_parent(&self, path: &[u8]) -> Option<TreePath> {
        let mut unseen = None;
        let mut at = path;
        while let Some((up, _)) = parent(at) {
            let in_tree = self.tree.get(up).is_some_and(|entry| entry.kind == Kind::Dir);
            if in_tree || self.found.contains_key(up) {
                break;
            }
            unseen = Some(up.to_vec());
            at = up;
        }
        unseen
    }

    /// One file by several names is captured as one: when one of them changed, all are looked at.
    fn force_other_names(&mut self, path: &[u8], found: &Found) {
        let before = self.memory.stat(path).filter(|stat| stat.links > 1).map(Stat::inode);
        let now = match found {
            Found::At(stat) if stat.what == What::File && stat.links > 1 => Some(stat.inode()),
            _ => None,
        };
        if before == now && self.is_still(path, found) {
            return;
        }
        let memory = self.memory;
        for inode in before.into_iter().chain(now) {
            memory.names_of(inode).for_each(|name| self.force(name.clone()));
        }
        // What is remembered may be less than what the snapshot has.
        let first = match self.tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::HardLink { to }) => to.as_slice(),
            _ => path,
        };
        if let Some(others) = self.linked.get(&first.to_vec()).cloned() {
            self.force(first.to_vec());
            others.into_iter().for_each(|name| self.force(name.clone()));
        }
    }

    fn force(&mut self, path: TreePath) {
        if self.forced.insert(path.clone()) {
            self.queue.push((path, Depth::Itself));
        }
    }

    fn list(&mut self, path: &[u8]) {
        // Each of its files that changed leads here, and there may be thousands.
        if !self.listed.insert(path.to_vec()) {
            return;
        }
        let watch = self.watch;
        let Some((below, rel)) = self.places.below(path) else {
            return;
        };
        let listed = below
            .dir(rel)
            .map(|dir| watch.dir(path, dir))
            .and_then(|()| below.names(rel));
        let names = match listed {
            Ok(names) => names,
            Err(error) if is_gone(&error) => Vec::new(),
            Err(error) => {
                let what = "cannot be listed, so its content is kept as it was";
                self.unlisted.push((path.to_vec(), Unseen::of(what, &error)));
                return;
            }
        };
        let names: BTreeSet<Vec<u8>> = names.into_iter().collect();
        // What an earlier look found in a directory that has been replaced since is as gone as what the snapshot has.
        let known = children(self.tree, path).chain(children(&self.found, path));
        let gone: BTreeSet<TreePath> = known
            .filter(|name| !names.contains(*name))
            .map(|name| join(path, name))
            .collect();
        self.queue.extend(gone.into_iter().map(|path| (path, Depth::Itself)));
        self.queue
            .extend(names.iter().map(|name| (join(path, name), Depth::Below)));
    }
}

/// The directory a path is in and its name there; `None` for a root.
fn parent(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..slash], &path[slash + 1..]))
}

/// The names directly in the directory `dir` of a tree, some of them twice.
fn children<'t, T>(tree: &'t BTreeMap<TreePath, T>, dir: &[u8]) -> impl Iterator<Item = &'t [u8]> {
    let below = [dir, b"/"].concat();
    let mut next = below.clone();
    std::iter::from_fn(move || {
        let (path, _) = tree
            .range(next.clone()..)
            .next()
            .filter(|(path, _)| path.starts_with(&below))?;
        let rest = &path[below.len()..];
        let name = rest.split(|byte| *byte == b'/').next().unwrap_or(rest);
        next = [&below, name].concat();
        // Past the name itself, or past all that is in it: `0` follows `/`.
        next.push(if name.len() == rest.len() { 0 } else { b'0' });
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::kit::dir;

    proptest! {
        #[test]
        fn children_are_what_is_directly_inside(paths in prop::collection::btree_set("[a-b0/.-]{1,8}", 0..30)) {
            let mut tree = Tree::new();
            let mut direct = BTreeSet::new();
            for path in paths {
                let mut at = b"s".to_vec();
                for part in path.split('/').filter(|part| !part.is_empty()) {
                    at = join(&at, part.as_bytes());
                    tree.insert(at.clone(), dir());
                }
                direct.extend(path.split('/').find(|part| !part.is_empty()).map(|part| part.as_bytes().to_vec()));
            }
            let found: BTreeSet<Vec<u8>> = children(&tree, b"s").map(<[u8]>::to_vec).collect();
            prop_assert_eq!(found, direct);
        }
    }

    #[test]
    fn a_sidecar_is_known_by_the_end_of_its_name() {
        assert_eq!(beside(b"state/a.sqlite-wal"), Some(&b"state/a.sqlite"[..]));
        assert_eq!(beside(b"state/-wal"), None);
        assert_eq!(beside(b"state/a"), None);
    }
}
