//! The engine: watches the roots and commits what changes, for ever, on a thread of its own.
//!
//! One thread decides ([`pace`]), captures and commits, one after the other; the watch has another. Calls to the
//! store block this thread and no other. While it is blocked or the store is away, only names of changed paths pile
//! up, and too many of them become one full look.

mod handle;
mod suspicion;

use std::{
    io,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::oneshot;

use handle::{Answer, Command, Line};
pub use handle::{EngineHandle, NotCommitted};

use super::{
    capture::{self, Captured, Memory},
    head::Head,
    history::{Generation, History},
    model::{CommitId, Meta, Reason},
    pace::{self, Input, Pace, Step},
    segment::{SegmentError, SegmentWriter},
    walk::Root,
    watch::{Changes, Depth, Watch},
};
use crate::{
    event::{Event, Events, millis},
    store::StoreError,
};

/// What the engine is told when it starts.
pub struct Settings {
    /// Need not exist yet.
    pub roots: Vec<Root>,
    pub pace: pace::Settings,
    /// A local directory for segments in the making.
    pub spool: PathBuf,
    /// From one full look to the next, as a net under the watch.
    pub rescan: Duration,
    /// Asked for the gateway's version at each commit.
    pub gateway: Box<dyn Fn() -> Option<String> + Send>,
}

/// [`Settings::rescan`] where nothing else is asked for.
pub const RESCAN: Duration = Duration::from_secs(300);
/// Between full looks while some directories cannot be watched.
const BLIND_RESCAN: Duration = Duration::from_secs(5);
/// How often a root that does not exist is looked for: nothing can be watched where nothing is.
const ROOT_POLL: Duration = Duration::from_secs(1);
/// Until what could not be captured is looked at again; doubles as long as it goes on.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LAST_AGAIN: Duration = Duration::from_secs(30);
/// At most one [`Event::SnapshotPending`] in this time while changes pile up.
const PENDING_EVERY: Duration = Duration::from_secs(1);

/// Starts watching and committing. `head` is what the roots have just been restored to, `generation` begun from it.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(
    settings: Settings,
    history: History,
    generation: Generation,
    head: Head,
    events: Events,
) -> io::Result<EngineHandle> {
    let (send, commands) = mpsc::channel();
    let waker = send.clone();
    let watch = Watch::start(move || {
        let _ = waker.send(Command::Wake);
    });
    let now = Instant::now();
    let engine = Engine {
        settings,
        history,
        generation,
        next: None,
        head,
        events,
        commands,
        watch,
        memory: Memory::default(),
        pending: Changes::default(),
        pending_said: None,
        pace: Pace::default(),
        waiting: Vec::new(),
        finishing: None,
        paused: false,
        first: true,
        last: None,
        away: None,
        missing: Vec::new(),
        blind: None,
        again: Changes::default(),
        again_at: None,
        again_wait: FIRST_AGAIN,
        rescan_at: now,
        last_failure: "none was made".into(),
    };
    std::thread::Builder::new()
        .name("state-engine".into())
        .spawn(move || engine.run())?;
    Ok(EngineHandle(Arc::new(Line(send))))
}

struct Engine {
    settings: Settings,
    history: History,
    generation: Generation,
    /// An id that was given out and not used.
    next: Option<CommitId>,
    head: Head,
    events: Events,
    commands: Receiver<Command>,
    watch: Watch,
    memory: Memory,
    /// What changed and is not committed.
    pending: Changes,
    pending_said: Option<Instant>,
    pace: Pace,
    /// Who waits for the next commit.
    waiting: Vec<oneshot::Sender<Answer>>,
    finishing: Option<(Instant, oneshot::Sender<Answer>)>,
    paused: bool,
    /// Nothing has been captured yet in this generation.
    first: bool,
    last: Option<Meta>,
    /// Since when the store is not available.
    away: Option<Instant>,
    /// Roots that are not there.
    missing: Vec<String>,
    /// Why some directories are not watched, as said last.
    blind: Option<String>,
    /// What could not be captured, to be looked at again.
    again: Changes,
    again_at: Option<Instant>,
    again_wait: Duration,
    rescan_at: Instant,
    last_failure: Arc<str>,
}

