//! The engine: watches the roots and commits what changes, for ever, on a thread of its own.
//!
//! One thread decides ([`pace`]), captures and commits, one after the other; the watch has another. Calls to the
//! store block this thread and no other. While it is blocked or the store is away, only names of changed paths pile
//! up, and too many of them become one full look.

mod clock;
mod commit;
mod handle;
mod rival;
mod suspicion;
mod upkeep;
mod vigil;

use std::{
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use commit::{FIRST_AGAIN, Failure};
pub use handle::{Answer, EngineHandle, NotCommitted};
use handle::{Command, Last, Line, Told};
use upkeep::Upkeep;
use vigil::Vigil;

use super::{
    capture::Memory,
    changes::{Changes, Depth},
    head::Head,
    history::{Generation, History},
    model::{CommitId, Meta, Reason},
    pace::{self, Input, Pace, Step},
    prune::Own,
    saved::Saved,
    walk::Root,
    watch::Watch,
};
use crate::event::{Event, Events, millis};

/// What the engine is told when it starts.
pub struct Settings {
    /// Asked for before each commit. They need not exist yet; what the snapshot has of one that is no longer among them
    /// stays in it.
    pub roots: Box<dyn FnMut() -> Vec<Root> + Send>,
    pub pace: pace::Settings,
    /// A local directory for segments in the making.
    pub spool: PathBuf,
    /// Where it is noted whether what is on the disk is in a commit.
    pub saved: Saved,
    /// From one full look to the next, as a net under the watch.
    pub rescan: Duration,
    /// Asked for the gateway's version at each commit.
    pub gateway: Box<dyn Fn() -> Option<String> + Send>,
}

/// [`Settings::rescan`] where nothing else is asked for.
pub const RESCAN: Duration = Duration::from_secs(300);
/// How often a root that does not exist is looked for: nothing can be watched where nothing is.
const ROOT_POLL: Duration = Duration::from_secs(1);
/// At most one [`Event::SnapshotPending`] in this time while changes pile up.
const PENDING_EVERY: Duration = Duration::from_secs(1);
/// After a failure of the engine itself.
const BREATH: Duration = Duration::from_millis(500);

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
    let own = Own {
        generation: generation.id(),
        needs: head.needs(),
    };
    let upkeep = Upkeep::start(history.clone(), own, events.clone(), send.clone())?;
    let told = Arc::<Told>::default();
    let vigil = Vigil::start(vigil::PATIENCE, Arc::clone(&told), events.clone())?;
    let line = Line {
        commands: send.clone(),
        told: Arc::clone(&told),
    };
    let engine = Engine {
        settings,
        upkeep,
        vigil,
        history,
        generation,
        next: None,
        head,
        events,
        commands,
        watch: watch(&send),
        wake: send,
        roots: Vec::new(),
        memory: Memory::default(),
        pending: Changes::default(),
        pending_said: None,
        told,
        pace: Pace::default(),
        waiting: Vec::new(),
        finishing: None,
        paused: false,
        first: true,
        branched: false,
        last: None,
        away: None,
        missing: Vec::new(),
        blind: None,
        again: Changes::default(),
        incomplete: false,
        again_at: None,
        again_wait: FIRST_AGAIN,
        skipped: 0,
        rescan_at: Instant::now() + RESCAN,
        tidy_at: None,
    };
    std::thread::Builder::new()
        .name("state-engine".into())
        .spawn(move || engine.run())?;
    Ok(EngineHandle(Arc::new(line)))
}

fn watch(wake: &Sender<Command>) -> Watch {
    let wake = wake.clone();
    Watch::start(move || {
        let _ = wake.send(Command::Wake);
    })
}

struct Engine {
    settings: Settings,
    upkeep: Upkeep,
    vigil: Vigil,
    history: History,
    generation: Generation,
    /// An id that was given out and not used.
    next: Option<CommitId>,
    head: Head,
    events: Events,
    commands: Receiver<Command>,
    watch: Watch,
    wake: Sender<Command>,
    roots: Vec<Root>,
    memory: Memory,
    /// What changed and is not committed.
    pending: Changes,
    pending_said: Option<Instant>,
    told: Arc<Told>,
    pace: Pace,
    /// Who waits for the next commit.
    waiting: Vec<oneshot::Sender<Answer>>,
    finishing: Option<Last>,
    paused: bool,
    /// Nothing has been captured yet in this generation.
    first: bool,
    /// The generation began from a live restore, and has no commit yet: a boot follows it only once it has one.
    branched: bool,
    last: Option<Meta>,
    /// Since when the store is not available.
    away: Option<Instant>,
    /// Roots that are not there.
    missing: Vec<String>,
    /// Why some directories are not watched, as said last.
    blind: Option<String>,
    /// Sockets, pipes and devices, as said last.
    skipped: u64,
    /// What could not be captured, to be looked at again.
    again: Changes,
    /// Some of that is not in the last commit as it was when that began.
    incomplete: bool,
    again_at: Option<Instant>,
    again_wait: Duration,
    rescan_at: Instant,
    /// When to see whether the store is to be tidied.
    tidy_at: Option<Instant>,
}

