//! A look at all processes and the memory, every few seconds, once for all services.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::event::{Event, Events};

use super::{
    memory::{Accounts, Pressure},
    procfs::Table,
};

const EVERY: Duration = Duration::from_secs(10);
/// A service that is on its way to the memory it may use at most can be there fast.
const EVERY_WHEN_TIGHT: Duration = Duration::from_secs(2);

/// What was last seen; `None` before the first look, and where `/proc` is not mounted.
pub type Census = watch::Receiver<Option<Arc<Table>>>;

/// Starts to look; `least` is the smallest memory in bytes that any of the services may use at most.
pub fn start(accounts: Accounts, least: Option<u64>, events: Events) -> Census {
    let (seen, census) = watch::channel(None);
    tokio::spawn(async move {
        let mut pressure = Pressure::default();
        let mut every = least.map_or(EVERY, |_| EVERY_WHEN_TIGHT);
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
                every = pace(&table, least);
                seen.send_replace(Some(Arc::new(table)));
            }
        }
    });
    census
}

/// When to look again: soon, where all that was started here together uses half of what one service may.
fn pace(table: &Table, least: Option<u64>) -> Duration {
    let ours = table.processes.iter().filter(|process| table.is_ours(process));
    let used: u64 = ours.map(|process| process.resident).sum();
    match least {
        Some(least) if used >= least / 2 => EVERY_WHEN_TIGHT,
        _ => EVERY,
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::supervise::procfs::Process;

    #[test]
    fn it_looks_often_only_where_memory_may_run_out() {
        let process = |pid, parent, resident| Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(pid),
            session: Pid::from_raw(pid),
            started: 0,
            resident,
            name: String::new(),
            mark: None,
            score: None,
        };
        let table = Table {
            me: Pid::from_raw(1),
            processes: vec![
                process(1, 0, 900),
                process(2, 1, 30),
                process(3, 2, 20),
                process(9, 0, 900),
            ],
        };
        assert_eq!(pace(&table, None), EVERY);
        assert_eq!(pace(&table, Some(101)), EVERY_WHEN_TIGHT);
        assert_eq!(pace(&table, Some(102)), EVERY);
    }
}
