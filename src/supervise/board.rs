//! Where every service stands: written by each for itself, read by all.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::{event::ServiceState, pid1::Exit};

/// Where one service stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub name: String,
    pub state: ServiceState,
    /// Since when it is in that state.
    pub since: Timestamp,
    pub pid: Option<i32>,
    /// Restarts that nobody asked for.
    pub restarts: u32,
    /// Bytes of resident memory, of all its processes, when last looked at.
    pub memory: Option<u64>,
    pub last_exit: Option<LastExit>,
    /// Why it is where it is, if that needs a reason.
    pub why: Option<String>,
}

impl View {
    /// It is up, and has not become ready in the time that it had for that.
    pub fn is_overdue(&self) -> bool {
        self.state == ServiceState::Running && self.why.is_some()
    }
}

/// How the last run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastExit {
    /// The exit code as a shell has it: 128 and the signal's number for a death by signal.
    pub status: i32,
    /// The number of the signal that ended it.
    pub signal: Option<i32>,
    /// The kernel's OOM killer had a hand in it.
    pub oom: bool,
    pub at: Timestamp,
}

impl LastExit {
    pub fn new(exit: Exit, oom: bool) -> Self {
        LastExit {
            status: exit.status(),
            signal: match exit {
                Exit::Signal(signal) => Some(signal),
                Exit::Code(_) => None,
            },
            oom,
            at: Timestamp::now(),
        }
    }
}

/// Where all services stand, and which conditions hold.
#[derive(Debug, Clone, Default)]
pub struct Board {
    pub services: BTreeMap<String, View>,
    pub conditions: BTreeSet<String>,
}

impl Board {
    /// Whether something that services come after is ready.
    pub fn is_ready(&self, name: &str) -> bool {
        match self.services.get(name) {
            Some(view) => view.state == ServiceState::Ready,
            None => self.conditions.contains(name),
        }
    }

    pub fn is_stopped(&self, name: &str) -> bool {
        self.services
            .get(name)
            .is_none_or(|view| view.state == ServiceState::Stopped)
    }

    /// Nothing of it runs, and nothing will before somebody changes that.
    pub fn is_down(&self, name: &str) -> bool {
        self.services
            .get(name)
            .is_none_or(|view| matches!(view.state, ServiceState::Stopped | ServiceState::Held))
    }
}

/// The board that is written on and watched.
pub type Shared = watch::Sender<Board>;

/// Waits until something is so on the board.
pub async fn until<T>(board: &Shared, mut found: impl FnMut(&Board) -> Option<T>) -> T {
    let mut watch = board.subscribe();
    loop {
        if let Some(found) = found(&watch.borrow_and_update()) {
            return found;
        }
        // The sender that we borrow cannot be gone.
        let _ = watch.changed().await;
    }
}
