//! What a service does next: a pure function of where it stands, what happened, and the time.
//!
//! Only intent makes an exit final: a service that ends without having been told to is started again as its policy
//! has it, exit code 0 or not. The machine does nothing itself; it asks for [`Action`]s and is told of [`Input`]s.

mod terms;

use std::time::{Duration, Instant};

use crate::{
    config::service::{OnCrashLoop, Restart, Service},
    event::ServiceState,
    pid1::Exit,
};

use super::{
    backoff::{Backoff, CrashLoop},
    care::Verdict,
};

pub use self::terms::{Action, Input};

/// A service that hangs cannot be expected to drain: it is killed after this if it has longer otherwise.
const UNHEALTHY_STOP: Duration = Duration::from_secs(30);
/// What a service that ended by itself left running has this long to end too, if the service has longer otherwise.
const LEFTOVER_STOP: Duration = Duration::from_secs(5);
/// What has not ended so long after it was killed hangs in the kernel, most likely on a file system that does not
/// answer. It runs none of its own code any more, so what waits for its end need not wait longer.
const KILLED: Duration = Duration::from_secs(10);
/// A start that was cut short for want of time has twice as long the next time, so often at most.
const LONGER: u32 = 3;
/// In a crash loop a retry is made after so many times the longest backoff.
const SLOW_RETRY: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody wants it stopped, restarted or held.
    Asked,
    Unhealthy,
    TooLarge,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Stopped,
    Waiting,
    Launching {
        /// What comes of it is out of date: to be ended, and launched anew.
        again: bool,
    },
    Up {
        ready: Option<Instant>,
        ready_by: Option<Instant>,
    },
    Ending {
        cause: Cause,
        ready: Option<Instant>,
        kill_at: Option<Instant>,
        /// Once it has been killed.
        bury_at: Option<Instant>,
    },
    Clearing {
        cause: Option<Cause>,
        exit: Exit,
        ready: Option<Instant>,
        at: Instant,
        kill_at: Option<Instant>,
    },
    BackingOff {
        until: Option<Instant>,
    },
    Held,
}

/// Where a service stands.
#[derive(Debug, Clone)]
pub struct Machine {
    restart: Restart,
    on_crash_loop: OnCrashLoop,
    stop_timeout: Duration,
    /// `None`: ready as soon as it runs.
    ready_timeout: Option<Duration>,
    has_live_probe: bool,
    reset_after: Duration,
    slow_retry: Duration,

    phase: Phase,
    wanted: bool,
    turn: bool,
    hold: Option<String>,
    backoff: Backoff,
    crash_loop: CrashLoop,
    looping: bool,
    attempt: u32,
    restarts: u32,
    /// Starts in a row that were cut short because it was not ready in time.
    cut_short: u32,
    /// What its readiness probe has said last.
    unready: Option<String>,
    why: Option<String>,
}

impl Machine {
    /// A stopped service of that description.
    pub fn new(service: &Service) -> Self {
        Machine {
            restart: service.restart,
            on_crash_loop: service.on_crash_loop,
            stop_timeout: service.stop.timeout,
            ready_timeout: service.ready.as_ref().map(|probe| probe.timeout),
            has_live_probe: service.live.is_some(),
            reset_after: service.backoff.reset_after,
            slow_retry: service.backoff.max.saturating_mul(SLOW_RETRY),
            phase: Phase::Stopped,
            wanted: false,
            turn: false,
            hold: None,
            backoff: Backoff::new(service.backoff),
            crash_loop: CrashLoop::new(service.crash_loop),
            looping: false,
            attempt: 0,
            restarts: 0,
            cut_short: 0,
            unready: None,
            why: None,
        }
    }

    /// The state as the outside sees it.
    pub fn state(&self) -> ServiceState {
        match &self.phase {
            Phase::Stopped => ServiceState::Stopped,
            Phase::Waiting => ServiceState::Waiting,
            Phase::Launching { .. } if self.wanted => ServiceState::Starting,
            Phase::Launching { .. } => ServiceState::Stopping,
            Phase::Up { ready: Some(_), .. } => ServiceState::Ready,
            Phase::Up { ready: None, .. } => ServiceState::Running,
            Phase::Ending { cause, .. } if *cause == Cause::Unhealthy && self.wanted => ServiceState::Unhealthy,
            Phase::Ending { .. } => ServiceState::Stopping,
            Phase::Clearing { cause, .. } => match cause {
                Some(Cause::Unhealthy) if self.wanted => ServiceState::Unhealthy,
                Some(_) => ServiceState::Stopping,
                None if self.wanted => ServiceState::BackingOff,
                None => ServiceState::Stopping,
            },
            Phase::BackingOff { .. } if self.looping => ServiceState::CrashLoop,
            Phase::BackingOff { .. } => ServiceState::BackingOff,
            Phase::Held => ServiceState::Held,
        }
    }

