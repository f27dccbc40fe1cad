//! Where the present status hangs for all to read: one writer at a time, readers never wait for work to be done.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::{sync::watch, task::AbortHandle};

use super::status::{self, Status};

/// The present status.
pub struct Board {
    status: Mutex<Arc<Status>>,
    events: watch::Receiver<status::Events>,
    /// The task that keeps the status.
    keeper: OnceLock<AbortHandle>,
}

impl Board {
    pub fn new(status: Status, events: watch::Receiver<status::Events>) -> Board {
        Board {
            status: Mutex::new(Arc::new(status)),
            events,
            keeper: OnceLock::new(),
        }
    }

    /// Names the task without which nothing here is true any longer.
    pub fn kept_by(&self, keeper: AbortHandle) {
        let _ = self.keeper.set(keeper);
    }

    /// Whether that task still runs.
    pub fn is_kept(&self) -> bool {
        self.keeper.get().is_none_or(|keeper| !keeper.is_finished())
    }

    /// The status as folded so far; held only as long as it takes to copy a pointer.
    pub fn now(&self) -> Arc<Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The whole document with every age filled in, as shown to people.
    pub fn document(&self) -> Status {
        let mut status = self.now().at(jiff::Timestamp::now());
        status.events = self.events.borrow().clone();
        if self.events.has_changed().is_err() {
            status.events.failing = Some("the event log has ended; this is a bug, and a restart begins it anew".into());
        }
        if status.callbacks.state == status::CallbackState::Off {
            // Nobody waits for them.
            status.events.undelivered = 0;
        }
        let measured = super::memory::measure();
        status.memory = status::Memory {
            pressure: status.memory.pressure,
            ..measured
        };
        status
    }

    pub fn update(&self, change: impl FnOnce(Status) -> Status) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = Arc::new(change(Status::clone(&status)));
    }
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;

    #[tokio::test]
    async fn the_end_of_those_who_keep_it_is_noticed() {
        let (events, progress) = watch::channel(status::Events::default());
        let status = Status::new("test", Ulid::nil(), false, jiff::Timestamp::UNIX_EPOCH);
        let board = Board::new(status, progress);
        let keeper = tokio::spawn(std::future::pending::<()>());
        board.kept_by(keeper.abort_handle());
        assert!(board.is_kept() && board.document().events.failing.is_none());
        keeper.abort();
        let _ = keeper.await;
        drop(events);
        assert!(!board.is_kept() && board.document().events.failing.is_some());
    }
}
