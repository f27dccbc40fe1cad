//! Making one commit.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use ulid::Ulid;

use super::{Engine, handle::Why, suspicion};
use crate::{
    event::{Event, millis},
    state::{
        capture::{self, Captured},
        changes::Changes,
        compact::{self, CompactError, compact},
        head::Lost,
        model::{CommitId, Meta, Reason, TreePath},
        pace::{Input, Step},
        prune::Own,
        retain::Record,
        segment::{Segment, SegmentError, SegmentWriter, reader::ReadError},
    },
    store::StoreError,
};

/// Until what could not be captured is looked at again; doubles as long as it goes on.
pub(super) const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LAST_AGAIN: Duration = Duration::from_secs(30);
/// Between full looks while some directories cannot be watched.
const BLIND_RESCAN: Duration = Duration::from_secs(5);
/// The store is tidied after this long without a commit, and tried again this long after a failure.
const IDLE: Duration = Duration::from_secs(5);
const TIDY_RETRY: Duration = Duration::from_secs(300);
/// Without waiting for that, when this many objects are to be gathered.
const MOST_OBJECTS: usize = 256;

/// Times that what is locked or changing is looked at again before somebody who waits is told that it is not in, and
/// how long its user is given to be done with it.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Captures for one commit, while things go where they may not be seen again.
const CAPTURES: u32 = 5;

/// Why a commit failed. What it was to hold is captured again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("a fault in moltinit itself, after which it looks at everything anew: {0}")]
    Fault(String),
}

impl Engine {
    /// The newest commit. One that this process did not make is looked up.
    pub(super) fn newest(&mut self) -> Option<Meta> {
        let id = self.head.id()?;
        if self.last.is_none() {
            self.last = self.history.info(id).ok().map(|(info, _)| info.meta);
        }
        self.last.clone()
    }

    /// The newest commit, with what it does not have as it is now: nothing may have been committed since that showed.
    pub(super) fn answer(&mut self) -> Option<Meta> {
        let mut warnings = self.warnings();
        if warnings.is_empty() && self.incomplete {
            warnings
                .push("something went on changing its place while it was looked at, and is as it was before".into());
        }
        self.newest().map(|meta| Meta { warnings, ..meta })
    }

