//! Paths that changed and have to be looked at again.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Instant,
};

use super::model::TreePath;

/// How far to look at a path that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The path itself.
    Itself,
    /// And read it whatever its times say: a writer has closed it, and one through a memory map leaves no other trace.
    Written,
    /// And, if it is a directory, everything below it.
    Below,
}

/// Paths to look at again.
#[derive(Debug, Default)]
pub struct Changes {
    pub paths: HashMap<TreePath, Depth>,
    /// Set when names were lost: everything has to be looked at. Says why.
    pub rescan: Option<&'static str>,
    /// When the first of it was noticed.
    pub since: Option<Instant>,
    /// Of all paths.
    bytes: usize,
}

/// Beyond this many names or bytes of them a full look is cheaper than the memory they take.
const MOST_PATHS: usize = 50_000;
const MOST_BYTES: usize = 4 << 20;

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.rescan.is_none()
    }

    pub fn add(&mut self, path: TreePath, depth: Depth) {
        self.since.get_or_insert_with(Instant::now);
        let len = path.len();
        match self.paths.entry(path) {
            Entry::Occupied(mut known) => {
                let depth = depth.max(*known.get());
                known.insert(depth);
            }
            Entry::Vacant(new) => {
                new.insert(depth);
                self.bytes += len;
            }
        }
        if self.paths.len() > MOST_PATHS || self.bytes > MOST_BYTES {
            self.lost("too many paths changed");
        }
    }

    pub fn lost(&mut self, why: &'static str) {
        self.since.get_or_insert_with(Instant::now);
        (self.paths, self.bytes) = (HashMap::new(), 0);
        self.rescan.get_or_insert(why);
    }

    pub fn merge(&mut self, other: Changes) {
        self.noticed(other.since);
        if let Some(why) = other.rescan {
            self.lost(why);
        }
        for (path, depth) in other.paths {
            self.add(path, depth);
        }
    }

    /// The first of it was noticed no later than this.
    pub fn noticed(&mut self, since: Option<Instant>) {
        self.since = self.since.into_iter().chain(since).min();
    }

    /// How many there are; not knowing them is one.
    pub fn count(&self) -> usize {
        self.paths.len() + usize::from(self.rescan.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_names_become_one_rescan() {
        let mut changes = Changes::default();
        for number in 0..=MOST_PATHS {
            changes.add(number.to_string().into_bytes(), Depth::Itself);
        }
        assert!(changes.rescan.is_some() && changes.paths.is_empty());
        let mut changes = Changes::default();
        let mut most = 0;
        for number in 0..4000 {
            changes.add(format!("{number:04000}").into_bytes(), Depth::Itself);
            changes.add(format!("{number:04000}").into_bytes(), Depth::Itself);
            most = most.max(changes.paths.len());
        }
        assert!(changes.rescan.is_some() && (500..1100).contains(&most), "{most}");
    }

    #[test]
    fn changes_are_as_old_as_the_first_of_them() {
        let (mut early, mut late) = (Changes::default(), Changes::default());
        early.add(b"a".to_vec(), Depth::Itself);
        let since = early.since;
        late.lost("test");
        late.merge(early);
        assert!(since.is_some() && late.since == since);
        assert_eq!(late.count(), 2);
    }
}
