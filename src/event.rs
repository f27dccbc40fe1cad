//! The one vocabulary shared by all modules: what happened.
//!
//! Modules emit an [`Event`] and know nothing of who listens. `report` numbers it, folds it into the status
//! document, keeps it in the outbox and delivers it. Names and fields of the public events are the contract's
//! (section 5); an event whose [`Event::name`] is `None` only moves the status document.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::state::model::CommitId;

/// How far the boot has come; `pendingReason` of `/startupz` until it is [`Phase::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Store,
    Restore,
    Prepare,
    Services,
    Done,
}

/// Where a service stands. The contract of these names is the status document's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    Stopped,
    Waiting,
    Starting,
    Running,
    Ready,
    Unhealthy,
    Stopping,
    BackingOff,
    CrashLoop,
    Held,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Event {
    BootStarted {
        version: &'static str,
        pid1: bool,
    },
    BootPhase {
        phase: Phase,
    },
    /// How much of the state is back, in plain bytes.
    RestoreProgress {
        done: u64,
        total: u64,
    },
    StateRestored {
        commit: Option<CommitId>,
        files: u64,
        bytes: u64,
        took_ms: u64,
        /// Where state is now that was there before.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        aside: Vec<String>,
    },
    StateRestoreDegraded {
        wanted: CommitId,
        used: Option<CommitId>,
        why: String,
    },
    ServiceChanged {
        service: String,
        state: ServiceState,
        pid: Option<i32>,
        /// That nobody asked for.
        restarts: u32,
        why: Option<String>,
    },
    ServiceStarted {
        service: String,
        pid: i32,
    },
    ServiceReady {
        service: String,
        after_ms: u64,
    },
    ServiceExited {
        service: String,
        pid: i32,
        code: Option<i32>,
        signal: Option<i32>,
        oom: bool,
        intended: bool,
    },
    ServiceUnhealthy {
        service: String,
        why: String,
    },
    ServiceCrashLoop {
        service: String,
        restarts: u32,
        within_ms: u64,
        why: String,
    },
    /// The version of the gateway that is installed.
    GatewayFound {
        version: String,
    },
    /// Resident memory of a service's whole process tree, in bytes.
    ServiceMeasured {
        service: String,
        memory: u64,
    },
    GatewayConfigRolledBack {
        reason: String,
        kept: String,
    },
    /// What is not in the last commit, and what of the state is not in it as it should be.
    SnapshotPending {
        paths: u64,
        oldest_ms: u64,
        warnings: Vec<String>,
    },
    SnapshotCommitted {
        commit: CommitId,
        parent: Option<CommitId>,
        files: u64,
        state_bytes: u64,
        stored_bytes: u64,
        operations: u64,
        took_ms: u64,
        warnings: Vec<String>,
    },
    SnapshotFailed {
        why: String,
        retry_in_ms: u64,
    },
    SnapshotSuspicious {
        commit: CommitId,
        why: String,
    },
    /// It is known where the store is.
    StorePlaced {
        required: bool,
    },
    StoreAvailable {
        path: String,
        durable: bool,
    },
    /// What the store holds of this instance, counted while listing it.
    StoreMeasured {
        objects: u64,
        bytes: u64,
    },
    StoreUnavailable {
        why: String,
    },
    StoreRecovered {
        away_ms: u64,
    },
    StoreFenced {
        by: String,
        why: String,
    },
    /// It is another supervisor that is fenced, by this one: it goes on with a branch, of which this is the newest commit.
    StoreBranched {
        by: String,
        why: String,
        branch: CommitId,
    },
    /// The local port is open, with this browser behind it.
    BrowserOffered {
        upstream: String,
    },
    BrowserConnected {
        upstream: String,
    },
    BrowserFailed {
        upstream: String,
        why: String,
    },
    MemoryPressure {
        service: Option<String>,
        used: u64,
        limit: u64,
    },
    Heartbeat,
    ShutdownStarted {
        why: String,
    },
    /// `pending_paths` are in no commit, and `why` says for what reason.
    ShutdownFinished {
        code: i32,
        pending_paths: u64,
        why: Option<String>,
    },
}

