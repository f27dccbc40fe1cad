//! Applying retention to a store.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use ulid::Ulid;

use super::{
    history::{self, History, Infos, Problem},
    model::CommitId,
    retain::{self, Record, Records},
    segment::reader::ReadError,
};

/// A generation that committed this recently may still be written to, and is listed anew each time.
const LIVELY: SignedDuration = SignedDuration::from_hours(1);
/// How often the whole of a history is looked through: many short boots would otherwise each list all of it.
const THOROUGH: SignedDuration = SignedDuration::from_hours(12);
/// An object that was never finished is removed when its generation is this old.
const TORN: SignedDuration = SignedDuration::from_hours(24);

/// What is known of the commits in a store, kept from one pruning to the next.
pub struct Pruner {
    history: History,
    records: Records,
    problems: BTreeMap<CommitId, Problem>,
    /// Generations that were listed and are not written to by anybody.
    settled: BTreeSet<Ulid>,
    /// Whether all of the store has been looked through, not only what this process writes.
    thorough: bool,
}

/// What this process writes.
#[derive(Debug, Clone)]
pub struct Own {
    pub generation: Ulid,
    /// Every object that its next commit may refer to ([`Head::needs`]). Commits made while a pruning runs need no
    /// older object beyond these: what a head has let go of it never takes up again.
    ///
    /// [`Head::needs`]: super::head::Head::needs
    pub needs: BTreeSet<CommitId>,
}

/// What a pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub kept: usize,
    /// Objects that are there only for what kept commits need.
    pub needed: usize,
    pub removed: usize,
    pub freed: u64,
    /// Bytes of all that is left, if all of the store was looked at.
    pub left: Option<u64>,
    /// A newer generation than this process's own. It does the pruning, and nothing was removed.
    pub fenced_by: Option<Ulid>,
}

impl Pruner {
    pub fn new(history: History) -> Pruner {
        Pruner {
            history,
            records: Records::new(),
            problems: BTreeMap::new(),
            settled: BTreeSet::new(),
            thorough: false,
        }
    }

    /// Takes note of a commit of this process, which it then need not look for.
    pub fn committed(&mut self, id: CommitId, record: Record) {
        self.records.insert(id, record);
    }

    /// Removes what retention does not keep. `own` is what this process writes, if it does; other generations are
    /// then left alone where somebody has looked through the store lately.
    pub fn prune(&mut self, own: Option<&Own>, now: Timestamp) -> Result<Pruned, ReadError> {
        let generation = own.map(|own| own.generation);
        self.history.refresh()?;
        if let Some(own) = generation {
            let newest = self.history.generations().into_keys().next_back();
            if let Some(newer) = newest.filter(|newest| *newest > own) {
                let fenced_by = Some(newer);
                return Ok(Pruned {
                    fenced_by,
                    ..Pruned::default()
                });
            }
        }
        let lately = |at: Timestamp| now.duration_since(at) < THOROUGH;
        if self.thorough || own.is_none() || !self.history.pruned_at().is_some_and(lately) {
            self.look(generation, now)?;
            if !std::mem::replace(&mut self.thorough, true) {
                self.history.mark_pruned(now)?;
            }
        }
        let kept = retain::kept(&self.records, &self.history.line(), now);
        let none = BTreeSet::new();
        let in_use = own.map_or(&none, |own| &own.needs);
        let removable = retain::removable(&self.records, &kept, in_use);
        let mut done = Pruned {
            kept: kept.len(),
            needed: self.records.len() - kept.len() - removable.len(),
            ..Pruned::default()
        };
        let mut dirs = BTreeMap::new();
        for id in removable.into_iter().chain(self.never_finished(generation, now)) {
            self.history.delete(id)?;
            done.removed += 1;
            done.freed += self.records.remove(&id).map_or(0, |record| record.size);
            self.problems.remove(&id);
            dirs.insert((id.generation, history::group(id.seq)), id);
        }
        self.clear(dirs.into_values(), own)?;
        done.left = self
            .thorough
            .then(|| self.records.values().map(|record| record.size).sum());
        Ok(done)
    }

