//! Which generation to follow, decided from the names of the generations alone.
//!
//! Every boot starts a generation, which names the commit it began from (its base), or none when the store was
//! empty. The rule:
//!
//! * The newest generation that has a base is the one to follow: it was restored from last.
//! * If none has one, follow the oldest: a generation that began empty beside an older one was started by
//!   something that could not see the older one. First boots within [`TOGETHER`] of the oldest are an overlap that
//!   nobody could see through, and of these the newest is followed, as with any other overlap. Who begins empty though it
//!   sees a history, since it has gone without the store until then, takes an id that is further [`apart`].
//!
//! From there the line goes back through the bases; where retention has removed a base's whole generation, by the
//! same rule among those older than it. All other commits are branches: kept, reported, restorable by
//! id, and never followed. Restoring one makes it the base of a new generation, and so part of the line.

use std::{collections::BTreeMap, time::Duration};

use ulid::Ulid;

use super::model::CommitId;

/// First boots this close to each other count as one.
const TOGETHER: Duration = Duration::from_secs(300);

/// Each generation with its base.
pub type Generations = BTreeMap<Ulid, Option<CommitId>>;

/// Part of the line: the commits of a generation, up to and with the one that the next generation began from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub generation: Ulid,
    pub until: Option<u64>,
}

impl Stretch {
    pub fn contains(&self, id: CommitId) -> bool {
        id.generation == self.generation && self.until.is_none_or(|until| id.seq <= until)
    }
}

/// The line, newest first. Empty if there is no generation.
pub fn line(generations: &Generations) -> Vec<Stretch> {
    let mut line = Vec::new();
    let mut next = tip(generations).map(|generation| Stretch {
        generation,
        until: None,
    });
    while let Some(stretch) = next {
        line.push(stretch);
        let base = generations[&stretch.generation];
        // Going back only, so that bases that lead in a circle end.
        next = base
            .filter(|base| base.generation < stretch.generation)
            .and_then(|base| {
                if generations.contains_key(&base.generation) {
                    return Some(Stretch {
                        generation: base.generation,
                        until: Some(base.seq),
                    });
                }
                tip(&generations.range(..base.generation).map(|(g, b)| (*g, *b)).collect()).map(|generation| Stretch {
                    generation,
                    until: None,
                })
            });
    }
    line
}

/// The generation that the line begins with.
pub fn tip(generations: &Generations) -> Option<Ulid> {
    let restored = generations.iter().rev().find(|(_, base)| base.is_some());
    if let Some((generation, _)) = restored {
        return Some(*generation);
    }
    let oldest = generations.keys().next()?;
    let limit = oldest.timestamp_ms() + TOGETHER.as_millis() as u64;
    generations
        .keys()
        .rev()
        .find(|generation| generation.timestamp_ms() <= limit)
        .copied()
}

/// The id of a new generation that begins empty beside others whose commits its writer has seen: one that is not taken for a
/// first boot at the same time as theirs.
pub fn apart(generations: &Generations, proposed: Ulid) -> Ulid {
    let Some(oldest) = generations.keys().next() else {
        return proposed;
    };
    let first = oldest.timestamp_ms() + TOGETHER.as_millis() as u64 + 1;
    above(generations, proposed.max(Ulid::from_parts(first, proposed.random())))
}