    /// Why it stands there, where that needs a reason.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Restarts that nobody asked for.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The end of the process that is ending or gone was asked for.
    pub fn end_was_asked_for(&self) -> bool {
        match &self.phase {
            Phase::Ending { cause, .. } => *cause == Cause::Asked,
            Phase::Clearing { cause, .. } => *cause == Some(Cause::Asked),
            _ => false,
        }
    }

    /// When [`Input::Tick`] is wanted.
    pub fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Up { ready_by, .. } => *ready_by,
            Phase::Ending { kill_at, bury_at, .. } => kill_at.or(*bury_at),
            Phase::Clearing { kill_at, .. } => *kill_at,
            Phase::BackingOff { until } => *until,
            _ => None,
        }
    }

    /// What follows from what happened.
    pub fn step(mut self, input: Input, now: Instant) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        match input {
            Input::Start => self.start(&mut actions),
            Input::Restart => {
                self.start(&mut actions);
                match &mut self.phase {
                    Phase::Launching { again } if actions.is_empty() => {
                        *again = true;
                        actions.push(Action::Abandon);
                    }
                    _ => self.end(Cause::Asked, self.stop_timeout, now, &mut actions),
                }
            }
            Input::Stop => self.stop(self.stop_timeout, now, &mut actions),
            Input::StopWithin(within) => self.stop(within.min(self.stop_timeout), now, &mut actions),
            Input::Hold(why) => {
                self.hold = Some(why.clone());
                match self.phase {
                    Phase::Waiting | Phase::BackingOff { .. } | Phase::Held => self.rest(&mut actions),
                    Phase::Launching { .. } | Phase::Clearing { .. } => actions.push(Action::Abandon),
                    Phase::Up { .. } => {
                        self.why = Some(why);
                        self.end(Cause::Asked, self.stop_timeout, now, &mut actions);
                    }
                    _ => {}
                }
            }
            Input::Release => {
                self.hold = None;
                if self.phase == Phase::Held {
                    self.rest(&mut actions);
                }
            }
            Input::Turn(turn) => {
                self.turn = turn;
                if self.phase == Phase::Waiting {
                    self.rest(&mut actions);
                }
            }
            Input::Launched => self.launched(now, &mut actions),
            Input::NotLaunched { code, why } => {
                if let Phase::Launching { again } = self.phase {
                    if self.wanted && self.hold.is_none() && !again {
                        self.why = Some(why);
                        self.failed(Exit::Code(code), now, &mut actions);
                    } else {
                        self.rest(&mut actions);
                    }
                }
            }
            Input::LaunchHeld(why) => match self.phase {
                Phase::Launching { again: false } => self.hold_for_keeper(why, &mut actions),
                Phase::Launching { again: true } => self.rest(&mut actions),
                _ => {}
            },
            Input::Abandoned => {
                if matches!(self.phase, Phase::Launching { .. }) {
                    self.rest(&mut actions);
                }
            }
            Input::NotReady(why) => {
                if let Phase::Up { ready: None, ready_by } = self.phase {
                    self.unready = Some(why);
                    if ready_by.is_none() {
                        self.why = Some(self.overdue());
                    }
                }
            }
            Input::Ready => {
                if let Phase::Up { ready, ready_by } = &mut self.phase {
                    ready.get_or_insert(now);
                    *ready_by = None;
                    self.why = None;
                }
            }
            Input::Unhealthy(why) => {
                if matches!(self.phase, Phase::Up { .. }) {
                    self.why = Some(why);
                    self.end(
                        Cause::Unhealthy,
                        self.stop_timeout.min(UNHEALTHY_STOP),
                        now,
                        &mut actions,
                    );
                }
            }
            Input::TooLarge(why) => {
                if matches!(self.phase, Phase::Up { .. }) {
                    self.why = Some(why);
                    self.end(Cause::TooLarge, self.stop_timeout, now, &mut actions);
                }
            }
            Input::Exited(exit) => self.exited(exit, now, &mut actions),
            Input::Gone(verdict) => self.gone(verdict, now, &mut actions),
            Input::Slept(gap) => self.slept(gap),
            Input::Tick => self.tick(now, &mut actions),
        }
        (self, actions)
    }

    /// Being asked for is a fresh start: what failed before does not count.
    fn start(&mut self, actions: &mut Vec<Action>) {
        let was_wanted = std::mem::replace(&mut self.wanted, true);
        self.forget_failures();
        match &mut self.phase {
            Phase::Stopped | Phase::Waiting | Phase::BackingOff { .. } | Phase::Held => self.rest(actions),
            Phase::Ending { cause, .. } => *cause = Cause::Asked,
            Phase::Clearing { cause, .. } => *cause = Some(Cause::Asked),
            // Told to stop and to start, it is another launch that is meant.
            Phase::Launching { again } => *again |= !was_wanted,
            Phase::Up { .. } => {}
        }
    }

    fn stop(&mut self, within: Duration, now: Instant, actions: &mut Vec<Action>) {
        self.wanted = false;
        match &mut self.phase {
            Phase::Launching { .. } => actions.push(Action::Abandon),
            Phase::Up { .. } => {
                self.why = None;
                self.end(Cause::Asked, within, now, actions);
            }
            Phase::Ending { cause, kill_at, .. } => {
                *cause = Cause::Asked;
                *kill_at = kill_at.map(|at| at.min(now + within));
            }
            Phase::Clearing { cause, kill_at, .. } => {
                actions.push(Action::Abandon);
                *cause = Some(Cause::Asked);
                *kill_at = kill_at.map(|at| at.min(now + within));
            }
            _ => self.rest(actions),
        }
    }

    /// From a position in which nothing of the service runs: up if it may, or to where it has to wait.
    fn rest(&mut self, actions: &mut Vec<Action>) {
        self.phase = if !self.wanted {
            self.why = None;
            Phase::Stopped
        } else if let Some(why) = &self.hold {
            self.why = Some(why.clone());
            Phase::Held
        } else if !self.turn {
            Phase::Waiting
        } else {
            self.attempt = self.attempt.saturating_add(1);
            actions.push(Action::Launch { attempt: self.attempt });
            Phase::Launching { again: false }
        };
    }

    fn hold_for_keeper(&mut self, why: String, actions: &mut Vec<Action>) {
        if self.wanted && self.hold.is_none() {
            self.why = Some(why);
            self.phase = Phase::Held;
        } else {
            self.rest(actions);
        }
    }

    fn launched(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Phase::Launching { again } = self.phase else {
            return;
        };
        (self.why, self.unready) = (None, None);
        self.phase = Phase::Up {
            ready: self.ready_timeout.is_none().then_some(now),
            ready_by: self.grace().map(|grace| now + grace),
        };
        if !self.wanted || self.hold.is_some() || again {
            self.end(Cause::Asked, self.stop_timeout, now, actions);
        }
    }

    fn end(&mut self, cause: Cause, within: Duration, now: Instant, actions: &mut Vec<Action>) {
        let Phase::Up { ready, .. } = self.phase else {
            return;
        };
        if cause == Cause::Unhealthy && ready.is_none() {
            self.cut_short = self.cut_short.saturating_add(1);
        }
        self.phase = Phase::Ending {
            cause,
            ready,
            kill_at: Some(now + within),
            bury_at: None,
        };
        actions.push(Action::Terminate);
    }

    fn exited(&mut self, exit: Exit, now: Instant, actions: &mut Vec<Action>) {
        let (cause, ready, kill_at) = match self.phase {
            Phase::Up { ready, .. } => (None, ready, Some(now + self.stop_timeout.min(LEFTOVER_STOP))),
            Phase::Ending {
                cause, ready, kill_at, ..
            } => (Some(cause), ready, kill_at),
            _ => return,
        };
        if cause.is_none() {
            self.why = Some(exit.to_string());
        }
        self.phase = Phase::Clearing {
            cause,
            exit,
            ready,
            at: now,
            kill_at,
        };
        actions.push(Action::Clear {
            asked: cause == Some(Cause::Asked),
        });
        if kill_at.is_none() {
            actions.push(Action::Kill);
        }
    }

    fn gone(&mut self, verdict: Verdict, now: Instant, actions: &mut Vec<Action>) {
        let Phase::Clearing {
            cause, exit, ready, at, ..
        } = self.phase
        else {
            return;
        };
        if ready.is_some_and(|since| at.saturating_duration_since(since) >= self.reset_after) {
            self.forget_failures();
        }
        if cause == Some(Cause::Asked) || !self.wanted || self.hold.is_some() {
            return self.rest(actions);
        }
        match verdict {
            Verdict::Hold(why) => self.hold_for_keeper(why, actions),
            Verdict::RestartNow => self.again(ready.is_some(), now, actions),
            // Whatever the exit code, the end was ours and not the service's own.
            Verdict::Restart if cause.is_some() => self.again(false, now, actions),
            Verdict::Restart => self.failed(exit, now, actions),
        }
    }

    /// An end that nobody asked for.
    fn failed(&mut self, exit: Exit, now: Instant, actions: &mut Vec<Action>) {
        let again = match self.restart {
            Restart::Always => true,
            Restart::OnFailure => exit != Exit::Code(0),
            Restart::Never => false,
        };
        if again {
            self.again(false, now, actions);
        } else {
            let why = self.why.take();
            self.wanted = false;
            self.rest(actions);
            self.why = why;
        }
    }

    fn again(&mut self, at_once: bool, now: Instant, actions: &mut Vec<Action>) {
        self.restarts = self.restarts.saturating_add(1);
        let reached = self.crash_loop.is_reached(now);
        let until = if reached || self.looping {
            if !self.looping {
                self.looping = true;
                actions.push(Action::ReportCrashLoop);
            }
            match self.on_crash_loop {
                OnCrashLoop::Hold => Some(now + self.slow_retry),
                OnCrashLoop::Exit => {
                    actions.push(Action::GiveUp);
                    None
                }
            }
        } else if at_once {
            Some(now)
        } else {
            Some(now + self.backoff.next())
        };
        self.phase = Phase::BackingOff { until };
        self.tick(now, actions);
    }

    fn forget_failures(&mut self) {
        self.backoff.reset();
        self.crash_loop.reset();
        self.looping = false;
        self.attempt = 0;
        self.cut_short = 0;
    }

    fn slept(&mut self, gap: Duration) {
        match &mut self.phase {
            Phase::Up { ready, ready_by } => {
                *ready = ready.map(|at| at + gap);
                *ready_by = ready_by.map(|at| at + gap);
            }
            Phase::Ending {
                ready,
                kill_at,
                bury_at,
                ..
            } => {
                for at in [ready, kill_at, bury_at] {
                    *at = at.map(|at| at + gap);
                }
            }
            Phase::Clearing { ready, kill_at, .. } => {
                for at in [ready, kill_at] {
                    *at = at.map(|at| at + gap);
                }
            }
            _ => {}
        }
    }

    /// How long it may take to be ready. On a machine that is too slow for the time it has by itself, it would be ended
    /// and begin anew for ever.
    fn grace(&self) -> Option<Duration> {
        let longer = 1 << self.cut_short.min(LONGER);
        self.ready_timeout.map(|timeout| timeout.saturating_mul(longer))
    }

    /// Why it is not what it should be by now.
    fn overdue(&self) -> String {
        let after = self.grace().unwrap_or_default().as_secs_f32();
        let why = self.unready.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        format!("not ready within {after} s{why}")
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match &mut self.phase {
            Phase::Up { ready_by, .. } if passed(*ready_by) => {
                *ready_by = None;
                self.why = Some(self.overdue());
                if self.has_live_probe {
                    actions.push(Action::Overdue);
                } else {
                    self.end(Cause::Unhealthy, self.stop_timeout.min(UNHEALTHY_STOP), now, actions);
                }
            }
            Phase::Ending { kill_at, bury_at, .. } if passed(*kill_at) => {
                (*kill_at, *bury_at) = (None, Some(now + KILLED));
                actions.push(Action::Kill);
            }
            Phase::Ending { bury_at, .. } if passed(*bury_at) => {
                *bury_at = None;
                actions.push(Action::Bury);
            }
            Phase::Clearing { kill_at, .. } if passed(*kill_at) => {
                *kill_at = None;
                actions.push(Action::Kill);
            }
            Phase::BackingOff { until } if passed(*until) => self.rest(actions),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
