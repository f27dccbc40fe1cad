//! What a service's keeper may say about it: the seam through which a module that knows a program (the gateway) has
//! its say, while supervision knows of programs in general only.

use std::{collections::BTreeMap, ffi::OsString, sync::Arc};

use futures_util::future::BoxFuture;

use crate::pid1::Exit;

use super::{launch::Launch, logs::Line};

/// A service's keeper. Each call runs in a task of its own and under a deadline
/// ([`PATIENCE`](super::launch::PATIENCE)): one that hangs or panics holds up no other service.
pub trait Care: Send + Sync {
    /// Before each start. `attempt` is 1 for the first start and counts up until the service was ready for a while.
    fn before_start(&self, attempt: u32) -> BoxFuture<'_, Start> {
        let _ = attempt;
        Box::pin(async { Start::Go(Launch::default()) })
    }

    /// After an exit that nobody asked for, when the whole tree of processes is gone.
    fn after_exit(&self, ended: Ended) -> BoxFuture<'_, Verdict> {
        let _ = ended;
        Box::pin(async { Verdict::Restart })
    }

    /// The service has become ready.
    fn became_ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The service's health, for one whose health no [`Probe`](crate::config::service::Probe) can tell. If it gives
    /// one, it is awaited in the place of every `http` check, with the timing and thresholds of that probe.
    fn check(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        None
    }
}

/// Whether to start.
#[derive(Debug)]
pub enum Start {
    Go(Launch),
    /// Do not start until somebody says so; why.
    Hold(String),
    /// It cannot be started now; to be tried again as after a start that failed. Why.
    Fail(String),
}

/// How a run of the service ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub exit: Exit,
    /// It was ready in that run.
    pub was_ready: bool,
    /// The kernel's OOM killer had a hand in it.
    pub oom: bool,
    /// It was ended for not being ready in time or not answering: the exit is our doing, the reason is not.
    pub unhealthy: bool,
    /// The last lines of that run, both streams.
    pub tail: Vec<Arc<Line>>,
}

/// What to do after an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the service's restart policy and backoff have it.
    Restart,
    /// The exit was a request to be started again: at once if the service had been ready, and whatever the policy.
    RestartNow,
    /// Do not start until somebody says so; why.
    Hold(String),
}

/// A service without a keeper.
pub struct NoCare;

impl Care for NoCare {}

/// An environment.
pub type Environment = BTreeMap<OsString, OsString>;