/// The id of a new generation: the proposed one, or one above all that are there should a clock have gone back. There is
/// none above the last.
pub fn above(generations: &Generations, proposed: Ulid) -> Ulid {
    match generations.keys().next_back() {
        Some(newest) if proposed <= *newest && newest.timestamp_ms() < Ulid::max().timestamp_ms() => {
            Ulid::from_parts(newest.timestamp_ms() + 1, proposed.random())
        }
        _ => proposed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Ulid {
        Ulid::from_parts(ms, 0)
    }

    fn commit(ms: u64, seq: u64) -> Option<CommitId> {
        Some(CommitId {
            generation: at(ms),
            seq,
        })
    }

    fn of<const N: usize>(generations: [(u64, Option<CommitId>); N]) -> Generations {
        generations.map(|(ms, base)| (at(ms), base)).into()
    }

    fn stretch(ms: u64, until: Option<u64>) -> Stretch {
        Stretch {
            generation: at(ms),
            until,
        }
    }

    #[test]
    fn a_line_goes_back_through_what_was_restored() {
        let line = line(&of([(1, None), (2, commit(1, 7)), (3, commit(2, 4))]));
        assert_eq!(line, [stretch(3, None), stretch(2, Some(4)), stretch(1, Some(7))]);
    }

    #[test]
    fn of_an_overlap_the_one_that_restored_last_is_followed() {
        let line = line(&of([(1, None), (2, commit(1, 7)), (3, commit(1, 9))]));
        assert_eq!(line, [stretch(3, None), stretch(1, Some(9))]);
    }

    #[test]
    fn an_empty_boot_is_not_followed_over_a_history() {
        let hour = 3_600_000;
        assert_eq!(line(&of([(1, None), (hour, None)])), [stretch(1, None)]);
        let longer = of([(1, None), (2, commit(1, 7)), (hour, None)]);
        assert_eq!(line(&longer)[0], stretch(2, None));
        // Not even when retention has removed where the history began.
        assert_eq!(line(&of([(2, commit(1, 7)), (hour, None)])), [stretch(2, None)]);
        // Unless somebody chose it.
        let chosen = of([(1, None), (hour, None), (2 * hour, commit(hour, 3))]);
        assert_eq!(line(&chosen), [stretch(2 * hour, None), stretch(hour, Some(3))]);
    }

    #[test]
    fn a_line_goes_on_where_retention_has_removed_a_generation() {
        let line = line(&of([(1, None), (2, commit(1, 7)), (4, commit(3, 9))]));
        assert_eq!(line, [stretch(4, None), stretch(2, None), stretch(1, Some(7))]);
    }

    #[test]
    fn of_first_boots_at_one_time_the_newest_is_followed() {
        assert_eq!(line(&of([(1, None), (60_000, None)])), [stretch(60_000, None)]);
    }

    #[test]
    fn who_begins_empty_beside_what_it_saw_is_not_followed_however_soon_that_is() {
        for beside in [
            of([(1, None)]),
            of([(1, None), (2, None)]),
            of([(1, None), (2, commit(1, 7))]),
        ] {
            let followed = line(&beside)[0];
            for proposed in [0, 3, 60_000, 3_600_000] {
                let id = apart(&beside, at(proposed));
                let mut all = beside.clone();
                assert_eq!(all.insert(id, None), None);
                assert_eq!(line(&all)[0], followed);
                assert!(all.keys().next_back() == Some(&id));
            }
        }
        assert_eq!(apart(&of([]), at(3)), at(3));
    }

    #[test]
    fn a_new_generation_is_above_all_others() {
        let seen = of([(1, None), (5000, commit(1, 7))]);
        assert_eq!(above(&seen, at(6000)), at(6000));
        assert!(above(&seen, at(4000)) > at(5000));
        assert!(above(&seen, at(5000)) > at(5000));
        assert_eq!(above(&[(Ulid::max(), None)].into(), at(5000)), at(5000));
    }

    proptest! {
        #[test]
        fn a_line_ends_and_names_no_generation_twice(bases in proptest::collection::vec(proptest::option::of((0u64..12, 0u64..5)), 0..12)) {
            let generations: Generations = bases.iter().zip(0..).map(|(base, ms)| (at(ms), base.and_then(|(ms, seq)| commit(ms, seq)))).collect();
            let line = line(&generations);
            prop_assert_eq!(line.is_empty(), generations.is_empty());
            prop_assert!(line.is_sorted_by(|a, b| a.generation > b.generation));
        }
    }
}
