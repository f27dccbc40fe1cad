//! The commits that are in a store: which there are, which of them to follow, reading one, adding one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use ulid::Ulid;

use super::{
    check,
    crypt::Key,
    head::Head,
    lineage::{self, Generations, Stretch},
    model::{CommitId, Meta, Tree},
    names::{self, BEGUN, PRUNED},
    parallel,
    retain::{self, Record, Records},
    segment::{Damage, Info, Opened, Segment, reader::ReadError},
    survey::is_recent,
};
use crate::store::{Object, Store, StoreError};

/// Commits whose descriptions are read before any is looked at: some for each of the threads that read.
const AT_ONCE: usize = 48;

/// An instance's part of a store. Cheap to clone; clones share what is known of it.
#[derive(Clone)]
pub struct History {
    store: Store,
    dir: String,
    key: Option<Key>,
    seen: Arc<Mutex<Seen>>,
}

/// What the last listing showed.
#[derive(Default)]
struct Seen {
    generations: Generations,
    /// Of generations that were asked about, the first commit that is encrypted.
    sealed: BTreeMap<Ulid, Option<CommitId>>,
    /// Each time that somebody looked through the history to prune it.
    pruned: BTreeSet<Ulid>,
}

/// The generation that this process writes.
#[derive(Debug)]
pub struct Generation {
    id: Ulid,
    base: Option<CommitId>,
    seq: u64,
}

impl Generation {
    pub fn id(&self) -> Ulid {
        self.id
    }

    /// What it began from, for [`Meta::base`].
    pub fn base(&self) -> Option<CommitId> {
        self.base
    }

    /// The id of the next commit. An id is given out once, whatever becomes of its commit: a put that failed may
    /// still appear.
    pub fn next_id(&mut self) -> CommitId {
        self.seq += 1;
        CommitId {
            generation: self.id,
            seq: self.seq,
        }
    }
}

/// A commit in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub meta: Meta,
    /// Bytes of its object.
    pub size: u64,
    /// On the line that a boot follows, not on a branch.
    pub on_line: bool,
    /// It cannot be restored any more: retention has left no more of it than what others need.
    pub remnant: bool,
}

/// An object that is no commit, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub object: String,
    pub why: String,
    /// It was never finished, as opposed to damaged.
    pub torn: bool,
}

/// What several commits say about themselves, with the lengths of their objects.
#[derive(Default)]
pub(super) struct Infos {
    pub read: Vec<(Info, u64)>,
    pub problems: Vec<(CommitId, Problem)>,
}

