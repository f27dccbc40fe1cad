//! Two supervisors on one store.
//!
//! The newer generation is the one that a boot follows, so the older one's commits are a branch from then on. That is
//! right for as long as the newer one is the agent. Where it has ended and the older one goes on, the next boot would
//! follow what ended: so a supervisor that finds its rival silent for [`SILENT`] begins a generation anew from its own
//! last commit, which makes that one the newest. Should the rival still be there, it finds a newer one in turn.

use std::time::{Duration, Instant};

use ulid::Ulid;

use crate::state::model::CommitId;

/// A rival that has committed nothing for this long is taken to have ended.
pub const SILENT: Duration = Duration::from_secs(6 * 3600);

/// A generation newer than our own: the last commit that was seen in it, and since when there is no later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    pub generation: Ulid,
    pub last: Option<CommitId>,
    since: Instant,
}

impl Rival {
    /// What is known of it once it was looked at again.
    pub fn seen(before: Option<Rival>, generation: Ulid, last: Option<CommitId>, now: Instant) -> Rival {
        match before {
            Some(before) if (before.generation, before.last) == (generation, last) => before,
            _ => Rival {
                generation,
                last,
                since: now,
            },
        }
    }

    pub fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= SILENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_silent_once_nothing_of_it_came_for_long() {
        let (generation, other) = (Ulid::from_parts(2, 0), Ulid::from_parts(3, 0));
        let last = |seq| Some(CommitId { generation, seq });
        let began = Instant::now();
        let at = |hours: u64| began + Duration::from_secs(hours * 3600);
        let rival = Rival::seen(None, generation, last(1), at(0));
        let rival = Rival::seen(Some(rival), generation, last(1), at(5));
        assert!(!rival.is_silent(at(5)) && rival.is_silent(at(6)));
        for later in [
            Rival::seen(Some(rival), generation, last(2), at(7)),
            Rival::seen(Some(rival), other, None, at(7)),
        ] {
            assert!(!later.is_silent(at(12)) && later.is_silent(at(13)));
        }
    }
}
