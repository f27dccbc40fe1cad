//! How many bytes may wait in queues.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of what waits in all queues of one direction. A longer message takes all of it.
const BYTES: usize = 16 << 20;
/// What a message costs besides its bytes.
const MESSAGE: usize = 256;

/// To be shared by all who put something into queues.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

/// A message's part of the budget, as long as it waits.
pub type Share = OwnedSemaphorePermit;

impl Default for Budget {
    fn default() -> Budget {
        Budget(Arc::new(Semaphore::new(BYTES)))
    }
}

impl Budget {
    /// Waits until there is room for so many bytes.
    pub async fn share(&self, bytes: usize) -> Share {
        let share = Arc::clone(&self.0).acquire_many_owned(bytes.saturating_add(MESSAGE).min(BYTES) as u32);
        share.await.expect("a budget is never closed")
    }
}
