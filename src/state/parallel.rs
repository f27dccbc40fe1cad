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
}
