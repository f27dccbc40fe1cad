//! What changed from one tree to another.

use serde::Serialize;

use super::model::{Delta, Tree};

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// Every path that differs, in path order.
pub fn diff<'a>(old: &'a Tree, new: &'a Tree) -> Vec<(&'a [u8], Change)> {
    let gone = old
        .keys()
        .filter(|path| !new.contains_key(*path))
        .map(|path| (path.as_slice(), Change::Removed));
    let other = new.iter().filter_map(|(path, entry)| match old.get(path) {
        None => Some((path.as_slice(), Change::Added)),
        Some(before) => (before != entry).then_some((path.as_slice(), Change::Changed)),
    });
    let mut changes: Vec<_> = gone.chain(other).collect();
    changes.sort_by_key(|(path, _)| *path);
    changes
}

/// What makes `new` of `old`.
pub fn delta(old: &Tree, new: &Tree) -> Delta {
    let mut delta = Delta::default();
    for (path, change) in diff(old, new) {
        match (change, new.get(path)) {
            (Change::Removed, _) | (_, None) => delta.remove.push(path.to_vec()),
            (_, Some(entry)) => delta.upsert.push((path.to_vec(), entry.clone())),
        }
    }
    delta
}
