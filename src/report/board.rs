//! Where the present status hangs for all to read: one writer at a time, readers never wait for work to be done.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::status::{self, Status};

/// The present status.
pub struct Board {
    status: Mutex<Arc<Status>>,
    events: watch::Receiver<status::Events>,
}

impl Board {
    pub fn new(status: Status, events: watch::Receiver<status::Events>) -> Board {
        Board {
            status: Mutex::new(Arc::new(status)),
            events,
        }
    }

    /// The status as folded so far; held only as long as it takes to copy a pointer.
    pub fn now(&self) -> Arc<Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The whole document with every age filled in, as shown to people.
    pub fn document(&self) -> Status {
        let mut status = self.now().at(jiff::Timestamp::now());
        status.events = self.events.borrow().clone();
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
