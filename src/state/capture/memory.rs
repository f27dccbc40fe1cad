//! What is remembered of the live files from one commit to the next, so that only what changed is read again.
//!
//! All of it can be lost without harm: what is not remembered is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::state::{
    model::{TreePath, below},
    sqlite,
    walk::{Stat, What, show},
};

/// A file whatever its names.
pub type Inode = (u64, u64);

/// The last reading of a long file whose content is in the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    inode: Inode,
    len: u64,
    began: Instant,
    took: Duration,
}

/// How many times as long as it was read a long file that grows is left alone: a log grows all the time, and what is before
/// its end has to be read again to know that it is the same.
const REST: u32 = 9;
/// Whatever it takes, so that its end is not long in no snapshot.
const LONGEST_REST: Duration = Duration::from_secs(30);

impl Reading {
    /// Of a file that was like `stat`; now it is over.
    pub fn of(stat: &Stat, began: Instant) -> Reading {
        Reading {
            inode: stat.inode(),
            len: stat.len,
            began,
            took: began.elapsed(),
        }
    }

    /// Whether a file that is like `stat` at `now`, and has grown since, is left alone.
    fn is_enough(&self, stat: &Stat, now: Instant) -> bool {
        let has_grown = stat.inode() == self.inode && stat.len > self.len && stat.links == 1;
        has_grown && now < self.began + self.took + (REST * self.took).min(LONGEST_REST)
    }
}

#[derive(Debug, Default)]
pub struct Memory {
    stats: BTreeMap<TreePath, Stat>,
    /// The names of each file: one that has a single name may get another without a word about the first.
    names: BTreeSet<(Inode, TreePath)>,
    databases: BTreeMap<TreePath, (Inode, sqlite::Known)>,
    readings: BTreeMap<TreePath, Reading>,
    troubles: BTreeMap<TreePath, String>,
    /// What is there and was not captured.
    left: BTreeMap<TreePath, Stat>,
    /// Something has been captured.
    begun: bool,
}

/// What a capture found out, to be remembered once it is committed.
#[derive(Debug, Default)]
pub struct Update {
    /// With all below them.
    pub gone: Vec<TreePath>,
    /// As they are in the snapshot.
    pub stats: Vec<(TreePath, Stat)>,
    /// To be looked at as if never seen.
    pub unsure: Vec<TreePath>,
    pub databases: Vec<(TreePath, Inode, sqlite::Known)>,
    pub readings: Vec<(TreePath, Reading)>,
    pub no_databases: Vec<TreePath>,
    pub troubles: Vec<(TreePath, String)>,
    /// What is there and was not captured. Each is a trouble.
    pub left: Vec<(TreePath, Stat)>,
}

/// Most troubles named in a commit, and how much is shown of a path.
const MOST_NAMED: usize = 50;
const SHOWN: usize = 200;

impl Memory {
    pub fn stat(&self, path: &[u8]) -> Option<&Stat> {
        self.stats.get(path)
    }

    pub fn names_of(&self, inode: Inode) -> impl Iterator<Item = &TreePath> {
        let names = self.names.range((inode, TreePath::new())..);
        names.take_while(move |(of, _)| *of == inode).map(|(_, name)| name)
    }

    /// What is known of the database at `path`, if it is still the same file.
    pub fn database(&self, path: &[u8], inode: Inode) -> Option<&sqlite::Known> {
        self.databases
            .get(path)
            .filter(|(known, _)| *known == inode)
            .map(|(_, known)| known)
    }

    /// When the reading of a file began that is enough for now, although it has grown to what `stat` says since.
    pub fn is_read_enough(&self, path: &[u8], stat: &Stat) -> Option<Instant> {
        let reading = self.readings.get(path)?;
        reading.is_enough(stat, Instant::now()).then_some(reading.began)
    }

    /// Whatever has grown is read again.
    pub fn forget_readings(&mut self) {
        self.readings.clear();
    }

    /// Whether it could not be captured as it should be.
    pub fn is_troubled(&self, path: &[u8]) -> bool {
        self.troubles.contains_key(path)
    }

    /// What is there and was not captured, as far as is known.
    pub fn left(&self) -> &BTreeMap<TreePath, Stat> {
        &self.left
    }

    /// Nothing has been captured yet in this process.
    pub fn is_new(&self) -> bool {
        !self.begun
    }

    /// Forgets everything, so that everything is read again.
    pub fn distrust(&mut self) {
        *self = Memory {
            begun: true,
            ..Memory::default()
        };
    }

