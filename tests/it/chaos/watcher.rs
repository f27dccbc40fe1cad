//! Asks the probes all the time while things go wrong.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use crate::support::http;

/// Far more than a probe takes on a busy machine, far less than anything takes that waits for the store.
const AT_ONCE: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_millis(50);

/// Shared with whoever makes things go wrong.
#[derive(Default)]
pub struct Watcher {
    over: AtomicBool,
    /// Odd while no answer can be expected.
    excuses: AtomicUsize,
}

impl Watcher {
    /// Asks until it is over. The handle gives how often it was answered and what was wrong with it.
    pub fn watch<'s>(
        &'s self,
        scope: &'s thread::Scope<'s, '_>,
        port: u16,
    ) -> ScopedJoinHandle<'s, (u64, Vec<String>)> {
        scope.spawn(move || {
            let (mut answered, mut wrong) = (0, Vec::new());
            while !self.over.load(Ordering::SeqCst) {
                for probe in ["/healthz", "/startupz", "/readyz"] {
                    let (excuse, began) = (self.excuses.load(Ordering::SeqCst), Instant::now());
                    let answer = http::get(port, probe, None);
                    let took = began.elapsed();
                    if excuse % 2 == 1 || self.excuses.load(Ordering::SeqCst) != excuse {
                        continue;
                    }
                    match answer {
                        Ok(answer) if took < AT_ONCE && matches!(answer.status, 200 | 503) => answered += 1,
                        answer => wrong.push(format!("{probe}: {answer:?} after {took:?}")),
                    }
                }
                thread::sleep(EVERY);
            }
            (answered, wrong)
        })
    }

    /// While `fault` goes on no answer can be expected.
    pub fn excused<T>(&self, fault: impl FnOnce() -> T) -> T {
        self.excuses.fetch_add(1, Ordering::SeqCst);
        let done = fault();
        self.excuses.fetch_add(1, Ordering::SeqCst);
        done
    }

    pub fn over(&self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// A check that fails must not leave the watcher at work, or it would never be told.
pub struct Over<'a>(pub &'a Watcher);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over();
    }
}
