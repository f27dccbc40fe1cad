//! A look at all processes and the memory, every few seconds, once for all services.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::event::{Event, Events};

use super::{
    memory::{Accounts, Pressure},
    procfs::Table,
};

const EVERY: Duration = Duration::from_secs(10);
/// A service that may only use so much memory can outgrow it fast.
const EVERY_WITH_LIMITS: Duration = Duration::from_secs(2);

/// What was last seen; `None` before the first look, and where `/proc` is not mounted.
pub type Census = watch::Receiver<Option<Arc<Table>>>;

/// Starts to look.
pub fn start(accounts: Accounts, with_limits: bool, events: Events) -> Census {
    let every = if with_limits { EVERY_WITH_LIMITS } else { EVERY };
    let (seen, census) = watch::channel(None);
    tokio::spawn(async move {
        let mut pressure = Pressure::default();
        while !seen.is_closed() {
            tokio::time::sleep(every).await;
            if let Some(usage) = accounts.usage().filter(|usage| pressure.is_news(*usage)) {
                tracing::warn!(used = usage.used, limit = usage.limit, "memory is getting tight");
                events.emit(Event::MemoryPressure {
                    service: None,
                    used: usage.used,
                    limit: usage.limit,
                });
            }
            if let Ok(table) = Table::read().await {
                seen.send_replace(Some(Arc::new(table)));
            }
        }
    });
    census
}