impl History {
    /// Looks which generations there are.
    pub fn open(store: Store, instance: &str, key: Option<Key>) -> Result<History, StoreError> {
        let history = History {
            store,
            dir: names::instance_dir(instance),
            key,
            seen: Arc::default(),
        };
        history.refresh()?;
        Ok(history)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Looks again which generations there are.
    pub fn refresh(&self) -> Result<(), StoreError> {
        let items = self.store.list(&self.dir)?;
        let known = self.generations();
        let mut found = Generations::new();
        for item in items.iter().filter(|item| item.is_dir) {
            let Some((generation, base)) = names::parse_generation(&item.name) else {
                continue;
            };
            // A stray directory is not what new generations are above, for ever.
            let is_strange = !known.contains_key(&generation) && is_to_come(generation);
            if !is_strange || !self.store.list(&format!("{}/{}", self.dir, item.name))?.is_empty() {
                found.insert(generation, base);
            }
        }
        let mut seen = self.lock();
        seen.generations.extend(found);
        let marks = items
            .iter()
            .filter_map(|item| item.name.strip_prefix(PRUNED)?.parse().ok());
        seen.pruned = marks.collect();
        Ok(())
    }

    /// Whether somebody has looked through the whole history to prune it, within `limit` before `now`.
    pub(super) fn was_pruned(&self, now: Timestamp, limit: SignedDuration) -> bool {
        let marks = self
            .lock()
            .pruned
            .iter()
            .copied()
            .filter_map(time_of)
            .collect::<Vec<_>>();
        marks.into_iter().any(|at| is_recent(at, now, limit))
    }

    /// Leaves word that somebody did, where the next listing shows it.
    pub(super) fn mark_pruned(&self, now: Timestamp) -> Result<(), StoreError> {
        let mark = |ulid: Ulid| format!("{}/{PRUNED}{ulid}", self.dir);
        let new = Ulid::from_parts(u64::try_from(now.as_millisecond()).unwrap_or_default(), rand::random());
        self.put_empty(&mark(new))?;
        let old = std::mem::replace(&mut self.lock().pruned, [new].into());
        old.into_iter().try_for_each(|old| self.delete_object(&mark(old)))
    }

    /// The generation that a boot follows instead of `own` once there is a commit in it, if that is a newer one.
    pub(super) fn newer_than(&self, own: Ulid) -> Option<Ulid> {
        let tip = lineage::tip(&self.lock().generations);
        tip.filter(|tip| *tip > own)
    }

    /// The generation that a boot follows although `own` is newer, which began empty.
    pub(super) fn followed_before(&self, own: Ulid) -> Result<Option<Ulid>, StoreError> {
        let mut generations = self.generations();
        while let Some(tip) = lineage::tip(&generations).filter(|tip| *tip < own) {
            if self.is_any_finished(&self.commits(tip)?)? {
                return Ok(Some(tip));
            }
            generations.remove(&tip);
        }
        Ok(None)
    }

    fn put_empty(&self, name: &str) -> Result<(), StoreError> {
        let nothing = File::open("/dev/null").map_err(|source| StoreError::Io {
            what: "opening",
            path: "/dev/null".into(),
            source,
        })?;
        self.store.put(name, &nothing, 0)
    }

    pub fn generations(&self) -> Generations {
        self.lock().generations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line that a boot follows, newest first: a tip in which no commit was ever finished is passed over.
    pub fn line(&self) -> Result<Vec<Stretch>, StoreError> {
        Ok(self.line_and_tip()?.0)
    }

    /// The line, and the commits of its tip by the names of their objects.
    fn line_and_tip(&self) -> Result<(Vec<Stretch>, Vec<CommitId>), StoreError> {
        let mut generations = self.generations();
        loop {
            let line = lineage::line(&generations);
            let Some(tip) = line.first().map(|tip| tip.generation) else {
                return Ok((line, Vec::new()));
            };
            let commits = self.commits(tip)?;
            if self.is_any_finished(&commits)? {
                return Ok((line, commits));
            }
            generations.remove(&tip);
        }
    }

    fn is_any_finished(&self, commits: &[CommitId]) -> Result<bool, StoreError> {
        for id in commits.iter().rev() {
            if !self.is_torn(*id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the object of a commit is not there, or not all of it.
    pub(super) fn is_torn(&self, id: CommitId) -> Result<bool, StoreError> {
        match self.opened(id) {
            Err(ReadError::Damaged { damage, .. }) => Ok(matches!(damage, Damage::Torn | Damage::Missing)),
            Err(ReadError::Store(error)) => Err(error),
            _ => Ok(false),
        }
    }

    /// The commits along the line, newest first, without having looked into them.
    pub fn restorable(&self) -> Result<Vec<CommitId>, StoreError> {
        let (line, tip) = self.line_and_tip()?;
        // Listed once: each listing takes a mount a tenth of a second.
        let mut tip = Some(tip);
        let mut found = Vec::new();
        for stretch in line {
            let commits = tip.take().map_or_else(|| self.commits(stretch.generation), Ok)?;
            found.extend(commits.into_iter().rev().filter(|id| stretch.contains(*id)));
        }
        Ok(found)
    }

    /// The commits of a generation by the names of their objects, oldest first.
    pub fn commits(&self, generation: Ulid) -> Result<Vec<CommitId>, StoreError> {
        let Some(dir) = self.generation_dir(generation) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for group in self.store.list(&dir)?.iter().filter(|item| item.is_dir) {
            let items = self.store.list(&format!("{dir}/{}", group.name))?;
            let seqs = items.iter().filter_map(|item| names::parse_object(&group.name, item));
            found.extend(seqs.map(|seq| CommitId { generation, seq }));
        }
        found.sort();
        Ok(found)
    }

    /// The newest commit of a generation by the names of its objects, without listing all of them.
    pub(super) fn newest(&self, generation: Ulid) -> Result<Option<CommitId>, StoreError> {
        let Some(dir) = self.generation_dir(generation) else {
            return Ok(None);
        };
        let groups = self.store.list(&dir)?;
        for group in groups.iter().rev().filter(|item| item.is_dir) {
            let items = self.store.list(&format!("{dir}/{}", group.name))?;
            let newest = items
                .iter()
                .filter_map(|item| names::parse_object(&group.name, item))
                .max();
            if let Some(seq) = newest {
                return Ok(Some(CommitId { generation, seq }));
            }
        }
        Ok(None)
    }

    /// The name of a commit's object, if its generation is known.
    pub fn object(&self, id: CommitId) -> Option<String> {
        let dir = self.generation_dir(id.generation)?;
        Some(format!("{dir}/{}/{}", names::group(id.seq), names::object(id.seq)))
    }

    /// Whether a commit's object is there, asked of a listing.
    pub(super) fn is_listed(&self, id: CommitId) -> Result<bool, StoreError> {
        let Some(dir) = self.generation_dir(id.generation) else {
            return Ok(false);
        };
        let items = self.store.list(&format!("{dir}/{}", names::group(id.seq)))?;
        Ok(items.iter().any(|item| item.name == names::object(id.seq)))
    }

    /// Removes a commit's object. One that is gone already is removed.
    pub(super) fn delete(&self, id: CommitId) -> Result<(), StoreError> {
        self.object(id).map_or(Ok(()), |name| self.delete_object(&name))
    }

    fn delete_object(&self, name: &str) -> Result<(), StoreError> {
        match self.store.delete(name) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the directory of a commit's group, if it is empty.
    pub(super) fn delete_group(&self, id: CommitId) -> Result<(), StoreError> {
        match self.generation_dir(id.generation) {
            Some(dir) => self.delete_dir(&format!("{dir}/{}", names::group(id.seq))),
            None => Ok(()),
        }
    }

    /// Removes the directories of a generation in which there is no commit, and forgets it.
    pub(super) fn delete_generation(&self, generation: Ulid) -> Result<(), StoreError> {
        let Some(dir) = self.generation_dir(generation) else {
            return Ok(());
        };
        for group in self.store.list(&dir)?.iter().filter(|item| item.is_dir) {
            self.delete_dir(&format!("{dir}/{}", group.name))?;
        }
        self.delete_object(&format!("{dir}/{BEGUN}"))?;
        self.delete_dir(&dir)?;
        self.lock().generations.remove(&generation);
        Ok(())
    }

    fn delete_dir(&self, dir: &str) -> Result<(), StoreError> {
        match self.store.delete_dir(dir) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    fn generation_dir(&self, generation: Ulid) -> Option<String> {
        let base = *self.lock().generations.get(&generation)?;
        Some(format!("{}/{}", self.dir, names::generation(generation, base)))
    }

    /// Opens the object of a commit that should be there.
    pub fn get(&self, id: CommitId) -> Result<Object, ReadError> {
        let name = self
            .object(id)
            .ok_or_else(|| ReadError::damaged(&id.to_string(), Damage::Missing))?;
        self.store.get(&name).map_err(|error| ReadError::of_known(&name, error))
    }

    /// What a commit says about itself.
    pub fn info(&self, id: CommitId) -> Result<(Info, u64), ReadError> {
        let opened = self.opened(id)?;
        Ok((opened.info.clone(), opened.size()))
    }

    /// Opens a commit. With a key none is taken that is not encrypted, but those from before any was: who can write
    /// to the store cannot add to it, nor take what was added for the agent's.
    pub(super) fn opened(&self, id: CommitId) -> Result<Opened<'_>, ReadError> {
        let opened = self.opened_as_it_is(id)?;
        if self.key.is_some() && !opened.is_sealed() && self.is_sealed_before(id)? {
            return Err(self.not_sealed(id));
        }
        Ok(opened)
    }

    fn opened_as_it_is(&self, id: CommitId) -> Result<Opened<'_>, ReadError> {
        Opened::open(self.get(id)?, id, self.key.as_ref())
    }

    fn not_sealed(&self, id: CommitId) -> ReadError {
        ReadError::damaged(&self.object(id).unwrap_or_else(|| id.to_string()), Damage::NotSealed)
    }

    /// Whether a commit older than `id` is encrypted.
    fn is_sealed_before(&self, id: CommitId) -> Result<bool, ReadError> {
        let generations = self.generations().into_keys();
        for generation in generations.take_while(|generation| *generation <= id.generation) {
            if self.first_sealed(generation)?.is_some_and(|first| first < id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn first_sealed(&self, generation: Ulid) -> Result<Option<CommitId>, ReadError> {
        if let Some(known) = self.lock().sealed.get(&generation) {
            return Ok(*known);
        }
        let found = Mutex::new(BTreeSet::new());
        parallel::for_each(&self.commits(generation)?, || {
            |id: &CommitId| match self.opened_as_it_is(*id) {
                Ok(opened) => {
                    if opened.is_sealed() {
                        found.lock().unwrap_or_else(PoisonError::into_inner).insert(*id);
                    }
                    Ok(())
                }
                Err(ReadError::Store(error)) => Err(error),
                Err(_) => Ok(()),
            }
        })?;
        let first = found.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first();
        self.lock().sealed.insert(generation, first);
        Ok(first)
    }

    /// Reads the tree of a commit, checked to be one that can be put on a disk.
    pub fn load(&self, id: CommitId) -> Result<Head, ReadError> {
        let opened = self.opened(id)?;
        let (base, mut chunks) = match opened.info.checkpoint {
            None => (Tree::new(), Vec::new()),
            Some(checkpoint) => {
                let checkpoint = self.opened(checkpoint)?;
                if opened.is_sealed() && !checkpoint.is_sealed() {
                    return Err(self.not_sealed(id));
                }
                if checkpoint.info.checkpoint.is_some() {
                    let damage = Damage::Malformed("its checkpoint is a delta".to_owned());
                    return Err(ReadError::damaged(&id.to_string(), damage));
                }
                checkpoint.tree(Tree::new())?
            }
        };
        let (tree, more) = opened.tree(base)?;
        chunks.extend(more);
        let known: std::collections::HashMap<_, _> = chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)).collect();
        check::tree(&tree, &|hash| known.get(hash).copied())
            .map_err(|bad| ReadError::damaged(&id.to_string(), bad.into()))?;
        let mut sources = opened.info.sources.clone();
        sources[0].size = opened.size();
        Ok(Head::loaded(id, tree, chunks, &sources))
    }

    /// Starts the generation of this boot. Nothing is written before its first commit.
    pub fn begin(&self, proposed: Ulid, base: Option<CommitId>) -> Generation {
        if let Some(object) = base.and_then(|base| self.object(base)) {
            self.store.anchor(&object);
        }
        self.begin_as(|generations| lineage::above(generations, proposed), base)
    }

    /// Starts the generation of an agent that has begun without the store, whatever that turns out to hold: a branch, if that
    /// is a history.
    pub fn begin_apart(&self, proposed: Ulid) -> Generation {
        self.begin_as(|generations| lineage::apart(generations, proposed), None)
    }

    fn begin_as(&self, id: impl FnOnce(&Generations) -> Ulid, base: Option<CommitId>) -> Generation {
        let generations = &mut self.lock().generations;
        let id = id(generations);
        generations.insert(id, base);
        Generation { id, base, seq: 0 }
    }

    /// Lets others see a generation that has committed nothing yet, so that they leave it what it began from.
    pub fn announce(&self, generation: Ulid) -> Result<(), StoreError> {
        let dir = self.generation_dir(generation);
        match dir.map(|dir| self.put_empty(&format!("{dir}/{BEGUN}"))) {
            Some(Err(error)) if !matches!(error, StoreError::Exists { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts a segment into the store; returns when it is there for good. After an error drop the segment and make
    /// the next with a new id: this one's object may yet appear, and may be whole or not.
    pub fn commit(&self, segment: &Segment) -> Result<(), StoreError> {
        let name = self.object(segment.id());
        let name = name.expect("a segment is of a generation that was begun");
        self.store.put(&name, &segment.file, segment.len)?;
        self.store.anchor(&name);
        Ok(())
    }

    /// What each of several commits says about itself.
    pub(super) fn infos(&self, ids: &[CommitId]) -> Result<Infos, ReadError> {
        let found = Mutex::new(Infos::default());
        parallel::for_each(ids, || {
            |id: &CommitId| {
                let result = self.info(*id);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(info) => found.read.push(info),
                    Err(ReadError::Damaged { object, damage }) => {
                        let torn = damage == Damage::Torn;
                        let why = damage.to_string();
                        found.problems.push((*id, Problem { object, why, torn }));
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
        })?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Of commits along a line, newest first, those from the first on that was made at `time` or before. One that does
    /// not say when it was made, being damaged, is told by those around it.
    pub fn until<'a>(&self, ids: &'a [CommitId], time: Timestamp) -> Result<&'a [CommitId], ReadError> {
        let mut later = 0;
        for (n, batch) in ids.chunks(AT_ONCE).enumerate() {
            let read = self.infos(batch)?.read;
            let made = |id: &CommitId| {
                read.iter()
                    .find(|(info, _)| info.meta.id == *id)
                    .map(|(info, _)| info.meta.time)
            };
            for (m, made) in batch.iter().map(made).enumerate() {
                match made {
                    Some(made) if made <= time => return Ok(&ids[later..]),
                    Some(_) => later = n * AT_ONCE + m + 1,
                    None => {}
                }
            }
        }
        Ok(&ids[later..])
    }

    /// Every commit, oldest first, and every object that is none.
    pub fn list(&self) -> Result<(Vec<Listed>, Vec<Problem>), ReadError> {
        self.list_at(Timestamp::now())
    }

    /// The same, with what retention has left at that time.
    pub(super) fn list_at(&self, now: Timestamp) -> Result<(Vec<Listed>, Vec<Problem>), ReadError> {
        self.refresh()?;
        let mut ids = Vec::new();
        for generation in self.generations().into_keys() {
            ids.extend(self.commits(generation)?);
        }
        let Infos { read, problems } = self.infos(&ids)?;
        let line = self.line()?;
        let record =
            |(info, size): &(Info, u64)| (info.meta.id, Record::new(&info.meta, info.needs().collect(), *size));
        let records: Records = read.iter().map(record).collect();
        let remnants = retain::remnants(&records, &ids.into_iter().collect(), &line, now);
        let listed = |(info, size): (Info, u64)| Listed {
            on_line: line.iter().any(|stretch| stretch.contains(info.meta.id)),
            remnant: remnants.contains(&info.meta.id),
            meta: info.meta,
            size,
        };
        let mut listed: Vec<Listed> = read.into_iter().map(listed).collect();
        listed.sort_by_key(|listed| (listed.meta.time, listed.meta.id));
        let mut problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        problems.sort_by(|a, b| a.object.cmp(&b.object));
        Ok((listed, problems))
    }

    /// The commits of which retention has left no more than what others need.
    pub fn remnants(&self) -> Result<BTreeSet<CommitId>, ReadError> {
        let remnants = self.list()?.0.into_iter().filter(|listed| listed.remnant);
        Ok(remnants.map(|listed| listed.meta.id).collect())
    }
}

/// Whether a ULID's time is further ahead than clocks are apart.
fn is_to_come(ulid: Ulid) -> bool {
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    time_of(ulid).is_none_or(|time| time > tomorrow)
}

/// The time in a ULID.
pub(super) fn time_of(ulid: Ulid) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ulid.timestamp_ms()).ok()?).ok()
}
