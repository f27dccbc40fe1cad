//! Which commits are kept, and which objects those need: a function of what there is and the time.
//!
//! Everything for an hour, then one in five minutes for a day, one an hour for a week, one a day for a month. The
//! line and each branch are thinned on their own, so that a branch never takes the place of a commit of the line.
//! Kept beside that: the newest commit of the line, and the one that was it an hour ago; the newest of any generation that committed within the last week
//! (it may be alive); a suspicious commit, and the one it follows; the last before the gateway became another version.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use ulid::Ulid;

use super::{
    lineage::Stretch,
    model::{CommitId, Meta, Reason},
    segment::Segment,
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Up to which age one commit is kept in each period, both in seconds.
const PERIODS: [(i64, i64); 3] = [(DAY, 5 * MINUTE), (7 * DAY, HOUR), (30 * DAY, DAY)];
/// A generation that has committed nothing for this long is not written to any more.
pub const ALIVE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What retention has to know of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub time: Timestamp,
    pub reason: Reason,
    pub suspicious: bool,
    pub parent: Option<CommitId>,
    /// The gateway's version, if it was known.
    pub gateway: Option<String>,
    /// Length of its object.
    pub size: u64,
    /// Objects without which it cannot be restored, other than its own.
    pub needs: Vec<CommitId>,
}

impl Record {
    /// Of a commit that was just made.
    pub fn of(segment: &Segment) -> Record {
        Record::new(segment.meta(), segment.needs.clone(), segment.size())
    }

    pub fn new(meta: &Meta, needs: Vec<CommitId>, size: u64) -> Record {
        Record {
            time: meta.time,
            reason: meta.reason,
            suspicious: meta.suspicious.is_some(),
            parent: meta.parent,
            gateway: meta.gateway.clone(),
            size,
            needs,
        }
    }
}

pub type Records = BTreeMap<CommitId, Record>;

/// The line or a branch, the length of the period in seconds, and which of those it is.
type Bucket = (Option<Ulid>, i64, i64);
/// What is kept of a period: the greatest.
type Rank = (bool, Timestamp, CommitId);

/// The commits that stay restorable.
pub fn kept(records: &Records, line: &[Stretch], now: Timestamp) -> BTreeSet<CommitId> {
    let branch = |id: CommitId| (!line.iter().any(|stretch| stretch.contains(id))).then_some(id.generation);
    let age = |record: &Record| now.duration_since(record.time);
    let mut kept = BTreeSet::new();
    // Of each period the commit that needs the fewest objects, a compaction, else the newest. Periods lie within
    // each other, so what is chosen for a short one is there to be chosen for the long one around it.
    let mut chosen: BTreeMap<Bucket, Rank> = BTreeMap::new();
    // The hour begins with it, and a boot may have listed it then and be reading it now.
    let mut hour_ago = None;
    for (id, record) in records {
        if record.suspicious {
            kept.extend([Some(*id), record.parent].into_iter().flatten());
        }
        if age(record) <= SignedDuration::from_secs(HOUR) {
            kept.insert(*id);
            continue;
        }
        if branch(*id).is_none() {
            hour_ago = hour_ago.max(Some((record.time, *id)));
        }
        let period = PERIODS.iter().find(|(limit, _)| age(record).as_secs() < *limit);
        if let Some((_, period)) = period {
            let bucket = (branch(*id), *period, record.time.as_second().div_euclid(*period));
            let rank = (record.reason == Reason::Compact, record.time, *id);
            chosen
                .entry(bucket)
                .and_modify(|best| *best = rank.max(*best))
                .or_insert(rank);
        }
    }
    kept.extend(chosen.into_values().map(|(_, _, id)| id));
    kept.extend(hour_ago.map(|(_, id)| id));
    let newest = |stretch: &Stretch| {
        let commits = records.range(first(stretch.generation)..).map(|(id, _)| *id);
        commits
            .take_while(|id| id.generation == stretch.generation)
            .filter(|id| stretch.contains(*id))
            .last()
    };
    kept.extend(line.iter().find_map(newest));
    let tips = records
        .iter()
        .map(|(id, record)| (id.generation, (*id, record)))
        .collect::<BTreeMap<_, _>>();
    let alive = tips.into_values().filter(|(_, record)| age(record) < ALIVE);
    kept.extend(alive.map(|(id, _)| id));
    let of_line = records.iter().filter(|(id, _)| branch(**id).is_none());
    kept.extend(before_upgrades(of_line));
    kept.retain(|id| records.contains_key(id));
    kept
}

/// The commits of which retention has left no more than what others need: an object that they need themselves is not there
/// any more, and they are none to stay restorable. `there` are all objects by their names, sound or not.
pub fn remnants(records: &Records, there: &BTreeSet<CommitId>, line: &[Stretch], now: Timestamp) -> BTreeSet<CommitId> {
    let kept = kept(records, line, now);
    let lacks = |record: &Record| record.needs.iter().any(|need| !there.contains(need));
    let left = records
        .iter()
        .filter(|(id, record)| !kept.contains(id) && lacks(record));
    left.map(|(id, _)| *id).collect()
}

