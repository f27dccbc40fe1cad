//! Commits and restarts of the gateway leave nothing behind in PID 1.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit, stand_in},
    eventually, process,
};

/// Threads of a pool and connections come and go by a few.
const FEW: usize = 8;
/// What an allocator may keep.
const SLACK: u64 = 24 << 20;

#[derive(Debug, Clone, Copy)]
struct Usage {
    descriptors: usize,
    threads: usize,
    children: usize,
    resident: u64,
}

impl Usage {
    fn of(container: &Container) -> Usage {
        let pid = container.init.as_raw();
        let count = |dir| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
        Usage {
            descriptors: count("fd"),
            threads: count("task"),
            children: process::children(pid).len(),
            resident: process::resident(pid),
        }
    }

    fn is_like(self, before: Usage) -> bool {
        self.descriptors <= before.descriptors + FEW
            && self.threads <= before.threads + FEW
            && self.children <= before.children
            && self.resident <= before.resident + SLACK
    }
}

fn churn(container: &Container, disk: &Disk, goes_on: impl Fn(u64) -> bool) {
    for turn in (0..).take_while(|turn| goes_on(*turn)) {
        fs::write(disk.state().join(format!("file-{}", turn % 20)), turn.to_string()).unwrap();
        commit(container);
        if turn % 10 == 0 {
            restart(container);
        }
    }
}

fn restart(container: &Container) {
    let starts = || container.status()["services"]["gateway"]["starts"].as_u64().unwrap();
    let before = starts();
    assert_eq!(container.post("/services/gateway/restart").unwrap().status, 202);
    eventually("another gateway", PATIENCE, || (starts() > before).then_some(()));
    container.wait_for("/readyz", PATIENCE);
}

#[test]
fn commits_and_restarts_leave_nothing_behind() {
    let (disk, store) = (Disk::new(), tempfile::tempdir().unwrap());
    let container = stand_in(&disk, store.path());
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    churn(&container, &disk, |turn| turn < 20);
    let (before, began) = (Usage::of(&container), Instant::now());
    match super::variable("MOLTINIT_CHAOS_CHURN_MINUTES") {
        // No faster than an agent makes them: for an hour each is kept, and takes its place in memory.
        Some(minutes) => churn(&container, &disk, |_| {
            thread::sleep(Duration::from_secs(1));
            began.elapsed() < Duration::from_secs(60 * minutes)
        }),
        None => churn(&container, &disk, |turn| turn < 120),
    }
    let mut after = before;
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("what was used before", Duration::from_secs(30), || {
            after = Usage::of(&container);
            after.is_like(before).then_some(())
        });
    }));
    let commits = container.status()["snapshots"]["commits"].clone();
    eprintln!(
        "{commits} commits in {:?}: before {before:?}, after {after:?}",
        began.elapsed()
    );
    assert!(settled.is_ok(), "before {before:?}, after {after:?}");
}
