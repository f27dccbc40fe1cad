//! Keeping what the tree needs in few objects, and little of what it does not need beside it.
//!
//! Every commit leaves a small object, of which some bytes stay in use for long. Objects are sorted into tiers by
//! how much of them is in use; when a tier is full, what is in use in it is gathered into the object of a new
//! commit, which lands in a higher tier (size-tiered compaction, as in LSM trees). So each byte is written again a
//! few times at most, and the tree lies in a few dozen objects. Old objects stay as long as kept commits need them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::{
    fetch::{self, Fetcher},
    head::{Head, Holding, Lost},
    history::History,
    model::{Chunk, CommitId, Delta, Hash, Meta, Reason},
    segment::{Damage, Segment, SegmentError, SegmentWriter, reader::ReadError},
    verify,
};

/// Objects in a tier before it is gathered. More of them make a restore read from more objects; fewer have what stays in
/// use copied more often, and kept commits need every copy.
const FULL: usize = 32;
/// Bytes in use up to which an object is in the lowest tier; each next tier goes up to eight times as much.
const LOWEST: u64 = 128 << 10;
const STEP: u64 = 8;
/// Bytes not in use that are not worth a thought.
pub const SLACK: u64 = 8 << 20;
/// Most stored bytes gathered at once: what a commit may have to wait for.
const BUDGET: u64 = 64 << 20;

/// Why a compaction did not happen. Nothing is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("{} objects in the store are damaged or gone; what was in them is put again from the disk", .0.len())]
    Lost(Lost),
}

/// The objects whose chunks are to be gathered now; most often none.
pub fn due(objects: &HashMap<CommitId, Holding>) -> BTreeSet<CommitId> {
    let mut tiers: BTreeMap<u32, BTreeSet<CommitId>> = BTreeMap::new();
    for (id, holding) in objects {
        tiers.entry(tier(holding.live)).or_default().insert(*id);
    }
    let full = tiers
        .iter()
        .filter(|(_, tier)| tier.len() >= FULL)
        .map(|(tier, _)| *tier)
        .max();
    let tiered = tiers.into_iter().filter(|(tier, _)| Some(*tier) <= full);
    let mut due: BTreeSet<CommitId> = tiered.flat_map(|(_, ids)| ids).collect();
    // Then objects of which most is no longer in use, the worst first, until half of all is.
    let left = || objects.iter().filter(|(id, _)| !due.contains(id));
    let mut stored: u64 = left().map(|(_, holding)| holding.size).sum();
    let live: u64 = objects.values().map(|holding| holding.live).sum();
    let mut worst: Vec<_> = left().map(|(id, holding)| (*id, *holding)).collect();
    worst.sort_by_key(|(id, holding)| (holding.live.saturating_mul(1000) / holding.size.max(1), *id));
    for (id, holding) in worst {
        if stored <= live.saturating_mul(2) + SLACK {
            break;
        }
        stored -= holding.size - holding.live.min(holding.size);
        due.insert(id);
    }
    due
}

fn tier(live: u64) -> u32 {
    (live / LOWEST).checked_ilog(STEP).map_or(0, |tier| tier + 1)
}