    pub fn apply(&mut self, update: Update) {
        self.begun = true;
        for path in update.gone {
            self.forget(&path);
            let inside: Vec<TreePath> = below(&self.stats, &path)
                .chain(below(&self.troubles, &path))
                .chain(below(&self.databases, &path))
                .chain(below(&self.readings, &path))
                .cloned()
                .collect();
            inside.iter().for_each(|path| self.forget(path));
        }
        update.no_databases.iter().for_each(|path| {
            self.databases.remove(path);
        });
        for (path, stat) in update.stats {
            self.forget_stat(&path);
            self.troubles.remove(&path);
            self.left.remove(&path);
            if stat.what == What::File {
                self.names.insert((stat.inode(), path.clone()));
            }
            self.stats.insert(path, stat);
        }
        update.unsure.iter().for_each(|path| self.forget_stat(path));
        let databases = update
            .databases
            .into_iter()
            .map(|(path, inode, known)| (path, (inode, known)));
        self.databases.extend(databases);
        self.readings.extend(update.readings);
        self.troubles.extend(update.troubles);
        self.left.extend(update.left);
    }

    /// What could not be captured as it should, one line each, with what `update` is about to say.
    pub fn warnings(&self, update: &Update) -> Vec<String> {
        let fine: BTreeSet<&TreePath> = update.stats.iter().map(|(path, _)| path).chain(&update.gone).collect();
        let mut troubles: BTreeMap<&TreePath, &String> =
            self.troubles.iter().filter(|(path, _)| !fine.contains(path)).collect();
        troubles.extend(update.troubles.iter().map(|(path, why)| (path, why)));
        let more = troubles.len().saturating_sub(MOST_NAMED);
        let named = troubles
            .into_iter()
            .take(MOST_NAMED)
            .map(|(path, why)| format!("{}: {why}", shown(path)));
        let rest = (more > 0).then(|| format!("and {more} more"));
        named.chain(rest).collect()
    }

    fn forget(&mut self, path: &[u8]) {
        self.forget_stat(path);
        self.databases.remove(path);
        self.readings.remove(path);
        self.troubles.remove(path);
        self.left.remove(path);
    }

    fn forget_stat(&mut self, path: &[u8]) {
        if let Some(stat) = self.stats.remove(path) {
            self.names.remove(&(stat.inode(), path.to_vec()));
        }
    }
}

/// A path for a person to read, without its middle if it is very long.
fn shown(path: &[u8]) -> String {
    let half = SHOWN / 2;
    if path.len() <= SHOWN {
        return show(path);
    }
    format!("{}…{}", show(&path[..half]), show(&path[path.len() - half..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_rests_for_as_long_as_its_reading_took_times_nine() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let (stat, began) = (Stat::of(&file).unwrap(), Instant::now());
        let stat = Stat { links: 1, ..stat };
        let second = Duration::from_secs(1);
        let reading = Reading {
            took: second,
            ..Reading::of(&stat, began)
        };
        let grown = Stat { len: 11, ..stat };
        assert!(reading.is_enough(&grown, began + 9 * second));
        assert!(!reading.is_enough(&grown, began + 10 * second));
        let slow = Reading {
            took: 10 * second,
            ..reading
        };
        assert!(slow.is_enough(&grown, began + 39 * second) && !slow.is_enough(&grown, began + 40 * second));
        for other in [
            Stat { len: 10, ..grown },
            Stat { len: 9, ..grown },
            Stat {
                ino: stat.ino + 1,
                ..grown
            },
            Stat { links: 2, ..grown },
        ] {
            assert!(!reading.is_enough(&other, began), "{other:?}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten_with_all_that_was_below_it() {
        let stat = Stat::of(&tempfile::tempfile().unwrap()).unwrap();
        let path = |path: &str| path.as_bytes().to_vec();
        let mut memory = Memory::default();
        memory.apply(Update {
            stats: vec![(path("s/dir/a"), stat), (path("s/other"), stat)],
            troubles: vec![(path("s/dir/b"), "locked".into())],
            left: vec![(path("s/dir/b"), stat)],
            ..Update::default()
        });
        assert_eq!(memory.warnings(&Update::default()), ["s/dir/b: locked"]);
        memory.apply(Update {
            gone: vec![path("s/dir")],
            ..Update::default()
        });
        assert!(memory.warnings(&Update::default()).is_empty() && memory.left().is_empty());
        assert!(memory.stat(b"s/dir/a").is_none() && memory.stat(b"s/other").is_some());
    }
}
