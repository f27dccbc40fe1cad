//! Applying retention to a store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use ulid::Ulid;

use super::{
    history::History,
    lineage::Generations,
    model::CommitId,
    names,
    retain::{self, Record},
    segment::reader::ReadError,
    survey::{self, Survey, THOROUGH},
};
use crate::store::StoreError;

/// An object that is still not finished this long after it was made never will be: no put takes so long.
const TORN: SignedDuration = SignedDuration::from_hours(24);
/// A boot this long after the newest commit may be one whose clock is wrong, and removes nothing in its first day.
const LONG: SignedDuration = SignedDuration::from_hours(7 * 24);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// For so long after a look at who has begun a generation things are removed without another one.
const FRESH: Duration = Duration::from_secs(1);

/// Removes what retention does not keep.
pub struct Pruner {
    history: History,
    survey: Survey,
}

/// What this process writes.
#[derive(Debug, Clone)]
pub struct Own {
    pub generation: Ulid,
    /// Every object that its next commit may refer to ([`Head::needs`]).
    ///
    /// [`Head::needs`]: super::head::Head::needs
    pub needs: BTreeSet<CommitId>,
}

/// What this process writes as of now, asked for again at each removal; nothing while that is about to be replaced.
#[derive(Debug)]
pub struct Writing(Mutex<Option<Own>>);

impl Writing {
    pub fn new(own: Own) -> Writing {
        Writing(Mutex::new(Some(own)))
    }

    /// Says what is written from now on. Waits for a removal that is under way; none begins where there is nothing.
    pub fn set(&self, own: Option<Own>) {
        *self.lock() = own;
    }

