//! The status document: the one description of how things are, for `/status`, `moltinit status` and the metrics.
//!
//! Fields ending in `_seconds` are filled in by [`Status::at`] when the document is shown; everything else is
//! what [`super::fold`] made of the events. Its names are a stable interface, described in `docs/status.md`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::cost::Costs;
use crate::{
    event::{Phase, ServiceState},
    state::model::CommitId,
};

/// How everything is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub instance: String,
    /// Traffic may come: what `/readyz` says.
    pub ready: bool,
    /// What keeps it from being ready, by name.
    pub failing: Vec<String>,
    pub versions: Versions,
    pub boot: Boot,
    pub restore: Option<Restore>,
    /// Something older than the newest commit had to do.
    pub restore_degraded: Option<Degraded>,
    pub services: BTreeMap<String, Service>,
    pub snapshots: Snapshots,
    pub store: Store,
    pub browser: Browser,
    pub callbacks: Callbacks,
    pub events: Events,
    pub costs: Costs,
    pub memory: Memory,
    /// The last time the gateway's configuration was rolled back.
    pub config_rolled_back: Option<RolledBack>,
    pub shutdown: Option<Shutdown>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    pub moltinit: String,
    pub gateway: Option<String>,
}

/// This run of the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    pub id: Ulid,
    pub started: Timestamp,
    pub uptime_seconds: u64,
    pub phase: Phase,
    /// While the state is being restored, once it is known how much there is.
    pub restoring: Option<Restoring>,
    /// When `phase` became `done`.
    pub done: Option<Timestamp>,
    pub pid1: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restoring {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What the state was restored from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// `null`: the store held nothing, this is a first boot.
    pub commit: Option<CommitId>,
    pub at: Timestamp,
    pub files: u64,
    pub bytes: u64,
    pub took_ms: u64,
    /// Where state is now that was there before.
    #[serde(default)]
    pub aside: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Degraded {
    pub wanted: CommitId,
    pub used: Option<CommitId>,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub state: ServiceState,
    /// When it came into this state.
    pub since: Timestamp,
    pub since_seconds: u64,
    pub pid: Option<i32>,
    pub why: Option<String>,
    pub starts: u64,
    /// That nobody asked for.
    pub restarts: u32,
    /// From start to ready, the last time.
    pub ready_after_ms: Option<u64>,
    pub last_exit: Option<Exit>,
    /// Resident memory of its whole process tree, when last measured.
    pub memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub at: Timestamp,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel's OOM killer did it.
    pub oom: bool,
    /// It was asked to.
    pub intended: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshots {
    pub last: Option<Commit>,
    /// Age of the oldest change that is not in a snapshot yet; 0 when every change is durable.
    pub behind_seconds: u64,
    pub pending_paths: u64,
    pub pending_since: Option<Timestamp>,
    /// What the last commit does not have as it should be, a line each: a locked database, a file that cannot be read.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// In this boot.
    pub commits: u64,
    pub failures: u64,
    /// The failure that no commit has followed yet.
    pub failing: Option<Failure>,
    /// A commit that removed most of the state; the one before it is kept for good.
    pub suspicious: Option<Suspicious>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    pub commit: CommitId,
    pub parent: Option<CommitId>,
    pub at: Timestamp,
    pub age_seconds: u64,
    pub files: u64,
    pub state_bytes: u64,
    pub stored_bytes: u64,
    pub operations: u64,
    pub took_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub at: Timestamp,
    pub why: String,
    pub retry_in_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspicious {
    pub at: Timestamp,
    pub commit: CommitId,
    pub why: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    #[default]
    Unknown,
    Available,
    Unavailable,
    /// Commits here are a branch that no boot follows: another supervisor has begun a newer generation, or this one began
    /// without the history that the store has.
    Fenced,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Store {
    pub state: StoreState,
    pub required: bool,
    pub since: Option<Timestamp>,
    pub path: Option<String>,
    /// False: it vanishes with the container.
    pub durable: Option<bool>,
    pub why: Option<String>,
    /// What it holds of this instance, when last counted.
    pub objects: Option<u64>,
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrowserState {
    /// Nobody has used it yet, so nothing was launched.
    #[default]
    Unused,
    Connected,
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Browser {
    pub state: BrowserState,
    pub since: Option<Timestamp>,
    pub upstream: Option<String>,
    pub why: Option<String>,
    pub connects: u64,
    pub failures: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackState {
    /// No URL or no secret: events are kept and served, not posted.
    #[default]
    Off,
    On,
    Retrying,
    /// The receiver answered 410: nothing more until a restart.
    Gone,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Callbacks {
    pub state: CallbackState,
    /// Without user, password and query.
    pub url: Option<String>,
    /// In this boot.
    pub delivered: u64,
    pub failures: u64,
    pub last_delivered: Option<Delivered>,
    /// The failure that no delivery has followed yet.
    pub failing: Option<Undelivered>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivered {
    pub id: String,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Undelivered {
    pub id: String,
    pub at: Timestamp,
    pub why: String,
    pub attempts: u32,
    pub next_attempt: Option<Timestamp>,
}

/// The event log and outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Of this boot.
    pub last_seq: u64,
    pub kept: u64,
    pub undelivered: u64,
    /// Undelivered ones given up for the bound, in this boot.
    pub dropped: u64,
    /// Why nothing can be written at present.
    pub failing: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident memory of moltinit itself.
    pub moltinit_bytes: u64,
    /// Of the whole container, without what the kernel can drop.
    pub used_bytes: u64,
    pub limit_bytes: u64,
    pub pressure: Option<Pressure>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    pub at: Timestamp,
    pub service: Option<String>,
    pub used_bytes: u64,
    pub limit_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    pub at: Timestamp,
    pub reason: String,
    /// Where the bad file was kept.
    pub kept: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shutdown {
    pub at: Timestamp,
    pub why: String,
    pub finished: bool,
}

impl Status {
    /// How things are before anything happened.
    pub fn new(instance: &str, boot: Ulid, store_required: bool, now: Timestamp) -> Status {
        Status {
            instance: instance.to_owned(),
            ready: false,
            failing: Vec::new(),
            versions: Versions {
                moltinit: env!("CARGO_PKG_VERSION").to_owned(),
                gateway: None,
            },
            boot: Boot {
                id: boot,
                started: now,
                uptime_seconds: 0,
                phase: Phase::Store,
                restoring: None,
                done: None,
                pid1: false,
            },
            restore: None,
            restore_degraded: None,
            services: BTreeMap::new(),
            snapshots: Snapshots::default(),
            store: Store {
                required: store_required,
                ..Store::default()
            },
            browser: Browser::default(),
            callbacks: Callbacks::default(),
            events: Events::default(),
            costs: Costs::default(),
            memory: Memory::default(),
            config_rolled_back: None,
            shutdown: None,
        }
        .judged()
    }

    /// What keeps traffic away, by name: `restore`, `gateway`, `store`, `shutdown`. Empty means ready.
    fn obstacles(&self) -> Vec<String> {
        let restored = self.boot.phase > Phase::Restore && (self.restore.is_some() || !self.store.required);
        let gateway = self
            .services
            .get("gateway")
            .is_some_and(|service| service.state == ServiceState::Ready);
        let store = !self.store.required || self.store.state == StoreState::Available;
        [
            ("restore", restored),
            ("gateway", gateway),
            ("store", store),
            ("shutdown", self.shutdown.is_none()),
        ]
        .into_iter()
        .filter(|(_, fine)| !fine)
        .map(|(name, _)| name.to_owned())
        .collect()
    }

    /// With `ready` and `failing` as the rest of the document has it.
    pub(super) fn judged(mut self) -> Status {
        self.failing = self.obstacles();
        self.ready = self.failing.is_empty();
        self
    }

    /// The document as shown at `now`: every age filled in.
    pub fn at(&self, now: Timestamp) -> Status {
        let mut shown = self.clone();
        shown.boot.uptime_seconds = seconds(self.boot.started, now);
        for service in shown.services.values_mut() {
            service.since_seconds = seconds(service.since, now);
        }
        if let Some(last) = &mut shown.snapshots.last {
            last.age_seconds = seconds(last.at, now);
        }
        shown.snapshots.behind_seconds = self.snapshots.pending_since.map_or(0, |since| seconds(since, now));
        shown.costs = self.costs.at(now, self.store.bytes);
        shown
    }
}

/// Whole seconds from `then` to `now`; 0 if the clock went backwards in between.
fn seconds(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second() - then.as_second()).unwrap_or(0)
}
