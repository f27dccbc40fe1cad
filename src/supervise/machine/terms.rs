//! What a machine is told, and what it asks for.

use std::time::Duration;

use crate::{pid1::Exit, supervise::care::Verdict};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Start,
    Stop,
    /// Stop with less time than the service's own to do it in; also shortens a stop that is under way.
    StopWithin(Duration),
    Restart,
    /// Do not run until released, whoever says start.
    Hold(String),
    Release,
    /// Everything that it comes after is ready, or no longer is.
    Turn(bool),
    Launched,
    NotLaunched {
        code: i32,
        why: String,
    },
    /// The keeper does not want it started.
    LaunchHeld(String),
    /// The launch was given up, as [asked](Action::Abandon), before there was a process.
    Abandoned,
    /// The readiness probe failed, and for this reason for the first time.
    NotReady(String),
    /// The readiness probe passed.
    Ready,
    /// The liveness probe has failed too often.
    Unhealthy(String),
    /// It uses more memory than it may.
    TooLarge(String),
    /// The process has ended.
    Exited(Exit),
    /// Nothing of it is left running, and its keeper has spoken.
    Gone(Verdict),
    /// Time has passed that the service had nothing of: the container was frozen.
    Slept(Duration),
    /// A time that was [due](Machine::due) has come.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Launch {
        attempt: u32,
    },
    /// Wait no longer for the keeper, and give up the launch under way if the process is not there yet.
    Abandon,
    /// Tell the process to end.
    Terminate,
    /// Kill everything that belongs to the service.
    Kill,
    /// The process was killed and is still there: count it as [ended](Input::Exited).
    Bury,
    /// It is not ready in time. From now on the liveness probe says whether it is left alone: a service that is alive
    /// may have a reason not to be ready that no restart mends.
    Overdue,
    /// The process is gone: end what it left running, then ask the keeper for its verdict if nobody had asked for
    /// the end.
    Clear {
        asked: bool,
    },
    /// The service is in a crash loop, after so many restarts.
    ReportCrashLoop,
    /// The service is in a crash loop that shall end the supervisor.
    GiveUp,
}