/// Why a commit failed. What it was to hold is captured again.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl Engine {
    fn run(mut self) {
        // The first look is not paced: whatever differs from what was restored is committed at once.
        self.pending.lost("first look");
        self.pace.apply(Input::Asked, Instant::now());
        while self.turn().is_continue() {}
    }

    /// Does what is due, then waits for the next command or the next thing that is due.
    fn turn(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        if !self.paused {
            self.look_at_clock(now);
            if self.pace.step(&self.settings.pace, now) == Step::Commit {
                self.commit_and_answer()?;
            }
        }
        if let Some((_, reply)) = self.finishing.take_if(|(deadline, _)| *deadline <= now) {
            let _ = reply.send(Err(NotCommitted::TooLate(self.last_failure.clone())));
            return ControlFlow::Break(());
        }
        match self.next_due() {
            Some(due) => match self
                .commands
                .recv_timeout(due.saturating_duration_since(Instant::now()))
            {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
            },
            None => self
                .commands
                .recv()
                .map_or(ControlFlow::Break(()), |command| self.obey(command)),
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let deadline = self.finishing.as_ref().map(|(deadline, _)| *deadline);
        if self.paused {
            return deadline;
        }
        let now = Instant::now();
        let paced = match self.pace.step(&self.settings.pace, now) {
            Step::Commit => Some(now),
            Step::WaitUntil(at) => Some(at),
            Step::Wait => None,
        };
        let poll = (!self.missing.is_empty()).then(|| now + ROOT_POLL);
        [deadline, paced, poll, self.again_at, Some(self.rescan_at)]
            .into_iter()
            .flatten()
            .min()
    }

    fn obey(&mut self, command: Command) -> ControlFlow<()> {
        let now = Instant::now();
        match command {
            Command::Wake => {
                let changes = self.watch.take();
                self.add(changes);
            }
            Command::Commit(reply) => {
                self.waiting.push(reply);
                self.pace.apply(Input::Asked, now);
            }
            Command::Finish { reply, .. } if self.paused => {
                // Somebody is replacing the roots; half of that is nothing to commit.
                let _ = reply.send(Ok(self.newest()));
                return ControlFlow::Break(());
            }
            Command::Finish { deadline, reply } => {
                self.finishing = Some((deadline, reply));
                self.pace.apply(Input::Asked, now);
            }
            Command::Pause(reply) => {
                self.paused = true;
                let _ = reply.send(());
            }
            Command::Resume(restored) => {
                self.paused = false;
                if let Some((generation, head)) = restored.map(|restored| *restored) {
                    (self.generation, self.next, self.head) = (generation, None, head);
                    (self.memory, self.first, self.last) = (Memory::default(), true, None);
                }
                self.look_at_all("resumed");
            }
            Command::Roots(roots) => {
                self.settings.roots = roots;
                self.look_at_all("other roots");
            }
            Command::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn look_at_all(&mut self, why: &'static str) {
        let mut all = Changes::default();
        all.lost(why);
        self.add(all);
    }

    /// What is due at a time rather than on a command.
    fn look_at_clock(&mut self, now: Instant) {
        if self.again_at.take_if(|at| *at <= now).is_some() {
            let again = std::mem::take(&mut self.again);
            self.add(again);
        }
        if self.rescan_at <= now {
            self.rescan_at = now + self.settings.rescan;
            self.look_at_all("routine look");
        }
        let roots = self.settings.roots.iter();
        let back = roots.filter(|root| self.missing.contains(&root.name) && root.path.is_dir());
        let mut found = Changes::default();
        back.for_each(|root| found.add(root.name.clone().into_bytes(), Depth::Below));
        if !found.is_empty() {
            self.missing.clear();
            self.add(found);
        }
    }

    fn add(&mut self, changes: Changes) {
        if changes.is_empty() {
            return;
        }
        let now = Instant::now();
        self.pending.merge(changes);
        self.pace.apply(Input::Changed, now);
        if self.pending_said.is_none_or(|said| now >= said + PENDING_EVERY) {
            self.say_pending(now);
        }
    }

    fn say_pending(&mut self, now: Instant) {
        self.pending_said = Some(now);
        let waiting = self
            .pace
            .waiting_since()
            .map(|since| now.saturating_duration_since(since));
        self.events.emit(Event::SnapshotPending {
            paths: self.pending.paths.len() as u64 + u64::from(self.pending.rescan.is_some()),
            oldest_ms: millis(waiting.unwrap_or_default()),
        });
    }

    /// One commit, told to whoever waits for it. Over after the last one.
    fn commit_and_answer(&mut self) -> ControlFlow<()> {
        self.pace.apply(Input::Started, Instant::now());
        let waiting = std::mem::take(&mut self.waiting);
        let reason = match (&self.finishing, self.first, waiting.is_empty()) {
            (Some(_), ..) => Reason::Final,
            (None, true, _) => Reason::Boot,
            (None, false, false) => Reason::Manual,
            (None, false, true) => Reason::Change,
        };
        let answer: Answer = match self.commit(reason) {
            Ok(()) => {
                self.pace.apply(Input::Succeeded, Instant::now());
                self.recovered();
                Ok(self.newest())
            }
            Err(failure) => Err(NotCommitted::Failed(self.failed(&failure))),
        };
        self.say_pending(Instant::now());
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
        match self.finishing.take_if(|_| answer.is_ok()) {
            Some((_, reply)) => {
                let _ = reply.send(answer);
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        }
    }

    /// The newest commit. One that this process did not make is looked up.
    fn newest(&mut self) -> Option<Meta> {
        let id = self.head.id()?;
        if self.last.is_none() {
            self.last = self.history.info(id).ok().map(|(info, _)| info.meta);
        }
        self.last.clone()
    }

    fn recovered(&mut self) {
        if let Some(since) = self.away.take() {
            self.events.emit(Event::StoreRecovered {
                away_ms: millis(since.elapsed()),
            });
        }
    }

    fn failed(&mut self, failure: &Failure) -> Arc<str> {
        let now = Instant::now();
        self.pace.apply(Input::Failed { jitter: rand::random() }, now);
        let why: Arc<str> = failure.to_string().into();
        self.last_failure = why.clone();
        if matches!(failure, Failure::Store(_)) && self.away.is_none() {
            self.away = Some(now);
            self.events.emit(Event::StoreUnavailable { why: why.to_string() });
        }
        let retry_in_ms = millis(self.pace.retry_in(now));
        self.events.emit(Event::SnapshotFailed {
            why: why.to_string(),
            retry_in_ms,
        });
        why
    }

    fn commit(&mut self, reason: Reason) -> Result<(), Failure> {
        if self.away.is_some() {
            // Reading everything again is for nothing as long as there is nowhere to put it.
            self.history.store().check()?;
        }
        let mut changes = std::mem::take(&mut self.pending);
        changes.merge(self.watch.take());
        if matches!(reason, Reason::Manual | Reason::Final) {
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
        if changes.rescan.is_some() {
            self.watch.forget_blindness();
        }
        let id = self.next.take().unwrap_or_else(|| self.generation.next_id());
        let mut writer = SegmentWriter::new(&self.head, &self.settings.spool, id, self.history.key())?;
        let roots = &self.settings.roots;
        let captured = capture::capture(roots, &self.head, &self.memory, &self.watch, changes, &mut writer)?;
        let Captured {
            delta,
            update,
            again,
            missing,
        } = captured;
        if delta.upsert.is_empty() && delta.remove.is_empty() {
            self.next = Some(id);
        } else {
            let before = self.head.totals();
            let suspicious = suspicion::suspicious(before, self.head.totals_after(&delta));
            let meta = Meta {
                id,
                parent: None,
                base: self.generation.base(),
                time,
                reason,
                moltinit: env!("CARGO_PKG_VERSION").into(),
                gateway: (self.settings.gateway)(),
                files: 0,
                bytes: 0,
                suspicious,
                warnings: self.memory.warnings(&update),
            };
            let segment = writer.finish(meta, delta)?;
            self.history.commit(&segment)?;
            let (meta, stored_bytes) = (segment.meta().clone(), segment.size());
            self.head.advance(segment);
            self.say_committed(&meta, stored_bytes, began);
            self.last = Some(meta);
        }
        self.first = false;
        self.memory.apply(update);
        self.missing = missing;
        self.look_later(again);
        self.say_blind(began.elapsed());
        Ok(())
    }

    fn say_committed(&self, meta: &Meta, stored_bytes: u64, began: Instant) {
        self.events.emit(Event::SnapshotCommitted {
            commit: meta.id,
            parent: meta.parent,
            files: meta.files,
            state_bytes: meta.bytes,
            stored_bytes,
            operations: 1,
            took_ms: millis(began.elapsed()),
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

#[cfg(test)]
mod campaign;
#[cfg(test)]
mod tests;
