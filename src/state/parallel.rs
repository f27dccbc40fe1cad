//! Several threads on one list, to hide the latency of a store.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Calls in flight: enough to hide the latency of a bucket, few enough for what each holds in memory.
const THREADS: usize = 6;

/// Calls a worker with every item, in order but several at a time, until one fails. Each thread has a worker of its
/// own, from `make`.
pub fn for_each<T: Sync, E: Send, W: FnMut(&T) -> Result<(), E>>(
    items: &[T],
    make: impl Fn() -> W + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let run = || {
        let _stop = StopOnPanic(&next, items.len());
        let mut worker = make();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = worker(item) {
                next.store(items.len(), Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREADS.min(items.len()) {
            scope.spawn(run);
        }
        run();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Ends the others' work when one panics: the panic is passed on as soon as all have stopped.
struct StopOnPanic<'a>(&'a AtomicUsize, usize);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(self.1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_seen_once_unless_one_fails() {
        let items: Vec<usize> = (0..1000).collect();
        let seen = Mutex::new(Vec::new());
        let collect = || {
            |item: &usize| {
                seen.lock().unwrap().push(*item);
                Ok::<(), ()>(())
            }
        };
        for_each(&items, collect).unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        assert_eq!(seen, items);
        assert_eq!(
            for_each(&items, || |item: &usize| if *item == 700 { Err(*item) } else { Ok(()) }),
            Err(700)
        );
        assert_eq!(for_each(&[], || |(): &()| Err(())), Ok(()));
    }

    #[test]
    fn a_panic_of_one_thread_ends_all_and_is_passed_on() {
        let items: Vec<usize> = (0..1_000_000).collect();
        let seen = AtomicUsize::new(0);
        let panicked = std::panic::catch_unwind(|| {
            for_each(&items, || {
                |item: &usize| {
                    seen.fetch_add(1, Ordering::Relaxed);
                    assert_ne!(*item, 10, "as asked");
                    // Slower than a panic is passed on.
                    thread::yield_now();
                    Ok::<(), ()>(())
                }
            })
        });
        assert!(panicked.is_err());
        assert!(seen.into_inner() < items.len());
    }
}
