//! One service: a task that tells its [`Machine`] what happens and does what it asks for.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::libc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::{secret::Mask, service::Service},
    event::{Event, Events, ServiceState, millis},
    pid1::Exit,
};

use super::{
    board::{Board, LastExit, Shared, View},
    care::{Environment, Verdict},
    census::Census,
    launch::{Launcher, Outcome, Started, within_patience},
    logs::Log,
    machine::{Action, Input, Machine},
    memory::Accounts,
    order::Order,
    procfs::Table,
    pulse::Pulse,
    run::Run,
};

/// What a service's task is told.
pub enum Message {
    /// Do that; the answer comes when the state has changed accordingly.
    Do(Input, oneshot::Sender<()>),
    /// Use that environment from the next start on, and start if stopped.
    Attach {
        env: Environment,
        renew: bool,
        done: oneshot::Sender<()>,
    },
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
    pub mask: Mask,
    /// Set when a crash loop shall end the supervisor.
    pub gave_up: watch::Sender<bool>,
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

    /// Runs as long as the supervisor does.
    pub async fn run(mut self, mut census: Census) {
        let mut board = self.common.board.subscribe();
        board.mark_changed();
        let mut turn = None;
        loop {
            let due = self.machine.due();
            let exit = async {
                match &mut self.run {
                    Some(run) => run.exit().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = exit => {
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
            Message::Attach { env, renew, done } => {
                self.attached = env;
                // It may be its keeper that held it, for want of just this environment.
                match self.machine.state() {
                    // One that is on its way out comes back: a Worker ends a start script and runs the next at once.
                    ServiceState::Stopped | ServiceState::Stopping | ServiceState::Held => self.step(Input::Start),
                    _ if renew => self.step(Input::Restart),
                    _ => {}
                }
                let _ = done.send(());
            }
            Message::Launched(Outcome::Started(started)) => self.started(*started),
            Message::Launched(Outcome::Abandoned) => self.step(Input::Abandoned),
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
        self.runs += 1;
        self.run = Some(Run::begin(self.runs, started, self));
        self.step(Input::Launched);
    }

    fn exited(&mut self, exit: Exit) {
        let Some(run) = &mut self.run else { return };
        let intended = self.machine.end_was_asked_for();
        let oom = !intended && self.common.accounts.oom_kills() > run.oom_kills;
        run.has_ended(exit, oom, self.machine.state() == ServiceState::Unhealthy);
        self.last_exit = Some(LastExit::new(exit, oom));
        let (service, pid) = (self.service.name.clone(), run.pid.as_raw());
        if oom {
            warn!(service, "{exit}; the kernel has killed for want of memory");
        } else {
            info!(service, "{exit}");
        }
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        self.common.events.emit(Event::ServiceExited {
            service,
            pid,
            code,
            signal,
            oom,
            intended,
        });
        self.step(Input::Exited(exit));
    }

    /// Looks at its processes among all there are.
    fn count(&mut self, table: &Table) {
        let Some(run) = &mut self.run else { return };
        let Some(used) = run.count(table, self.launcher.scores) else {
            return;
        };
        run.oom_kills = self.common.accounts.oom_kills();
        if self.memory.replace(used) != Some(used) {
            self.publish();
            self.common.events.emit(Event::ServiceMeasured {
                service: self.service.name.clone(),
                memory: used,
            });
        }
        let is_up = matches!(self.machine.state(), ServiceState::Running | ServiceState::Ready);
        if let Some(limit) = self.service.memory_max.filter(|limit| used > *limit && is_up) {
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
        let (state, why) = (self.machine.state(), self.why());
        let (machine, actions) = self.machine.clone().step(input, Instant::now());
        self.machine = machine;
        let changed = self.machine.state() != state;
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
        if changed || self.why() != why {
            self.announce(changed);
        }
        for action in actions {
            self.act(action);
        }
    }

    /// Of its main process, while that lives.
    fn pid(&self) -> Option<i32> {
        let run = self.run.as_ref().filter(|run| run.child.is_some());
        run.map(|run| run.pid.as_raw())
    }

    fn publish(&self) {
        let view = View {
            name: self.service.name.clone(),
            state: self.machine.state(),
            since: self.since,
            pid: self.pid(),
            restarts: self.machine.restarts(),
            memory: self.memory,
            last_exit: self.last_exit,
            why: self.why(),
        };
        self.common.board.send_if_modified(|board| {
            let changed = board.services.get(&view.name) != Some(&view);
            board.services.insert(view.name.clone(), view);
            changed
        });
    }

    fn announce(&mut self, changed: bool) {
        let (service, state, why) = (self.service.name.clone(), self.machine.state(), self.why());
        let pid = self.pid();
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
            pid,
            restarts: self.machine.restarts(),
            why,
        });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { attempt } => self.launch(attempt),
            Action::Abandon => self.abandon.cancel(),
            Action::Terminate => {
                if let Some(run) = &self.run {
                    run.terminate(self.service.stop.signal);
                }
            }
            Action::Kill => self.kill(),
            Action::Bury => {
                error!(
                    service = self.service.name,
                    "killed, and it does not end: it hangs in the kernel, most likely on a file system that does not answer"
                );
                self.exited(Exit::Signal(libc::SIGKILL));
            }
            Action::Overdue => {
                let (service, why) = (self.service.name.clone(), self.why().unwrap_or_default());
                warn!(service, why, "it stays up for as long as its liveness probe passes");
                self.common.events.emit(Event::ServiceUnhealthy { service, why });
                if let Some(run) = &self.run {
                    run.watch();
                }
            }
            Action::Clear { asked } => self.clear(asked),
            Action::ReportCrashLoop => {
                let restarts = self.service.crash_loop.restarts;
                let within = self.service.crash_loop.within;
                let service = self.service.name.clone();
                let why = self.why().unwrap_or_default();
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
        if let Some(run) = &self.run {
            warn!(
                service = self.service.name,
                "it did not end in time; killing it with all it started"
            );
            run.kill();
        }
    }

    /// Ends what the process has left running, waits for its last lines, and hears the keeper if nobody had asked.
    fn clear(&mut self, asked: bool) {
        self.abandon = CancellationToken::new();
        let Some(cleared) = self.run.as_mut().and_then(|run| run.clear(&self.log)) else {
            return;
        };
        let (care, service) = (Arc::clone(&self.launcher.care), self.service.name.clone());
        let (abandon, outbox) = (self.abandon.clone(), self.outbox.clone());
        tokio::spawn(async move {
            let ended = cleared.await;
            let verdict = async {
                if asked {
                    return Verdict::Restart;
                }
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

    /// Why it is where it is; a probe's or a keeper's words may have a secret in them.
    fn why(&self) -> Option<String> {
        self.machine.why().map(|why| self.common.mask.apply(why).into_owned())
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
