//! How many bytes may be in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of all that waits in one place. A longer message takes all of it.
const BYTES: usize = 16 << 20;
/// What a message costs besides its bytes.
const MESSAGE: usize = 256;

/// To be shared by all who put something there.
#[derive(Debug, Clone)]
pub struct Budget {
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// A message's part of the budget, as long as it waits.
pub type Share = OwnedSemaphorePermit;

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            room: Arc::new(Semaphore::new(BYTES)),
            waiting: Arc::default(),
        }
    }
}

impl Budget {
    /// Waits until there is room for so many bytes. Who comes first is served first.
    pub async fn share(&self, bytes: usize) -> Share {
        let share = Arc::clone(&self.room).acquire_many_owned(bytes.saturating_add(MESSAGE).min(BYTES) as u32);
        let _waits = Waits::new(&self.waiting);
        share.await.expect("a budget is never closed")
    }

    /// Waits until there is room for anything.
    pub async fn some(&self) {
        drop(self.share(0).await);
    }

    /// There is no room for anything.
    pub fn is_spent(&self) -> bool {
        self.room.available_permits() < MESSAGE
    }

    /// Somebody waits for room.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Somebody who waits, until dropped.
struct Waits<'a>(&'a AtomicUsize);

impl Waits<'_> {
    fn new(waiting: &AtomicUsize) -> Waits<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
