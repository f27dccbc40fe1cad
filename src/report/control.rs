//! What the outside may ask for: the one trait behind which the HTTP routes and the control socket find the rest
//! of the supervisor.

use std::collections::BTreeMap;

use futures_util::{future::BoxFuture, stream::BoxStream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::model::{CommitId, Meta};

/// Something asked for that was not done, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such service, snapshot or request.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as things stand; asking again unchanged will not help.
    #[error("{0}")]
    Conflict(String),
    /// It cannot be done just now; asking again later may help.
    #[error("{0}")]
    Unavailable(String),
    /// The store is not there, or does not answer.
    #[error("{0}")]
    Store(String),
    /// The configuration that came with it is wrong; every problem by name.
    #[error("{0}")]
    Configuration(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// What comes of a request, some time.
pub type Answer<T> = BoxFuture<'static, Result<T, Refusal>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Start,
    Stop,
    Restart,
}

/// One line that a service wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub time: Timestamp,
    pub stream: Stream,
    pub text: String,
}

/// What comes of following a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Piece {
    Line(LogLine),
    /// So many lines came faster than they were read, and are gone.
    Missed {
        missed: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The gateway's pairing requests and paired devices, as the gateway describes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Devices {
    pub pending: Vec<serde_json::Value>,
    pub paired: Vec<serde_json::Value>,
}

/// The supervisor as seen from outside. Every method returns at once; what takes time is in the future.
pub trait Control: Send + Sync + 'static {
    /// The supervisor's loop has turned within the last few seconds. Read from memory.
    fn alive(&self) -> bool;

    /// Starts, stops or restarts a service. The future ends when it is ready (or up, without a readiness probe)
    /// or has stopped.
    ///
    /// # Errors
    /// `NotFound` at once for a service that is not configured.
    fn service(&self, name: &str, action: Action) -> Result<Answer<()>, Refusal>;

    /// Takes `env` into the service's environment, starts the service if it is not up, and ends with its exit code.
    ///
    /// # Errors
    /// `NotFound` at once for a service that is not configured.
    fn attach(&self, name: &str, env: BTreeMap<String, String>) -> Result<Answer<i32>, Refusal>;

    /// The last `count` lines of a service.
    fn logs(&self, service: &str, count: usize) -> Answer<Vec<LogLine>>;

    /// The last `count` lines of a service, then every new one as it comes.
    fn follow(&self, service: &str, count: usize) -> Answer<BoxStream<'static, Piece>>;

    /// Every commit there is, oldest first.
    fn snapshots(&self) -> Answer<Vec<Meta>>;

    /// Commits now; the newest commit if nothing has changed since.
    fn snapshot_now(&self) -> Answer<Meta>;

    /// Puts a commit in place of the live state, and rolls back if the gateway does not become ready on it.
    ///
    /// # Errors
    /// `Conflict` at once while another restore runs.
    fn restore(&self, id: CommitId) -> Result<Answer<()>, Refusal>;

    fn devices(&self) -> Answer<Devices>;

    fn approve(&self, request: &str) -> Answer<()>;
}