    /// Lists what may have changed, and reads the ends of what is new.
    fn look(&mut self, own: Option<Ulid>, now: Timestamp) -> Result<(), ReadError> {
        let mut unknown = Vec::new();
        for generation in self.history.generations().into_keys() {
            // What this process commits it says; what it found others to have done stays true.
            let known = self.settled.contains(&generation) || own == Some(generation);
            if known {
                continue;
            }
            let commits = self.history.commits(generation)?;
            let listed: BTreeSet<CommitId> = commits.iter().copied().collect();
            let gone = |id: &CommitId| id.generation == generation && !listed.contains(id);
            self.records.retain(|id, _| !gone(id));
            if commits.is_empty() && age(generation, now) > TORN {
                self.history.delete_generation(generation)?;
            }
            let new = |id: &CommitId| !self.records.contains_key(id);
            unknown.extend(commits.into_iter().filter(new));
        }
        let Infos { read, problems } = self.history.infos(&unknown)?;
        let records = read
            .into_iter()
            .map(|(info, size)| (info.meta.id, Record::new(&info.meta, info.needs().collect(), size)));
        self.records.extend(records);
        self.problems.extend(problems);
        let tips: BTreeMap<Ulid, Timestamp> = self
            .records
            .iter()
            .map(|(id, record)| (id.generation, record.time))
            .collect();
        let settled = |(_, tip): &(&Ulid, &Timestamp)| now.duration_since(**tip) > LIVELY;
        self.settled
            .extend(tips.iter().filter(settled).map(|(generation, _)| *generation));
        Ok(())
    }

    /// Objects of dead writers. Damaged ones stay: somebody may want to look at them.
    fn never_finished(&self, own: Option<Ulid>, now: Timestamp) -> Vec<CommitId> {
        let old = |generation| own != Some(generation) && age(generation, now) > TORN;
        let torn = self
            .problems
            .iter()
            .filter(|(id, problem)| problem.torn && old(id.generation));
        torn.map(|(id, _)| *id).collect()
    }

    /// Removes the directories of removed commits where nothing is left in them.
    fn clear(&mut self, removed: impl Iterator<Item = CommitId>, own: Option<&Own>) -> Result<(), ReadError> {
        let own: Vec<&CommitId> = own.iter().flat_map(|own| &own.needs).collect();
        for id in removed {
            let all = self
                .records
                .keys()
                .chain(self.problems.keys())
                .chain(own.iter().copied());
            let mut left = all.filter(|left| left.generation == id.generation).peekable();
            if left.peek().is_none() {
                self.history.delete_generation(id.generation)?;
            } else if !left.any(|left| history::group(left.seq) == history::group(id.seq)) {
                self.history.delete_group(id)?;
            }
        }
        Ok(())
    }
}