/// Of a line, the last commit with each version of the gateway that another one followed: a newer gateway migrates its
/// state one way.
fn before_upgrades<'a>(line: impl Iterator<Item = (&'a CommitId, &'a Record)>) -> Vec<CommitId> {
    let versions: Vec<_> = line
        .filter_map(|(id, record)| Some((*id, record.gateway.as_deref()?)))
        .collect();
    let changes = versions.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    changes.map(|pair| pair[0].0).collect()
}

fn first(generation: Ulid) -> CommitId {
    CommitId { generation, seq: 0 }
}

/// The objects that nothing needs, dependents before what they depend on, so that a removal that is cut off leaves
/// no commit without its chunks.
pub fn removable(records: &Records, kept: &BTreeSet<CommitId>, in_use: &BTreeSet<CommitId>) -> Vec<CommitId> {
    let needs = kept
        .iter()
        .filter_map(|id| records.get(id))
        .flat_map(|record| &record.needs);
    let needed: BTreeSet<CommitId> = kept.iter().chain(needs).chain(in_use).copied().collect();
    records
        .keys()
        .rev()
        .filter(|id| !needed.contains(id))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn generation(n: u64) -> Ulid {
        Ulid::from_parts(n, 0)
    }

    fn id(generation_n: u64, seq: u64) -> CommitId {
        CommitId {
            generation: generation(generation_n),
            seq,
        }
    }

    fn now() -> Timestamp {
        "2026-11-23T12:34:56Z".parse().unwrap()
    }

    fn record(age: i64) -> Record {
        Record {
            time: now() - SignedDuration::from_secs(age),
            reason: Reason::Change,
            suspicious: false,
            parent: None,
            gateway: None,
            size: 1,
            needs: Vec::new(),
        }
    }

    fn whole(n: u64) -> Stretch {
        Stretch {
            generation: generation(n),
            until: None,
        }
    }

    /// A commit every `every` seconds, for `for_` seconds up to now.
    fn steady(generation: u64, every: i64, for_: i64) -> Records {
        (0..for_ / every)
            .map(|n| (id(generation, (for_ / every - n) as u64), record(n * every)))
            .collect()
    }

    #[test]
    fn what_was_newest_an_hour_ago_is_left_to_who_reads_it() {
        let compaction = Record {
            reason: Reason::Compact,
            ..record(2 * DAY + 60)
        };
        let records = Records::from([
            (id(1, 1), compaction),
            (id(1, 2), record(2 * DAY)),
            (id(1, 3), record(0)),
        ]);
        let left = |after| kept(&records, &[whole(1)], now() + SignedDuration::from_secs(after));
        assert!(left(HOUR).contains(&id(1, 2)));
        assert!(!left(HOUR + 1).contains(&id(1, 2)));
    }

    #[test]
    fn thins_as_promised() {
        let records = steady(1, 60, 40 * DAY);
        let kept = kept(&records, &[whole(1)], now());
        let within = |from: i64, to: i64| {
            kept.iter()
                .filter(|id| (from..to).contains(&now().duration_since(records[id].time).as_secs()))
                .count()
        };
        assert_eq!(within(0, HOUR + 1), 61);
        assert!(
            (276..=278).contains(&within(HOUR + 1, DAY)),
            "{}",
            within(HOUR + 1, DAY)
        );
        assert!((144..=146).contains(&within(DAY, 7 * DAY)), "{}", within(DAY, 7 * DAY));
        assert!(
            (23..=25).contains(&within(7 * DAY, 30 * DAY)),
            "{}",
            within(7 * DAY, 30 * DAY)
        );
        assert_eq!(within(30 * DAY, 41 * DAY), 0);
    }

    #[test]
    fn the_newest_of_the_line_stays_however_old() {
        let records = Records::from([(id(1, 1), record(90 * DAY)), (id(1, 2), record(80 * DAY))]);
        assert_eq!(kept(&records, &[whole(1)], now()), [id(1, 2)].into());
        // A generation without a commit is no reason to drop the one before it.
        let line = [
            whole(2),
            Stretch {
                generation: generation(1),
                until: Some(1),
            },
        ];
        assert!(kept(&records, &line, now()).contains(&id(1, 1)));
    }

    #[test]
    fn what_came_before_a_loss_stays_for_good() {
        let mut records = steady(1, 60, 100 * DAY);
        let (before, loss) = (id(1, 500), id(1, 501));
        let lost = records.get_mut(&loss).unwrap();
        (lost.suspicious, lost.parent) = (true, Some(before));
        let kept = kept(&records, &[whole(1)], now());
        assert!(kept.contains(&before) && kept.contains(&loss));
    }

    #[test]
    fn what_came_before_a_loss_stays_while_the_loss_is_young() {
        let (compact, before, loss) = (id(1, 1), id(1, 2), id(1, 3));
        let mut records = Records::from([
            (compact, record(2 * HOUR + 240)),
            (before, record(2 * HOUR + 60)),
            (loss, record(10 * MINUTE)),
        ]);
        records.get_mut(&compact).unwrap().reason = Reason::Compact;
        let lost = records.get_mut(&loss).unwrap();
        (lost.suspicious, lost.parent) = (true, Some(before));
        let kept = kept(&records, &[whole(1)], now());
        assert!(kept.contains(&before) && kept.contains(&loss));
    }

    #[test]
    fn the_last_before_an_upgrade_of_the_gateway_stays_for_good() {
        let mut records = steady(1, 600, 100 * DAY);
        let last_but = 5000;
        for (id, record) in &mut records {
            let version = if id.seq <= last_but { "2026.1.1" } else { "2026.2.1" };
            // A boot does not know it at once.
            record.gateway = (id.seq != last_but + 1).then(|| version.to_owned());
        }
        let without: Records = records
            .iter()
            .map(|(id, record)| {
                (
                    *id,
                    Record {
                        gateway: None,
                        ..record.clone()
                    },
                )
            })
            .collect();
        let line = [whole(1)];
        let more: Vec<CommitId> = kept(&records, &line, now())
            .difference(&kept(&without, &line, now()))
            .copied()
            .collect();
        assert_eq!(more, [id(1, last_but)]);
        // Nor is it forgotten when what followed it has been thinned.
        records.retain(|id, _| id.seq <= last_but || id.seq > last_but + 500);
        assert!(kept(&records, &line, now()).contains(&id(1, last_but)));
    }

    #[test]
    fn a_branch_takes_nothing_from_the_line() {
        let line = steady(1, 600, 20 * DAY);
        let alone = kept(&line, &[whole(1)], now());
        let mut both = line.clone();
        both.extend(steady(2, 60, 3 * DAY));
        let kept = kept(&both, &[whole(1)], now());
        assert!(alone.is_subset(&kept));
    }

    #[test]
    fn of_a_period_the_compaction_is_kept() {
        let mut records = steady(1, 60, 3 * DAY);
        records.get_mut(&id(1, 1000)).unwrap().reason = Reason::Compact;
        assert!(kept(&records, &[whole(1)], now()).contains(&id(1, 1000)));
    }

    proptest! {
        /// Thinning again and again comes to the same as thinning once at the end, and never leaves a gap that
        /// retention does not allow.
        #[test]
        fn thinning_often_loses_no_more_than_thinning_once(
            ages in proptest::collection::btree_set(0i64..35 * DAY, 1..300),
            looks in proptest::collection::vec(0i64..35 * DAY, 0..6),
        ) {
            let all: Records = ages.iter().rev().zip(1..).map(|(age, seq)| (id(1, seq), record(*age))).collect();
            let mut left = all.clone();
            let mut looks = looks;
            looks.sort_unstable_by(|a, b| b.cmp(a));
            for back in looks {
                let then = now() - SignedDuration::from_secs(back);
                let seen: Records = left.iter().filter(|(_, r)| r.time <= then).map(|(id, r)| (*id, r.clone())).collect();
                let kept = kept(&seen, &[whole(1)], then);
                left.retain(|id, r| r.time > then || kept.contains(id));
            }
            let once = kept(&all, &[whole(1)], now());
            let often = kept(&left, &[whole(1)], now());
            // Where a period straddles the edge of a window its newest commit may differ, so periods are compared.
            let periods = |kept: &BTreeSet<CommitId>| kept.iter().map(|id| all[id].time.as_second().div_euclid(DAY)).collect::<BTreeSet<_>>();
            prop_assert_eq!(periods(&once), periods(&often));
        }

        #[test]
        fn nothing_that_is_kept_loses_what_it_needs(
            needs in proptest::collection::vec(proptest::collection::vec(0u64..40, 0..6), 1..40),
            step in 1i64..20_000,
        ) {
            let count = needs.len() as i64;
            let records: Records = needs.into_iter().zip(0u64..).map(|(needs, seq)| {
                let mut record = record((count - seq as i64) * step);
                record.needs = needs.into_iter().filter(|need| *need < seq).map(|need| id(1, need)).collect();
                (id(1, seq), record)
            }).collect();
            let kept = kept(&records, &[whole(1)], now());
            let gone: BTreeSet<_> = removable(&records, &kept, &BTreeSet::new()).into_iter().collect();
            for id in &kept {
                prop_assert!(!gone.contains(id));
                prop_assert!(records[id].needs.iter().all(|need| !gone.contains(need)));
            }
            prop_assert!(!kept.is_empty());
        }
    }
}
