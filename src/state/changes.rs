//! Paths that changed and have to be looked at again.

use std::{collections::HashMap, time::Instant};

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

/// Beyond this many names or bytes of them, a full look for the rest is cheaper than the memory they would take.
const MOST_PATHS: usize = 50_000;
const MOST_BYTES: usize = 4 << 20;

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.rescan.is_none()
    }

    pub fn add(&mut self, path: TreePath, depth: Depth) {
        self.since.get_or_insert_with(Instant::now);
        if let Some(known) = self.paths.get_mut(&path) {
            *known = depth.max(*known);
        } else if self.paths.len() < MOST_PATHS && self.bytes + path.len() <= MOST_BYTES {
            self.bytes += path.len();
            self.paths.insert(path, depth);
        } else {
            self.lost("too many paths changed");
        }
    }

    /// Everything has to be looked at. What is known still counts: some of what was written leaves no other trace.
    pub fn lost(&mut self, why: &'static str) {
        self.since.get_or_insert_with(Instant::now);
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

    /// How many there are, as far as they are known.
    pub fn count(&self) -> usize {
        self.paths.len().max(usize::from(self.rescan.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_a_limit_become_one_rescan_and_those_before_stay_known() {
        for (width, most) in [(1, MOST_PATHS), (4000, MOST_BYTES / 4000)] {
            let mut changes = Changes::default();
            for number in 0..=most {
                assert_eq!(changes.rescan, None, "{number}");
                changes.add(format!("{number:0width$}").into_bytes(), Depth::Itself);
                changes.add(format!("{number:0width$}").into_bytes(), Depth::Written);
            }
            assert!(changes.rescan.is_some() && changes.paths.len() == most);
            changes.lost("test");
            assert!(changes.paths.values().all(|depth| *depth == Depth::Written));
            assert_eq!(changes.count(), most);
        }
    }

    #[test]
    fn changes_are_as_old_as_the_first_of_them() {
        let (mut early, mut late) = (Changes::default(), Changes::default());
        early.add(b"a".to_vec(), Depth::Itself);
        let since = early.since;
        late.lost("test");
        late.merge(early);
        assert!(since.is_some() && late.since == since);
        assert_eq!(late.count(), 1);
    }
}