impl Event {
    /// The public type, or `None` for an event that only moves the status document.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Event::BootStarted { .. } => "boot.started",
            Event::StateRestored { .. } => "state.restored",
            Event::StateRestoreDegraded { .. } => "state.restore_degraded",
            Event::ServiceStarted { .. } => "service.started",
            Event::ServiceReady { .. } => "service.ready",
            Event::ServiceExited { .. } => "service.exited",
            Event::ServiceUnhealthy { .. } => "service.unhealthy",
            Event::ServiceCrashLoop { .. } => "service.crash_loop",
            Event::GatewayConfigRolledBack { .. } => "gateway.config_rolled_back",
            Event::SnapshotCommitted { .. } => "snapshot.committed",
            Event::SnapshotFailed { .. } => "snapshot.failed",
            Event::SnapshotSuspicious { .. } => "snapshot.suspicious",
            Event::StoreUnavailable { .. } => "store.unavailable",
            Event::StoreRecovered { .. } => "store.recovered",
            Event::StoreFenced { .. } | Event::StoreBranched { .. } => "store.fenced",
            Event::BrowserConnected { .. } => "browser.connected",
            Event::BrowserFailed { .. } => "browser.failed",
            Event::MemoryPressure { .. } => "memory.pressure",
            Event::Heartbeat => "heartbeat",
            Event::ShutdownStarted { .. } => "shutdown.started",
            Event::ShutdownFinished { .. } => "shutdown.finished",
            Event::BootPhase { .. }
            | Event::RestoreProgress { .. }
            | Event::ServiceChanged { .. }
            | Event::GatewayFound { .. }
            | Event::ServiceMeasured { .. }
            | Event::SnapshotPending { .. }
            | Event::StorePlaced { .. }
            | Event::StoreAvailable { .. }
            | Event::StoreMeasured { .. }
            | Event::BrowserOffered { .. } => return None,
        })
    }

    /// Every text in it that may quote what others wrote.
    pub fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Event::ServiceChanged { service, why, .. } => std::iter::once(service).chain(why).collect(),
            Event::StateRestoreDegraded { why, .. }
            | Event::SnapshotFailed { why, .. }
            | Event::SnapshotSuspicious { why, .. }
            | Event::StoreUnavailable { why }
            | Event::ShutdownStarted { why } => vec![why],
            Event::ServiceStarted { service, .. }
            | Event::ServiceReady { service, .. }
            | Event::ServiceMeasured { service, .. }
            | Event::ServiceExited { service, .. } => vec![service],
            Event::ServiceUnhealthy { service, why } | Event::ServiceCrashLoop { service, why, .. } => {
                vec![service, why]
            }
            Event::GatewayFound { version } => vec![version],
            Event::GatewayConfigRolledBack { reason, kept } => vec![reason, kept],
            Event::StoreAvailable { path, .. } => vec![path],
            Event::StoreFenced { by, why } | Event::StoreBranched { by, why, .. } => vec![by, why],
            Event::SnapshotPending { warnings, .. } | Event::SnapshotCommitted { warnings, .. } => {
                warnings.iter_mut().collect()
            }
            Event::StateRestored { aside, .. } => aside.iter_mut().collect(),
            Event::BrowserOffered { upstream } | Event::BrowserConnected { upstream } => vec![upstream],
            Event::BrowserFailed { upstream, why } => vec![upstream, why],
            Event::MemoryPressure { service, .. } => service.iter_mut().collect(),
            Event::ShutdownFinished { why, .. } => why.iter_mut().collect(),
            Event::BootStarted { .. }
            | Event::BootPhase { .. }
            | Event::RestoreProgress { .. }
            | Event::StorePlaced { .. }
            | Event::StoreMeasured { .. }
            | Event::StoreRecovered { .. }
            | Event::Heartbeat => Vec::new(),
        }
    }
}

/// The way out for events: cheap to clone, never blocks, usable from any thread.
#[derive(Debug, Clone)]
pub struct Events(mpsc::UnboundedSender<Event>);

impl Events {
    /// A sender and the one receiver, which `report` owns.
    pub fn channel() -> (Events, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Events(sender), receiver)
    }

    /// Says what happened. After `report` has ended at shutdown nobody listens, and that is fine.
    pub fn emit(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

/// Whole milliseconds, the unit of every duration in an event.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