/// For how long a generation has been there.
fn age(generation: Ulid, now: Timestamp) -> SignedDuration {
    history::time_of(generation).map_or(SignedDuration::ZERO, |begun| now.duration_since(begun))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::{
        lineage::Generations,
        tests::kit::{Kit, picture},
    };

    fn later(hours: i64) -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(hours)
    }

    fn own(kit: &Kit) -> Own {
        Own {
            generation: kit.generation.id(),
            needs: kit.head.needs(),
        }
    }

    #[test]
    fn what_is_left_can_all_be_restored() {
        let mut kit = Kit::new();
        for n in 0..120 {
            kit.write(&format!("{}", n % 10), format!("version {n}"));
            kit.commit();
        }
        let pruned = Pruner::new(kit.reopened()).prune(None, later(2)).unwrap();
        // All were made within minutes, so of most only the chunks are needed.
        assert!(pruned.removed > 90 && pruned.kept <= 3, "{pruned:?}");
        let history = kit.reopened();
        let left = history.restorable().unwrap();
        assert_eq!(left.len(), pruned.kept + pruned.needed);
        assert_eq!(left[0], kit.head.id().unwrap());
        kit.recover_to("back").unwrap();
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
        // The first hundred are a directory of their own, which is gone when nothing is left in it.
        assert!(
            !kit.object_path(CommitId { seq: 1, ..left[0] })
                .parent()
                .unwrap()
                .exists()
        );
        let again = Pruner::new(kit.reopened()).prune(None, later(2)).unwrap();
        assert_eq!((again.removed, again.kept), (0, pruned.kept));
    }

    #[test]
    fn the_writer_keeps_what_its_next_commit_needs() {
        let mut kit = Kit::new();
        let mut pruner = Pruner::new(kit.history.clone());
        for n in 0..20 {
            kit.write(&format!("{n}"), format!("content {n}"));
            kit.commit();
        }
        let pruned = pruner.prune(Some(&own(&kit)), later(40 * 24)).unwrap();
        assert_eq!(pruned.removed, 0, "{pruned:?}");
        kit.write("more", b"1");
        kit.commit();
        kit.recover_to("back").unwrap();
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    }

    #[test]
    fn an_older_generation_removes_nothing_beside_a_newer() {
        let mut old = Kit::new();
        for n in 0..20 {
            old.write("file", format!("{n}"));
            old.commit();
        }
        let mut new = Kit::new();
        new.history = old.reopened();
        new.generation = new.history.begin(Ulid::generate(), old.head.id());
        new.write("file", b"of the new one");
        new.commit();
        let pruned = Pruner::new(old.history.clone())
            .prune(Some(&own(&old)), later(5))
            .unwrap();
        assert_eq!(
            pruned,
            Pruned {
                fenced_by: Some(new.generation.id()),
                ..Pruned::default()
            }
        );
        // The newer one does, and leaves both what they need.
        let pruned = Pruner::new(new.history.clone())
            .prune(Some(&own(&new)), later(5))
            .unwrap();
        assert!(pruned.removed > 10, "{pruned:?}");
        old.write("file", b"once more of the old one");
        let id = old.commit();
        assert!(old.reopened().load(id).is_ok());
        assert_eq!(
            crate::state::verify::verify(&old.reopened(), &[id], &Default::default()).unwrap(),
            []
        );
    }

    #[test]
    fn a_boot_soon_after_another_looks_at_its_own_only() {
        let mut kit = Kit::new();
        for n in 0..20 {
            kit.write("file", format!("{n}"));
            kit.commit();
        }
        kit.reboot();
        let prune = |kit: &mut Kit, hours| {
            kit.write("file", format!("later {hours}"));
            kit.commit();
            Pruner::new(kit.history.clone())
                .prune(Some(&own(kit)), later(hours))
                .unwrap()
                .removed
        };
        kit.history.mark_pruned(later(0)).unwrap();
        assert_eq!(prune(&mut kit, 5), 0);
        assert!(prune(&mut kit, 13) > 15);
        assert!(kit.reopened().pruned_at() > Some(later(12)));
        let marks = fs::read_dir(kit.path("store/default/v1")).unwrap();
        let marks = marks.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_file());
        assert_eq!(marks.count(), 1);
    }

    #[test]
    fn generations_that_nothing_needs_vanish_and_the_line_holds() {
        let mut kit = Kit::new();
        kit.write("file", b"1");
        kit.commit();
        for n in 0..4 {
            kit.reboot();
            kit.write("file", format!("boot {n}"));
            kit.commit();
        }
        Pruner::new(kit.reopened()).prune(None, later(50 * 24)).unwrap();
        let left: Generations = kit.reopened().generations();
        assert_eq!(left.len(), 1);
        assert_eq!(left[&kit.generation.id()], kit.generation.base());
        kit.recover_to("back").unwrap();
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    }

    #[test]
    fn unfinished_objects_go_and_damaged_ones_stay() {
        let mut kit = Kit::new();
        kit.write("file", b"1");
        let [torn, damaged, good] = [(); 3].map(|()| kit.commit());
        fs::write(kit.object_path(torn), b"").unwrap();
        let mut bytes = fs::read(kit.object_path(damaged)).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        fs::write(kit.object_path(damaged), bytes).unwrap();
        Pruner::new(kit.reopened()).prune(None, later(2)).unwrap();
        assert!(kit.object_path(torn).exists());
        Pruner::new(kit.reopened()).prune(None, later(25)).unwrap();
        let there = [torn, damaged, good].map(|id| kit.object_path(id).exists());
        assert_eq!(there, [false, true, true]);
    }
}
