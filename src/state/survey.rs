//! What is in a store, as far as pruning has to know it, kept from one pruning to the next.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use ulid::Ulid;

use super::{
    history::{self, History, Infos, Problem},
    lineage::{self, Stretch},
    model::CommitId,
    retain::{ALIVE, Record, Records},
    segment::reader::ReadError,
};

/// A generation that committed this recently is likely to be written to, and is listed anew each time.
const LIVELY: SignedDuration = SignedDuration::from_hours(1);
/// How often the whole of a history is looked through.
pub const THOROUGH: SignedDuration = SignedDuration::from_hours(12);

/// The commits of a store and what they need.
pub struct Survey {
    history: History,
    pub records: Records,
    pub problems: BTreeMap<CommitId, Problem>,
    /// Generations that were listed and seemed to be written to by nobody.
    settled: BTreeSet<Ulid>,
    /// When the whole of the store was last looked through.
    whole: Option<Timestamp>,
}

impl Survey {
    pub fn new(history: History) -> Survey {
        Survey {
            history,
            records: Records::new(),
            problems: BTreeMap::new(),
            settled: BTreeSet::new(),
            whole: None,
        }
    }

    /// Whether all of the store has been looked through, not only what this process told of itself.
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// Lists what may have changed, and reads the ends of what is new. What this process commits to `own` it tells.
    pub fn look(&mut self, own: Option<Ulid>, now: Timestamp) -> Result<(), ReadError> {
        let mut whole = self.whole;
        if !self.whole.is_some_and(|at| is_recent(at, now, THOROUGH)) {
            // Even who was silent for long may have gone on.
            self.settled.clear();
            whole = Some(now);
        }
        let mut unknown = Vec::new();
        for generation in self.history.generations().into_keys() {
            if self.settled.contains(&generation) || own == Some(generation) {
                continue;
            }
            let commits = self.history.commits(generation)?;
            let listed: BTreeSet<CommitId> = commits.iter().copied().collect();
            let stays = |id: &CommitId| id.generation != generation || listed.contains(id);
            self.records.retain(|id, _| stays(id));
            self.problems.retain(|id, _| stays(id));
            if commits.is_empty() && begun(generation).is_some_and(|begun| now.duration_since(begun) > ALIVE) {
                self.history.delete_generation(generation)?;
            }
            unknown.extend(commits.into_iter().filter(|id| !self.records.contains_key(id)));
        }
        let Infos { read, problems } = self.history.infos(&unknown)?;
        unknown.iter().for_each(|id| drop(self.problems.remove(id)));
        let records = read
            .into_iter()
            .map(|(info, size)| (info.meta.id, Record::new(&info.meta, info.needs().collect(), size)));
        self.records.extend(records);
        self.problems.extend(problems);
        let silent = |tip: &Timestamp| !is_recent(*tip, now, LIVELY);
        let settled = self
            .tips()
            .filter(|(_, tip)| silent(tip))
            .map(|(generation, _)| generation);
        let settled: Vec<Ulid> = settled.collect();
        self.settled.extend(settled);
        self.whole = whole;
        Ok(())
    }

    /// Each generation in which there is a commit, and when the newest was made.
    fn tips(&self) -> impl Iterator<Item = (Ulid, Timestamp)> {
        let tips: BTreeMap<Ulid, Timestamp> = self
            .records
            .iter()
            .map(|(id, record)| (id.generation, record.time))
            .collect();
        tips.into_iter()
    }

    /// Generations in which a commit was finished, if only to be damaged later.
    fn finished(&self) -> BTreeSet<Ulid> {
        let damaged = self.problems.iter().filter(|(_, problem)| !problem.torn);
        let ids = self.records.keys().chain(damaged.map(|(id, _)| id));
        ids.map(|id| id.generation).collect()
    }

    /// The line that the next boot follows.
    pub fn line(&self) -> Vec<Stretch> {
        let mut generations = self.history.generations();
        if self.is_whole() {
            let finished = self.finished();
            generations.retain(|generation, _| finished.contains(generation));
        }
        lineage::line(&generations)
    }

    /// What those generations began from that have not finished a commit yet, and may.
    pub fn bases(&self, now: Timestamp) -> BTreeSet<CommitId> {
        let finished = self.finished();
        let young = |generation| begun(generation).is_none_or(|begun| now.duration_since(begun) < ALIVE);
        let generations = self.history.generations().into_iter();
        generations
            .filter(|(generation, _)| !finished.contains(generation) && young(*generation))
            .filter_map(|(_, base)| base)
            .collect()
    }

    /// When the newest commit of any other than `own` was made.
    pub fn newest_before(&self, own: Ulid) -> Option<Timestamp> {
        self.tips().filter(|(tip, _)| *tip != own).map(|(_, time)| time).max()
    }
}

/// Whether a time is within `limit` before `now`. One that is yet to come says that a clock was wrong, and nothing else.
pub fn is_recent(at: Timestamp, now: Timestamp, limit: SignedDuration) -> bool {
    (SignedDuration::ZERO..limit).contains(&now.duration_since(at))
}

/// When a generation was begun.
pub fn begun(generation: Ulid) -> Option<Timestamp> {
    history::time_of(generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::kit::Kit;

    #[test]
    fn who_goes_on_after_a_long_silence_is_found_within_half_a_day() {
        let mut silent = Kit::new();
        silent.write("a", "1");
        silent.commit();
        let mut survey = Survey::new(silent.reopened());
        let began = Timestamp::now();
        let at = |minutes| began + SignedDuration::from_mins(minutes);
        survey.look(None, at(120)).unwrap();
        silent.write("a", "2");
        let tip = silent.commit();
        let found = (130..=13 * 60).step_by(10).find(|minutes| {
            survey.look(None, at(*minutes)).unwrap();
            survey.records.contains_key(&tip)
        });
        // It was not looked for all the time either.
        assert_eq!(found, None);
        survey.look(None, at(14 * 60)).unwrap();
        assert!(survey.records.contains_key(&tip));
    }
}