    pub fn get(&self) -> Option<Own> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Own>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            survey: Survey::new(history.clone()),
            history,
        }
    }

    /// Takes note of a commit of this process, which it then need not look for.
    pub fn committed(&mut self, id: CommitId, record: Record) {
        self.survey.records.insert(id, record);
    }

    /// Removes what retention does not keep. `writing` is what this process writes, if it does; other generations are
    /// then left alone where somebody has looked through the store lately: many short boots would otherwise each list
    /// all of it.
    pub fn prune(&mut self, writing: Option<&Writing>, now: Timestamp) -> Result<Pruned, ReadError> {
        let own = match writing.map(Writing::get) {
            None => None,
            Some(Some(own)) => Some(own),
            Some(None) => return Ok(Pruned::default()),
        };
        let generation = own.as_ref().map(|own| own.generation);
        self.history.refresh()?;
        let known = self.history.generations();
        let fenced_by = generation.and_then(|own| self.history.newer_than(own));
        if fenced_by.is_some() {
            return Ok(Pruned {
                fenced_by,
                ..Pruned::default()
            });
        }
        if self.survey.is_whole() || own.is_none() || !self.history.was_pruned(now, THOROUGH) {
            let first = !self.survey.is_whole();
            self.survey.look(generation, now)?;
            if first {
                self.history.mark_pruned(now)?;
            }
        }
        let records = &self.survey.records;
        let mut kept = retain::kept(records, &self.survey.line(), now);
        kept.extend(self.survey.bases(now).into_iter().filter(|id| records.contains_key(id)));
        let in_use = own.map(|own| own.needs).unwrap_or_default();
        let mut removable = retain::removable(records, &kept, &in_use);
        let mut done = Pruned {
            kept: kept.len(),
            needed: records.len() - kept.len() - removable.len(),
            ..Pruned::default()
        };
        if generation.is_some_and(|own| self.is_in_doubt(own, now)) {
            removable.clear();
        } else {
            removable.extend(self.never_finished(now)?);
        }
        let mut dirs = BTreeMap::new();
        let mut looked: Option<Instant> = None;
        for id in removable {
            // The survey may have taken long.
            if looked.is_none_or(|at| at.elapsed() >= FRESH) {
                if self.is_joined(&known)? {
                    break;
                }
                looked = Some(Instant::now());
            }
            if !self.remove(id, generation, writing)? {
                break;
            }
            done.removed += 1;
            done.freed += self.survey.records.remove(&id).map_or(0, |record| record.size);
            self.survey.problems.remove(&id);
            dirs.insert((id.generation, names::group(id.seq)), id);
        }
        self.clear(dirs.into_values(), &in_use)?;
        let sizes = || self.survey.records.values().map(|record| record.size).sum();
        done.left = self.survey.is_whole().then(sizes);
        Ok(done)
    }

    /// Whether somebody has begun a generation other than these: it may be from what is about to be removed.
    fn is_joined(&self, known: &Generations) -> Result<bool, StoreError> {
        self.history.refresh()?;
        let now = self.history.generations();
        Ok(now.keys().any(|generation| !known.contains_key(generation)))
    }

    /// Removes an object, unless what this process writes is not what it was, or has come to need it.
    fn remove(&self, id: CommitId, own: Option<Ulid>, writing: Option<&Writing>) -> Result<bool, ReadError> {
        let held = writing.map(Writing::lock);
        let stays = held.as_deref().is_some_and(|writing| match writing {
            Some(now) => Some(now.generation) != own || now.needs.contains(&id),
            None => true,
        });
        if !stays {
            self.history.delete(id)?;
        }
        Ok(!stays)
    }

    /// Whether it is so long since anybody committed that the clock may be what is wrong. It is set right within a day.
    fn is_in_doubt(&self, own: Ulid, now: Timestamp) -> bool {
        let (Some(begun), Some(before)) = (survey::begun(own), self.survey.newest_before(own)) else {
            return false;
        };
        begun.duration_since(before) > LONG && now.duration_since(begun) < DAY
    }

    /// Objects of dead writers, as they are now. Damaged ones stay: somebody may want to look at them.
    fn never_finished(&self, now: Timestamp) -> Result<Vec<CommitId>, ReadError> {
        let mut found = Vec::new();
        let torn = self.survey.problems.iter().filter(|(_, problem)| problem.torn);
        for (id, _) in torn {
            let made = match self.history.get(*id) {
                Ok(object) => object.meta().modified().ok(),
                Err(ReadError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            let made = made.and_then(|made| Timestamp::try_from(made).ok());
            let is_old = made.is_some_and(|made| now.duration_since(made) > TORN);
            if is_old && self.history.is_torn(*id)? {
                found.push(*id);
            }
        }
        Ok(found)
    }

    /// Removes the directories of removed commits where nothing is left in them.
    fn clear(&self, removed: impl Iterator<Item = CommitId>, in_use: &BTreeSet<CommitId>) -> Result<(), ReadError> {
        for id in removed {
            let known = self.survey.records.keys().chain(self.survey.problems.keys());
            let all = known.chain(in_use);
            let mut left = all.filter(|left| left.generation == id.generation).peekable();
            if left.peek().is_none() {
                self.history.delete_generation(id.generation)?;
            } else if !left.any(|left| names::group(left.seq) == names::group(id.seq)) {
                self.history.delete_group(id)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::{
        restore::Progress,
        tests::kit::{Kit, picture},
        verify::verify,
    };

    fn later(hours: i64) -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(hours)
    }

    fn own(kit: &Kit) -> Writing {
        Writing::new(Own {
            generation: kit.generation.id(),
            needs: kit.head.needs(),
        })
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
        // What is there only for what others need is not offered, and is no flaw; what is lost is one.
        let flaws = || -> Vec<CommitId> {
            let (listed, problems) = history.list_at(later(2)).unwrap();
            assert_eq!(problems, []);
            let offered = listed.iter().filter(|listed| !listed.remnant);
            let offered: Vec<CommitId> = offered.map(|listed| listed.meta.id).collect();
            assert!((1..listed.len()).contains(&offered.len()), "{offered:?}");
            let flaws = verify(&history, &offered, &Progress::default()).unwrap();
            flaws.into_iter().map(|flaw| flaw.id).collect()
        };
        assert_eq!(flaws(), []);
        let newest = history.load(left[0]).unwrap();
        let needed = newest.objects().keys().find(|object| **object != left[0]);
        let needed = kit.object_path(*needed.unwrap());
        fs::rename(&needed, kit.path("aside")).unwrap();
        assert!(flaws().contains(&left[0]));
        fs::rename(kit.path("aside"), &needed).unwrap();
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

    /// A writer whose newest commit is read by a boot, and is the newest no more by now; and that boot.
    fn overtaken() -> (Kit, CommitId, Kit) {
        let mut old = Kit::new();
        old.write("kept", b"in all of them");
        old.commit();
        old.write("replaced", b"in what the boot has read");
        let base = old.commit();
        let mut new = Kit::new();
        new.history = old.reopened();
        new.head = new.history.load(base).unwrap();
        new.write("replaced", b"in what the boot has read");
        // The first to replace something still names where it was.
        for since in [b"1", b"2"] {
            old.write("replaced", since);
            old.commit();
        }
        (old, base, new)
    }

    #[test]
    fn what_a_boot_restores_is_left_to_it_once_it_says_so() {
        for says in [true, false] {
            let (old, base, mut new) = overtaken();
            new.generation = new.history.begin(Ulid::generate(), Some(base));
            if says {
                new.history.announce(new.generation.id()).unwrap();
            }
            let mut pruner = Pruner::new(old.history.clone());
            // As if it had been told of its own.
            pruner.survey.look(None, later(40 * 24)).unwrap();
            let pruned = pruner.prune(Some(&own(&old)), later(40 * 24)).unwrap();
            assert_eq!(pruned.fenced_by.is_some(), says);
            assert_eq!(old.object_path(base).exists(), says);
            let first = new.commit();
            let flaws = crate::state::verify::verify(&old.reopened(), &[first], &Default::default()).unwrap();
            assert_eq!(flaws.is_empty(), says, "{flaws:?}");
        }
    }

    #[test]
    fn a_boot_that_says_so_while_the_store_is_looked_through_is_seen() {
        let (old, base, mut new) = overtaken();
        let pruner = Pruner::new(old.history.clone());
        let known = old.history.generations();
        assert!(!pruner.is_joined(&known).unwrap());
        new.generation = new.history.begin(Ulid::generate(), Some(base));
        new.history.announce(new.generation.id()).unwrap();
        assert!(pruner.is_joined(&known).unwrap());
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
        assert!(kit.reopened().was_pruned(later(14), SignedDuration::from_hours(2)));
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

    #[test]
    fn an_object_on_its_way_is_left_alone_however_old_its_writer() {
        let mut kit = Kit::new();
        let begun = Timestamp::now() - SignedDuration::from_hours(40 * 24);
        let old = Ulid::from_parts(begun.as_millisecond() as u64, 1);
        kit.generation = kit.history.begin(old, None);
        kit.write("file", b"1");
        kit.commit();
        kit.write("file", b"2");
        let coming = kit.commit();
        let whole = fs::read(kit.object_path(coming)).unwrap();
        fs::write(kit.object_path(coming), b"").unwrap();
        let mut pruner = Pruner::new(kit.reopened());
        pruner.prune(None, later(0)).unwrap();
        fs::write(kit.object_path(coming), whole).unwrap();
        // By now it would be old enough, and is not what it was when it was looked at.
        pruner.prune(None, later(30)).unwrap();
        pruner.prune(None, later(60)).unwrap();
        kit.recover_to("back").unwrap();
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    }

    #[test]
    fn a_mark_of_a_time_to_come_says_nothing() {
        let mut kit = Kit::new();
        for n in 0..20 {
            kit.write("file", format!("{n}"));
            kit.commit();
        }
        kit.history.mark_pruned(later(31 * 24)).unwrap();
        kit.reboot();
        let pruned = Pruner::new(kit.history.clone())
            .prune(Some(&own(&kit)), later(5))
            .unwrap();
        assert!(pruned.removed > 15, "{pruned:?}");
        assert!(kit.reopened().was_pruned(later(5), SignedDuration::from_mins(1)));
    }

    #[test]
    fn a_boot_long_after_the_newest_commit_waits_before_it_removes_anything() {
        let mut kit = Kit::new();
        for n in 0..20 {
            kit.write("file", format!("{n}"));
            kit.commit();
        }
        let days = 31;
        kit.history = kit.reopened();
        let late = Ulid::from_parts(later(days * 24).as_millisecond() as u64, 1);
        kit.generation = kit.history.begin(late, kit.head.id());
        let mut pruner = Pruner::new(kit.history.clone());
        let mut removed = |hours| {
            pruner
                .prune(Some(&own(&kit)), later(days * 24 + hours))
                .unwrap()
                .removed
        };
        assert_eq!(removed(1), 0);
        assert!(removed(25) > 15);
    }

    #[test]
    fn the_line_is_the_one_that_a_boot_follows() {
        let mut kit = Kit::new();
        kit.write("file", b"1");
        let first = kit.commit();
        let old = kit.reopened();
        for n in 0..20 {
            kit.write("file", format!("{n}"));
            kit.commit();
        }
        // Began from the first, and died over its own first.
        let dead = old.begin(Ulid::generate(), Some(first)).next_id();
        let path = kit.path("store").join(old.object(dead).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
        Pruner::new(kit.reopened()).prune(None, later(40 * 24)).unwrap();
        let newest = kit.head.id().unwrap();
        assert_eq!(kit.reopened().restorable().unwrap()[0], newest);
        let (listed, _) = kit.reopened().list().unwrap();
        assert!(listed.iter().any(|listed| listed.meta.id == newest && listed.on_line));
        kit.recover_to("back").unwrap();
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    }

    #[test]
    fn nothing_is_removed_while_what_is_needed_is_about_to_change() {
        let mut kit = Kit::new();
        for n in 0..20 {
            kit.write("file", format!("{n}"));
            kit.commit();
        }
        let writing = own(&kit);
        let mut pruner = Pruner::new(kit.history.clone());
        pruner.survey.look(None, later(5)).unwrap();
        let old = *pruner.survey.records.keys().next().unwrap();
        let removes = |now: Option<Own>| {
            writing.set(now);
            pruner.remove(old, Some(old.generation), Some(&writing)).unwrap()
        };
        let generation = kit.generation.id();
        let needs = |needs: &[CommitId]| needs.iter().copied().collect();
        assert!(!removes(None));
        assert!(!removes(Some(Own {
            generation,
            needs: needs(&[old])
        })));
        assert!(!removes(Some(Own {
            generation: Ulid::generate(),
            needs: needs(&[])
        })));
        assert!(removes(Some(Own {
            generation,
            needs: needs(&[])
        })));
    }
}
