//! `snapshot.committed` at most once a minute: a busy agent commits every second, and nobody wants each told.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{event::Event, state::model::CommitId};

/// The least time between two `snapshot.committed` events.
pub const GAP: Duration = Duration::from_secs(60);

/// The commits since the last one that was told, as one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// The newest.
    pub commit: CommitId,
    /// What the oldest of them followed.
    pub parent: Option<CommitId>,
    pub commits: u64,
    /// Of the newest.
    pub files: u64,
    pub state_bytes: u64,
    /// Of all of them.
    pub stored_bytes: u64,
    pub operations: u64,
    /// The slowest.
    pub took_ms: u64,
    /// Of the newest.
    pub warnings: Vec<String>,
}

/// Decides when commits are told; a function of what it is given.
#[derive(Debug, Default)]
pub struct Digest {
    told: Option<Instant>,
    held: Option<Totals>,
}

impl Digest {
    /// Takes in an event; anything but a commit changes nothing.
    pub fn add(&mut self, event: &Event) {
        let Event::SnapshotCommitted {
            commit,
            parent,
            files,
            state_bytes,
            stored_bytes,
            operations,
            took_ms,
            ref warnings,
        } = *event
        else {
            return;
        };
        let before = self.held.take();
        let sum = |own: u64, held: fn(&Totals) -> u64| before.as_ref().map_or(0, held).saturating_add(own);
        self.held = Some(Totals {
            commit,
            parent: before.as_ref().map_or(parent, |before| before.parent),
            commits: sum(1, |held| held.commits),
            files,
            state_bytes,
            stored_bytes: sum(stored_bytes, |held| held.stored_bytes),
            operations: sum(operations, |held| held.operations),
            took_ms: before.as_ref().map_or(0, |held| held.took_ms).max(took_ms),
            warnings: warnings.clone(),
        });
    }

    /// How long from `now` until there is something to tell; `None` if nothing is held back.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        self.held.as_ref()?;
        let Some(told) = self.told else {
            return Some(Duration::ZERO);
        };
        Some(GAP.saturating_sub(now.saturating_duration_since(told)))
    }

    /// What is to be told now, whether due or not; at shutdown nothing is held back.
    pub fn take(&mut self, now: Instant) -> Option<Totals> {
        let held = self.held.take()?;
        self.told = Some(now);
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ulid::Ulid;

    use super::*;

    fn commit(seq: u64) -> Event {
        let id = |seq| CommitId {
            generation: Ulid::nil(),
            seq,
        };
        Event::SnapshotCommitted {
            commit: id(seq),
            parent: seq.checked_sub(1).map(id),
            files: seq,
            state_bytes: 100,
            stored_bytes: 10,
            operations: 2,
            took_ms: seq % 7,
            warnings: Vec::new(),
        }
    }

    proptest! {
        /// Whatever the pace of commits, none is told sooner than a minute after the one before, and the totals
        /// of what is told add up to all of them.
        #[test]
        fn nothing_is_lost_and_nothing_comes_too_often(gaps in prop::collection::vec(0u64..90_000, 1..80)) {
            let mut now = Instant::now();
            let mut digest = Digest::default();
            let mut told: Vec<(Instant, Totals)> = Vec::new();
            for (seq, gap) in gaps.iter().enumerate() {
                let then = now + Duration::from_millis(*gap);
                while let Some(wait) = digest.due_in(now) {
                    let due = now + wait;
                    if due > then {
                        break;
                    }
                    now = due;
                    told.push((now, digest.take(now).unwrap()));
                }
                now = then;
                digest.add(&commit(seq as u64));
            }
            for pair in told.windows(2) {
                prop_assert!(pair[1].0.duration_since(pair[0].0) >= GAP);
                prop_assert_eq!(pair[1].1.parent, Some(pair[0].1.commit));
            }
            told.extend(digest.take(now).map(|last| (now, last)));
            prop_assert_eq!(told.iter().map(|(_, totals)| totals.commits).sum::<u64>(), gaps.len() as u64);
            prop_assert_eq!(told.iter().map(|(_, totals)| totals.stored_bytes).sum::<u64>(), 10 * gaps.len() as u64);
            prop_assert_eq!(digest.due_in(now), None);
        }
    }
}