/// Builds the segment of a commit that changes nothing but where bytes are, if one is due. Commit it and advance the
/// head as with any other.
pub fn compact(
    history: &History,
    head: &Head,
    spool: &Path,
    id: CommitId,
    meta: Meta,
) -> Result<Option<Segment>, CompactError> {
    let due = due(head.objects());
    if due.is_empty() {
        return Ok(None);
    }
    let mut writer = SegmentWriter::new(head, spool, id, history.key())?;
    let mut fetcher = Fetcher::new(history);
    let mut chunks: Vec<&Chunk> = head.chunks().filter(|chunk| due.contains(&chunk.at.commit)).collect();
    // Small objects first: with a budget, those are what makes a difference.
    let live = |chunk: &Chunk| head.objects().get(&chunk.at.commit).map_or(0, |holding| holding.live);
    chunks.sort_by_key(|chunk| (live(chunk), fetch::order(chunk)));
    let mut budget = BUDGET;
    chunks.retain(|chunk| {
        budget = budget.saturating_sub(u64::from(chunk.at.len));
        budget > 0
    });
    let mut lost = Lost::new();
    for read in fetch::plan(chunks.iter().copied()) {
        let wanted = &chunks[read.chunks.clone()];
        let gathered = fetcher.fetch(&read, wanted.iter().copied(), |n, plain| {
            Ok::<_, CompactError>(writer.gather(chunks[n].hash, plain)?)
        });
        match gathered {
            Err(CompactError::Read(ReadError::Damaged { damage, .. })) => {
                let of_object = lost.entry(read.commit).or_default();
                match damage {
                    Damage::Missing => of_object.extend(head.held_by(read.commit)),
                    _ => of_object.extend(damaged(history, wanted)?),
                }
            }
            gathered => gathered?,
        }
    }
    if !lost.is_empty() {
        return Err(CompactError::Lost(lost));
    }
    let reason = Reason::Compact;
    Ok(Some(writer.finish(Meta { reason, ..meta }, Delta::default())?))
}

/// Those of some chunks that are not as they were written.
fn damaged(history: &History, chunks: &[&Chunk]) -> Result<Vec<Hash>, ReadError> {
    let mut damaged = Vec::new();
    for chunk in chunks {
        if verify::damaged(&mut Fetcher::new(history), &[**chunk])?.is_some() {
            damaged.push(chunk.hash);
        }
    }
    Ok(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::kit::Kit;

    fn objects(sizes: impl IntoIterator<Item = (u64, u64)>) -> HashMap<CommitId, Holding> {
        let holding = |(seq, (size, live))| {
            let generation = ulid::Ulid::from_parts(1, 0);
            (CommitId { generation, seq }, Holding::new(size, live))
        };
        (0..).zip(sizes).map(holding).collect()
    }

    #[test]
    fn a_full_tier_is_gathered_with_what_is_below_it() {
        assert!(due(&objects([(1000, 900); FULL - 1])).is_empty());
        assert_eq!(due(&objects([(1000, 900); FULL])).len(), FULL);
        let small = [(1000, 900)].into_iter();
        let middle = [(1 << 20, 1 << 20); FULL].into_iter();
        let large = [(100 << 20, 100 << 20); 3].into_iter();
        assert_eq!(due(&objects(small.chain(middle).chain(large))).len(), FULL + 1);
    }

    #[test]
    fn an_object_that_is_mostly_dead_is_gathered() {
        assert!(due(&objects([(100 << 20, 60 << 20)])).is_empty());
        let one_dead = objects([(100 << 20, 10 << 20), (10 << 20, 10 << 20)]);
        let dead: Vec<u64> = due(&one_dead).into_iter().map(|id| id.seq).collect();
        assert_eq!(dead, [0]);
    }

    #[test]
    fn what_was_gathered_needs_no_older_object() {
        let mut kit = Kit::new();
        for n in 0..FULL + 5 {
            kit.write(&format!("{n}"), format!("content {n}"));
            kit.commit();
        }
        assert!(kit.head.objects().len() >= FULL);
        let id = kit.compact().unwrap();
        assert_eq!(kit.head.objects().keys().collect::<Vec<_>>(), [&id]);
        let needs = kit.head.needs();
        assert!(needs.len() <= 2, "{needs:?}");
        for old in kit.history.commits(id.generation).unwrap() {
            if !needs.contains(&old) {
                std::fs::remove_file(kit.object_path(old)).unwrap();
            }
        }
        kit.recover_to("back").unwrap();
        assert_eq!(
            crate::state::tests::kit::picture(&kit.live()),
            crate::state::tests::kit::picture(&kit.path("back"))
        );
        assert!(kit.compact().is_none());
    }
}
