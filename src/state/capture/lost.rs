//! What the store has lost, and the disk does not have either.

use std::collections::{BTreeMap, BTreeSet};

use super::Notes;
use crate::state::{
    head::Head,
    model::{Delta, Entry, Kind, TreePath},
    segment::{SegmentWriter, line::extents_of},
};

/// Leaves out what could not be put again: with it nothing of the snapshot could be restored.
pub fn leave_out(head: &Head, writer: &SegmentWriter, delta: &mut Delta, notes: &mut Notes) {
    if head.lost().is_empty() {
        return;
    }
    let mut tree: BTreeMap<&TreePath, &Entry> = head.tree().iter().collect();
    tree.retain(|path, _| !delta.remove.contains(path));
    tree.extend(delta.upsert.iter().map(|(path, entry)| (path, entry)));
    let is_lost = |entry: &Entry| !writer.has(extents_of(&entry.kind));
    let lost = tree.iter().filter(|(_, entry)| match &entry.kind {
        Kind::HardLink { to } => tree.get(to).is_some_and(|entry| is_lost(entry)),
        _ => is_lost(entry),
    });
    let lost: BTreeSet<TreePath> = lost.map(|(path, _)| (*path).clone()).collect();
    delta.upsert.retain(|(path, _)| !lost.contains(path));
    for path in lost {
        let why = "is not in this snapshot: the store has lost it, and it cannot be captured now";
        notes.update.troubles.push((path.clone(), why.into()));
        notes.update.unsure.push(path.clone());
        delta.remove.extend(head.tree().contains_key(&path).then_some(path));
    }
}