impl Engine {
    fn run(mut self) {
        // The first look is not paced: whatever differs from what was restored is committed at once.
        self.pending.lost("first look");
        self.pace.apply(Input::Asked, Instant::now());
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(panic) => {
                    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                    self.start_over(text.unwrap_or_default());
                }
            }
        }
    }

    /// After a fault of ours nothing that is remembered is worth anything; what is on disk and in the store is.
    fn start_over(&mut self, why: String) {
        std::thread::sleep(BREATH);
        self.memory.distrust();
        self.next = None;
        self.pending.lost("begun anew");
        self.failed(&Failure::Fault(why));
        self.say_pending();
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
        self.tidy(Instant::now());
        if let Some(last) = self.finishing.take_if(|last| last.deadline <= now) {
            self.answer_last(last, Err(self.told.too_late()))?;
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
        let deadline = self.finishing.as_ref().map(|last| last.deadline);
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
        [
            deadline,
            paced,
            poll,
            self.again_at,
            self.tidy_due(),
            Some(self.rescan_at),
        ]
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
            Command::Commit(reply) if self.paused => {
                let _ = reply.send(Err(NotCommitted::Paused));
            }
            Command::Commit(reply) => {
                self.waiting.push(reply);
                self.pace.apply(Input::Asked, now);
            }
            Command::Last(last) if self.paused => {
                // Somebody is replacing the roots; half of that, or what may be taken back, is nothing to commit.
                tracing::warn!("nothing is committed of a restore that has not been seen to work");
                let newest = self.newest();
                self.answer_last(last, Ok(newest))?;
            }
            Command::Last(last) => {
                self.finishing = Some(last);
                self.upkeep.look();
                self.pace.apply(Input::Asked, now);
            }
            Command::Pause(reply) => {
                self.paused = true;
                self.upkeep.pause();
                for waiting in self.waiting.drain(..) {
                    let _ = waiting.send(Err(NotCommitted::Paused));
                }
                let _ = reply.send(());
            }
            Command::Resume(restored) => {
                self.paused = false;
                if let Some((generation, head)) = restored.map(|restored| *restored) {
                    (self.generation, self.next, self.head) = (generation, None, head);
                    (self.memory, self.first, self.last) = (Memory::default(), true, None);
                    self.branched = true;
                    // The one before watches what was moved aside.
                    self.watch = watch(&self.wake);
                }
                self.upkeep.begun(self.own());
                self.look_at_all("resumed");
            }
            Command::Broken(objects) => {
                let needed = self.head.needs();
                let broken = objects.into_iter().filter(|object| needed.contains(object));
                self.lose(broken.map(|object| (object, self.head.held_by(object))).collect());
            }
            Command::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn find_roots(&mut self) {
        let roots = (self.settings.roots)();
        if roots != self.roots {
            // The one before may watch what is of no interest any more.
            self.watch = watch(&self.wake);
            self.roots = roots;
            self.pending.lost("other roots");
        }
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
        let roots = self.roots.iter();
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
        let is_first = self.pending.is_empty() && self.again.is_empty();
        self.pending.merge(changes);
        self.pace.apply(Input::Changed, now);
        if is_first || self.pending_said.is_none_or(|said| now >= said + PENDING_EVERY) {
            self.say_pending();
        }
    }

    /// Says how much is not in the last commit: what has changed since, and what could not be captured for it.
    fn say_pending(&mut self) {
        self.pending_said = Some(Instant::now());
        let oldest = self.pending.since.into_iter().chain(self.again.since).min();
        let paths = (self.pending.count() + self.again.count()) as u64;
        self.told.pending.store(paths, Ordering::Relaxed);
        self.events.emit(Event::SnapshotPending {
            paths,
            oldest_ms: millis(oldest.map_or(Duration::ZERO, |since| since.elapsed())),
            warnings: self.warnings(),
        });
    }

    /// One commit, told to whoever waits for it. Over after the last one.
    fn commit_and_answer(&mut self) -> ControlFlow<()> {
        self.find_roots();
        self.pending.merge(self.watch.take());
        // It may take as long as the store hangs.
        self.say_pending();
        self.pace.apply(Input::Started, Instant::now());
        let waiting = std::mem::take(&mut self.waiting);
        let reason = match (&self.finishing, self.first, waiting.is_empty()) {
            (Some(_), ..) => Reason::Final,
            (None, true, _) => Reason::Boot,
            (None, false, false) => Reason::Manual,
            (None, false, true) => Reason::Change,
        };
        let asked = !waiting.is_empty() || self.finishing.is_some();
        let done = if asked {
            self.commit_all(reason)
        } else {
            self.commit(reason)
        };
        let answer: Answer = match done {
            Ok(()) => {
                self.pace.apply(Input::Succeeded, Instant::now());
                self.told.set_failure(None);
                self.recovered();
                // What is named and not looked at again is not ours to capture.
                let lacks = self.incomplete || !self.again.is_empty() && !self.warnings().is_empty();
                self.settings.saved.set(self.head.id().filter(|_| !lacks));
                Ok(self.answer())
            }
            Err(failure) => Err(NotCommitted::Failed(self.failed(&failure))),
        };
        let meanwhile = self.watch.take();
        self.add(meanwhile);
        self.say_pending();
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
        match self.finishing.take_if(|_| answer.is_ok()) {
            Some(last) => self.answer_last(last, answer),
            None => ControlFlow::Continue(()),
        }
    }

    fn answer_last(&mut self, last: Last, answer: Answer) -> ControlFlow<()> {
        let _ = last.reply.send(answer);
        // There is one more to come, which is not to wait for this.
        self.tidy_at = None;
        if last.ends {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[cfg(test)]
mod tests;
