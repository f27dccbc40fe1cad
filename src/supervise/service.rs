//! One service: a task that tells its [`Machine`] what happens and does what it asks for.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jiff::Timestamp;
use nix::unistd::Pid;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, info, warn};

use crate::{
    config::service::Service,
    event::{Event, Events, ServiceState, millis},
    pid1::{Child, Exit},
};

use super::{
    board::{Board, LastExit, Shared, View},
    care::{Care, Ended, Environment, Verdict},
    census::Census,
    launch::{Launcher, Outcome, Started, within_patience},
    logs::{Log, Stream},
    machine::{Action, Input, Machine},
    memory::{self, Accounts, Scores},
    order::Order,
    probe::Prober,
    procfs::Table,
    pulse::Pulse,
    tree::Tree,
};

/// Lines of a run that its keeper gets to see when it ended.
const TAIL: usize = 100;
/// How long the last lines may take to arrive once the process is gone.
const LAST_LINES: Duration = Duration::from_millis(200);

/// What a service's task is told.
pub enum Message {
    /// Do that; the answer comes when the state has changed accordingly.
    Do(Input, oneshot::Sender<()>),
    /// Use that environment from the next start on, and start if stopped.
    Attach(Environment, oneshot::Sender<()>),
    Launched(Outcome),
    /// A probe of the run of that number.
    Probed(u64, Input),
    Gone(Verdict),
}

/// What all services share.
pub struct Common {
    pub board: Shared,
    pub order: Order,
    pub events: Events,
    pub pulse: Pulse,
    pub accounts: Accounts,
    pub scores: Scores,
    /// Set when a crash loop shall end the supervisor.
    pub gave_up: watch::Sender<bool>,
}

/// A run of the service.
struct Run {
    number: u64,
    /// The world has been told of it.
    told: bool,
    pid: Pid,
    started: Instant,
    /// `None` once it has ended.
    child: Option<Child>,
    /// `None` while what is left of it is being ended.
    tree: Option<Tree>,
    was_ready: bool,
    /// How it ended, and whether the kernel's OOM killer had a hand in it.
    ended: Option<(Exit, bool)>,
    /// The number of its first line in the log.
    first_line: u64,
    readers: Vec<JoinHandle<()>>,
    probing: AbortOnDropHandle<()>,
    oom_kills: u64,
    /// Cancelled to kill what is left of it.
    force: CancellationToken,
}

pub struct Task {
    pub service: Arc<Service>,
    pub launcher: Arc<Launcher>,
    pub log: Arc<Log>,
    pub common: Arc<Common>,
    pub inbox: mpsc::UnboundedReceiver<Message>,
    /// Back to this task.
    pub outbox: mpsc::UnboundedSender<Message>,
    machine: Machine,
    run: Option<Run>,
    runs: u64,
    attached: Environment,
    /// Cancelled to give up on the keeper, before a start or after an exit.
    abandon: CancellationToken,
    lost: Duration,
    last_exit: Option<LastExit>,
    memory: Option<u64>,
    since: Timestamp,
}

impl Task {
    pub fn new(service: Arc<Service>, launcher: Arc<Launcher>, log: Arc<Log>, common: Arc<Common>) -> Self {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let task = Task {
            machine: Machine::new(&service),
            service,
            launcher,
            log,
            inbox,
            outbox,
            run: None,
            runs: 0,
            attached: Environment::new(),
            abandon: CancellationToken::new(),
            lost: common.pulse.lost(),
            last_exit: None,
            memory: None,
            since: Timestamp::now(),
            common,
        };
        task.publish();
        task
    }

    fn care(&self) -> &Arc<dyn Care> {
        &self.launcher.care
    }