    /// What the newest commit does not have as it is now, a line each.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings_with(&capture::Update::default())
    }

    /// The same, with what `update` is about to say.
    fn warnings_with(&self, update: &capture::Update) -> Vec<String> {
        let lost = self.head.lost();
        let lost = lost.keys().next().map(|first| {
            let (objects, chunks) = (lost.len(), lost.values().map(BTreeSet::len).sum::<usize>());
            format!(
                "the store has lost {chunks} chunks in {objects} objects ({first} is the first); snapshots that need \
                 them cannot be restored, and the next one has them again from the disk"
            )
        });
        lost.into_iter().chain(self.memory.warnings(update)).collect()
    }

    /// What the store has lost is put again from the disk, by a commit that looks at everything.
    pub(super) fn lose(&mut self, lost: Lost) {
        if lost.is_empty() {
            return;
        }
        self.head.lose(lost);
        self.memory.distrust();
        self.tidy_at = None;
        self.look_at_all("the store has lost something");
        self.say_pending();
    }

    pub(super) fn recovered(&mut self) {
        if let Some(since) = self.away.take() {
            self.events.emit(Event::StoreRecovered {
                away_ms: millis(since.elapsed()),
            });
        }
    }

    pub(super) fn failed(&mut self, failure: &Failure) -> Why {
        self.settings.saved.set(None);
        let now = Instant::now();
        let (jitter, last) = (rand::random(), self.finishing.is_some());
        self.pace.apply(Input::Failed { jitter, last }, now);
        let why = failure.to_string();
        let told = Why {
            text: why.as_str().into(),
            is_of_store: matches!(failure, Failure::Store(_)),
        };
        self.told.set_failure(Some(told.clone()));
        if matches!(failure, Failure::Store(_)) && self.away.is_none() {
            self.away = Some(now);
            self.events.emit(Event::StoreUnavailable { why: why.clone() });
        }
        let retry_in_ms = millis(self.pace.retry_in(now));
        self.events.emit(Event::SnapshotFailed { why, retry_in_ms });
        told
    }

    /// A commit that somebody waits for, who is told that everything up to now is in. So all is looked at: nobody tells of
    /// what is written through a memory map or by a name that is gone, nor of what happens where nothing is watched. And a
    /// database that was locked for a moment is not left for a later one.
    pub(super) fn commit_all(&mut self, reason: Reason) -> Result<(), Failure> {
        self.memory.forget_readings();
        self.pending.lost("asked for");
        self.commit(reason)?;
        for _ in 0..TRIES {
            if !self.incomplete {
                break;
            }
            std::thread::sleep(TRY_AGAIN);
            self.commit(reason)?;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, reason: Reason) -> Result<(), Failure> {
        if self.away.is_some() {
            // Reading everything again is for nothing as long as there is nowhere to put it.
            self.history.store().check()?;
            if self.history.store().stuck() > 0 {
                // A mount that hangs is where it has to be. It is given no more before it answers.
                self.history.refresh()?;
            }
        }
        let mut changes = std::mem::take(&mut self.pending);
        changes.merge(self.watch.take());
        if reason != Reason::Change {
            changes.merge(std::mem::take(&mut self.again));
        }
        let done = self.commit_changes(reason, &mut changes);
        if let Err(failure) = &done {
            if matches!(failure, Failure::Segment(SegmentError::Tree(_))) {
                // What is remembered does not fit what is there.
                self.memory.distrust();
                changes.lost("the changes did not make a tree");
            }
            self.pending.merge(changes);
        }
        done
    }

    fn commit_changes(&mut self, reason: Reason, changes: &mut Changes) -> Result<(), Failure> {
        let (began, time) = (Instant::now(), Timestamp::now());
        // Whoever is about to stop leaves the line as it is.
        if reason != Reason::Final && self.upkeep.is_to_begin_anew() {
            self.begin_anew();
        }
        let id = self.next.take().unwrap_or_else(|| self.generation.next_id());
        let (writer, captured) = self.capture(id, changes)?;
        let Captured {
            delta,
            update,
            again,
            incomplete,
            missing,
            skipped,
            ..
        } = captured;
        if delta.upsert.is_empty() && delta.remove.is_empty() && !self.branched && self.head.lost().is_empty() {
            self.next = Some(id);
        } else {
            let before = self.head.totals();
            let suspicious = suspicion::suspicious(before, self.head.totals_after(&delta));
            let warnings = self.warnings_with(&update);
            let meta = Meta {
                id,
                suspicious,
                warnings,
                ..self.meta(reason, time)
            };
            let segment = writer.finish(meta, delta)?;
            self.put(segment, began)?;
        }
        self.first = false;
        self.memory.apply(update);
        self.missing = missing;
        self.incomplete = incomplete;
        self.look_later(again);
        self.say_skipped(skipped);
        self.say_blind(began.elapsed());
        Ok(())
    }

    /// Captures again where something is removed that may have another name, under which it was not seen, since it came to a
    /// directory that is not watched after that had been listed. Whatever is known to be gone before all directories are
    /// listed is gone, or is found. What goes all the time stays until the next commit.
    fn capture(&self, id: CommitId, changes: &mut Changes) -> Result<(SegmentWriter<'_>, Captured), SegmentError> {
        let _under_way = self.vigil.begin();
        let mut tries = 1;
        let mut known = BTreeSet::new();
        loop {
            if changes.rescan.is_some() {
                self.watch.forget_blindness();
            }
            let mut writer = SegmentWriter::new(&self.head, &self.settings.spool, id, self.history.key())?;
            let roots = &self.roots;
            let last = (tries >= CAPTURES).then_some(&known);
            let captured = capture::capture(roots, &self.head, &self.memory, &self.watch, changes, &mut writer, last)?;
            let is_known = |path: &TreePath| known.contains(path);
            if self.watch.blind().is_none() || captured.delta.remove.iter().all(is_known) || last.is_some() {
                return Ok((writer, captured));
            }
            changes.lost("something may have gone where nothing is watched");
            known = captured.delta.remove.into_iter().collect();
            tries += 1;
        }
    }

    /// What is said about a commit that is about to be made; its id and what follows from its content is filled in
    /// by others.
    fn meta(&self, reason: Reason, time: Timestamp) -> Meta {
        Meta {
            id: CommitId {
                generation: self.generation.id(),
                seq: 0,
            },
            parent: None,
            base: self.generation.base(),
            time,
            reason,
            moltinit: env!("CARGO_PKG_VERSION").into(),
            gateway: (self.settings.gateway)(),
            files: 0,
            bytes: 0,
            suspicious: None,
            warnings: Vec::new(),
        }
    }

    pub(super) fn own(&self) -> Own {
        Own {
            generation: self.generation.id(),
            needs: self.head.needs(),
        }
    }

    /// Goes on in a generation that is newer than that of a rival who has ended.
    fn begin_anew(&mut self) {
        self.generation = self.history.begin(Ulid::generate(), self.head.id());
        self.next = None;
        self.upkeep.own(self.own());
        tracing::warn!(generation = %self.generation.id(), "the other supervisor is silent; the commits made here are the ones to follow again");
    }

    /// Puts a segment into the store and goes on from it.
    fn put(&mut self, segment: Segment, began: Instant) -> Result<(), StoreError> {
        self.history.commit(&segment)?;
        let (meta, stored_bytes, record) = (segment.meta().clone(), segment.size(), Record::of(&segment));
        self.head.advance(segment);
        self.branched = false;
        self.upkeep.committed(meta.id, record, self.own());
        self.say_committed(&meta, stored_bytes, began);
        self.last = Some(meta);
        self.tidy_at = Some(Instant::now() + IDLE);
        Ok(())
    }

    /// When to see whether the store is to be tidied.
    pub(super) fn tidy_due(&self) -> Option<Instant> {
        let may = !self.paused && self.finishing.is_none() && self.away.is_none();
        self.tidy_at.filter(|_| may)
    }

    /// Gathers what is scattered over many objects, when nobody is waiting for a commit.
    pub(super) fn tidy(&mut self, now: Instant) {
        let Some(at) = self.tidy_due() else { return };
        let due = compact::due(self.head.objects()).len();
        if due < MOST_OBJECTS {
            if at > now {
                return;
            }
            if self.pace.step(&self.settings.pace, now) != Step::Wait {
                self.tidy_at = Some(now + IDLE);
                return;
            }
        }
        self.tidy_at = None;
        if due == 0 {
            return;
        }
        if let Err(error) = self.compact() {
            tracing::warn!(%error, "the store could not be tidied; tried again later");
            self.tidy_at = Some(Instant::now() + TIDY_RETRY);
            if let CompactError::Lost(lost) = error {
                self.lose(lost);
            }
        }
    }

    fn compact(&mut self) -> Result<(), CompactError> {
        let began = Instant::now();
        let id = self.next.take().unwrap_or_else(|| self.generation.next_id());
        let meta = self.meta(Reason::Compact, Timestamp::now());
        if let Some(segment) = compact(&self.history, &self.head, &self.settings.spool, id, meta)? {
            self.put(segment, began).map_err(ReadError::Store)?;
        }
        Ok(())
    }

    fn say_committed(&self, meta: &Meta, stored_bytes: u64, began: Instant) {
        self.events.emit(Event::SnapshotCommitted {
            commit: meta.id,
            parent: meta.parent,
            files: meta.files,
            state_bytes: meta.bytes,
            stored_bytes,
            operations: self.history.store().operations(stored_bytes),
            took_ms: millis(began.elapsed()),
            warnings: meta.warnings.clone(),
        });
        if let Some(why) = meta.suspicious.clone() {
            self.events.emit(Event::SnapshotSuspicious { commit: meta.id, why });
        }
    }

    fn look_later(&mut self, again: Changes) {
        self.again.merge(again);
        if self.again.is_empty() {
            self.again_wait = FIRST_AGAIN;
        } else if self.again_at.is_none() {
            self.again_at = Some(Instant::now() + self.again_wait);
            self.again_wait = (2 * self.again_wait).min(LAST_AGAIN);
        }
    }

    fn say_skipped(&mut self, skipped: Option<u64>) {
        if let Some(skipped) = skipped.filter(|skipped| *skipped != self.skipped) {
            tracing::info!(skipped, "sockets, pipes and devices are not part of a snapshot");
            self.skipped = skipped;
        }
    }

    /// Scans more often while some directories are not watched, the less often the longer that takes.
    fn say_blind(&mut self, took: Duration) {
        let blind = self.watch.blind();
        if let Some(why) = &blind {
            let soon = Instant::now() + BLIND_RESCAN.max(20 * took);
            self.rescan_at = self.rescan_at.min(soon);
            if self.blind != blind {
                tracing::warn!(why, "changes are found by scanning");
            }
        }
        self.blind = blind;
    }
}