    /// Runs as long as the supervisor does.
    pub async fn run(mut self, mut census: Census) {
        let mut board = self.common.board.subscribe();
        board.mark_changed();
        let mut turn = None;
        loop {
            let due = self.machine.due();
            let child = async {
                match self.run.as_mut().and_then(|run| run.child.as_mut()) {
                    Some(child) => child.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = child => {
                    self.forgive();
                    self.exited(exit);
                }
                Some(message) = self.inbox.recv() => {
                    self.forgive();
                    self.hear(message);
                }
                () = sleep_until(due) => {
                    self.forgive();
                    self.step(Input::Tick);
                }
                Ok(()) = board.changed() => {
                    let now = self.is_its_turn(&board.borrow_and_update());
                    if turn.replace(now) != Some(now) {
                        self.step(Input::Turn(now));
                    }
                }
                Ok(()) = census.changed() => {
                    let table = census.borrow_and_update().clone();
                    if let Some(table) = table {
                        self.count(&table);
                    }
                }
            }
        }
    }

    fn is_its_turn(&self, board: &Board) -> bool {
        self.common
            .order
            .before(&self.service.name)
            .all(|name| board.is_ready(name))
    }

    /// Gives back the time in which we were frozen, before anything is decided by the clock.
    fn forgive(&mut self) {
        let lost = self.common.pulse.lost();
        let gap = lost.saturating_sub(self.lost);
        if !gap.is_zero() {
            self.lost = lost;
            self.step(Input::Slept(gap));
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Do(input, done) => {
                self.step(input);
                let _ = done.send(());
            }
            Message::Attach(env, done) => {
                self.attached = env;
                if self.machine.state() == ServiceState::Stopped {
                    self.step(Input::Start);
                }
                let _ = done.send(());
            }
            Message::Launched(Outcome::Started(started)) => self.started(*started),
            Message::Launched(Outcome::Held(why)) => self.step(Input::LaunchHeld(why)),
            Message::Launched(Outcome::Failed { code, why }) => {
                self.last_exit = Some(LastExit::new(Exit::Code(code), false));
                self.step(Input::NotLaunched { code, why });
            }
            Message::Probed(number, input) => {
                if self.run.as_ref().is_some_and(|run| run.number == number) {
                    self.step(input);
                }
            }
            Message::Gone(verdict) => {
                self.run = None;
                self.memory = None;
                self.step(Input::Gone(verdict));
            }
        }
    }

    fn started(&mut self, started: Started) {
        let pid = started.child.pid();
        self.runs += 1;
        let first_line = self.log.next();
        let readers = [(started.stdout, Stream::Stdout), (started.stderr, Stream::Stderr)]
            .map(|(from, stream)| tokio::spawn(Arc::clone(&self.log).take_in(from, stream)))
            .into();
        let prober = Prober {
            service: Arc::clone(&self.service),
            care: Arc::clone(self.care()),
            spawner: self.launcher.spawner.clone(),
            env: started.env,
            pulse: self.common.pulse.clone(),
        };
        let (number, outbox) = (self.runs, self.outbox.clone());
        let notice = started.notice;
        let probing = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(probe) = &prober.service.ready {
                prober.until_ready(probe, notice).await;
                let _ = outbox.send(Message::Probed(number, Input::Ready));
            }
            if let Some(probe) = &prober.service.live {
                let why = prober.until_unhealthy(probe).await;
                let _ = outbox.send(Message::Probed(number, Input::Unhealthy(why)));
            }
        }));
        self.run = Some(Run {
            number,
            told: false,
            pid,
            started: started.at,
            child: Some(started.child),
            tree: Some(Tree::new(&self.service.name, pid)),
            was_ready: false,
            ended: None,
            first_line,
            readers,
            probing,
            oom_kills: self.common.accounts.oom_kills(),
            force: CancellationToken::new(),
        });
        self.step(Input::Launched);
    }

    fn exited(&mut self, exit: Exit) {
        let Some(run) = &mut self.run else { return };
        run.child = None;
        run.probing.abort();
        let intended = self.machine.end_was_asked_for();
        let oom = !intended && self.common.accounts.oom_kills() > run.oom_kills;
        run.ended = Some((exit, oom));
        self.last_exit = Some(LastExit::new(exit, oom));
        let (service, pid) = (self.service.name.clone(), run.pid.as_raw());
        if oom {
            warn!(service, "{exit}; the kernel has killed for want of memory");
        } else {
            info!(service, "{exit}");
        }
        self.common.events.emit(Event::ServiceExited {
            service,
            pid,
            code: match exit {
                Exit::Code(code) => Some(code),
                Exit::Signal(_) => None,
            },
            signal: match exit {
                Exit::Code(_) => None,
                Exit::Signal(signal) => Some(signal as i32),
            },
            oom,
            intended,
        });
        self.step(Input::Exited(exit));
    }

    /// Looks at its processes among all there are.
    fn count(&mut self, table: &Table) {
        let Some(run) = &mut self.run else { return };
        let Some(tree) = &mut run.tree else { return };
        let members = tree.members(table);
        let used = members.iter().map(|process| process.resident).sum();
        let descendants: Vec<i32> = members
            .iter()
            .filter(|process| process.pid != run.pid)
            .map(|process| process.pid.as_raw())
            .collect();
        run.oom_kills = self.common.accounts.oom_kills();
        for pid in descendants {
            memory::set_score(pid, self.common.scores.descendant);
        }
        self.memory = Some(used);
        self.publish();
        let may_end = matches!(self.machine.state(), ServiceState::Running | ServiceState::Ready);
        if let Some(limit) = self.service.memory_max.filter(|limit| used > *limit && may_end) {
            self.common.events.emit(Event::MemoryPressure {
                service: Some(self.service.name.clone()),
                used,
                limit,
            });
            self.step(Input::TooLarge(format!(
                "it used {} MiB of memory; memory_max is {} MiB",
                used >> 20,
                limit >> 20
            )));
        }
    }

    /// Lets the machine take a step, says what has changed, and does what it wants done.
    fn step(&mut self, input: Input) {
        let before = (self.machine.state(), self.machine.why().map(str::to_owned));
        let (machine, actions) = self.machine.clone().step(input, Instant::now());
        self.machine = machine;
        let (state, why) = (self.machine.state(), self.machine.why().map(str::to_owned));
        let changed = before.0 != state;
        if changed {
            self.since = Timestamp::now();
        }
        // The board is written before anybody is told to look at it.
        self.publish();
        if let Some(run) = self.run.as_mut()
            && !mem::replace(&mut run.told, true)
        {
            self.common.events.emit(Event::ServiceStarted {
                service: self.service.name.clone(),
                pid: run.pid.as_raw(),
            });
        }
        if changed || before.1 != why {
            self.announce(changed, why);
        }
        for action in actions {
            self.act(action);
        }
    }

    fn publish(&self) {
        let view = View {
            name: self.service.name.clone(),
            state: self.machine.state(),
            since: self.since,
            pid: self
                .run
                .as_ref()
                .filter(|run| run.child.is_some())
                .map(|run| run.pid.as_raw()),
            restarts: self.machine.restarts(),
            memory: self.memory,
            last_exit: self.last_exit,
            why: self.machine.why().map(str::to_owned),
        };
        self.common.board.send_if_modified(|board| {
            let changed = board.services.get(&view.name) != Some(&view);
            board.services.insert(view.name.clone(), view);
            changed
        });
    }

    fn announce(&mut self, changed: bool, why: Option<String>) {
        let (service, state) = (self.service.name.clone(), self.machine.state());
        let events = &self.common.events;
        match state {
            ServiceState::Ready if changed => {
                if let Some(run) = &mut self.run {
                    run.was_ready = true;
                    let after_ms = millis(run.started.elapsed());
                    info!(service, after_ms, "ready");
                    let service = service.clone();
                    events.emit(Event::ServiceReady { service, after_ms });
                    let care = Arc::clone(&self.launcher.care);
                    tokio::spawn(async move { within_patience(care.became_ready()).await });
                }
            }
            ServiceState::Unhealthy if changed => {
                let why = why.clone().unwrap_or_default();
                warn!(service, "unhealthy: {why}");
                let service = service.clone();
                events.emit(Event::ServiceUnhealthy { service, why });
            }
            ServiceState::Held | ServiceState::CrashLoop | ServiceState::BackingOff => {
                warn!(service, ?state, why, "down");
            }
            _ => {}
        }
        events.emit(Event::ServiceChanged {
            service,
            state,
            pid: self.run.as_ref().map(|run| run.pid.as_raw()),
            why,
        });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { attempt } => self.launch(attempt),
            Action::Abandon => self.abandon.cancel(),
            Action::Terminate => {
                if let Some(tree) = self.run.as_ref().and_then(|run| run.tree.as_ref()) {
                    tree.terminate(self.service.stop.signal);
                }
            }
            Action::Kill => self.kill(),
            Action::Clear { asked } => self.clear(asked),
            Action::ReportCrashLoop => {
                let restarts = self.service.crash_loop.restarts;
                let within = self.service.crash_loop.within;
                let service = self.service.name.clone();
                let why = self.machine.why().unwrap_or_default().to_owned();
                error!(
                    service,
                    "crash loop: {restarts} restarts within {} s: {why}",
                    within.as_secs()
                );
                self.common.events.emit(Event::ServiceCrashLoop {
                    service,
                    restarts,
                    within_ms: millis(within),
                    why,
                });
            }
            Action::GiveUp => {
                self.common.gave_up.send_replace(true);
            }
        }
    }

    fn launch(&mut self, attempt: u32) {
        self.abandon = CancellationToken::new();
        let (launcher, outbox) = (Arc::clone(&self.launcher), self.outbox.clone());
        let (attached, abandon) = (self.attached.clone(), self.abandon.clone());
        tokio::spawn(async move {
            let outcome = launcher.launch(attached, attempt, abandon).await;
            let _ = outbox.send(Message::Launched(outcome));
        });
    }

    fn kill(&mut self) {
        let Some(run) = &mut self.run else { return };
        warn!(
            service = self.service.name,
            "it did not end in time; killing it with all it started"
        );
        run.force.cancel();
        // The tree is wanted again when the process's end has been told.
        if let Some(tree) = &run.tree {
            let mut tree = tree.clone();
            tokio::spawn(async move { tree.kill().await });
        }
    }

    /// Ends what the process has left running, waits for its last lines, and hears the keeper if nobody had asked.
    fn clear(&mut self, asked: bool) {
        let Some(run) = &mut self.run else { return };
        let (Some(mut tree), Some((exit, oom))) = (run.tree.take(), run.ended) else {
            return;
        };
        let readers = mem::take(&mut run.readers);
        let (force, was_ready, first_line) = (run.force.clone(), run.was_ready, run.first_line);
        self.abandon = CancellationToken::new();
        let (abandon, outbox) = (self.abandon.clone(), self.outbox.clone());
        let (care, log, service) = (
            Arc::clone(self.care()),
            Arc::clone(&self.log),
            self.service.name.clone(),
        );
        tokio::spawn(async move {
            tree.clear(&force).await;
            let _ = timeout(LAST_LINES, join_all(readers)).await;
            let verdict = async {
                if asked {
                    return Verdict::Restart;
                }
                let tail = log.last(TAIL, first_line);
                let ended = Ended {
                    exit,
                    was_ready,
                    oom,
                    tail,
                };
                within_patience(care.after_exit(ended)).await.unwrap_or_else(|why| {
                    error!(service, "{why}");
                    Verdict::Restart
                })
            };
            let verdict = tokio::select! {
                verdict = verdict => verdict,
                () = abandon.cancelled() => Verdict::Restart,
            };
            let _ = outbox.send(Message::Gone(verdict));
        });
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
