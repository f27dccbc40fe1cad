//! Several threads on one list, to hide the latency of a store.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Calls in flight: enough to hide the latency of a bucket, few enough for what each holds in memory.
const THREADS: usize = 6;
/// Threads that take what others have made: work for processors, of which there are few.
const TAKERS: usize = 3;

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

/// Has some threads make something of every item, those of a group one after the other, and others take what was made,
/// until one fails. Of what was made at most `ahead` wait to be taken.
pub fn piped<T: Sync, M: Send, E: Send, W: FnMut(&T) -> Result<M, E>, U: FnMut(M) -> Result<(), E>>(
    groups: &[&[T]],
    ahead: usize,
    make: impl Fn() -> W + Sync,
    take: impl Fn() -> U + Sync,
) -> Result<(), E> {
    let (made, waiting) = mpsc::sync_channel(ahead);
    // Gone with the last who takes: then there is nobody to make anything for.
    let waiting = Arc::new(Mutex::new(waiting));
    let failed = Mutex::new(None);
    let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let takes = |waiting: Arc<Mutex<mpsc::Receiver<M>>>| {
        let mut taker = take();
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(next) = next() {
            if failure().is_some() {
                return;
            }
            if let Err(error) = taker(next) {
                failure().get_or_insert(error);
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..TAKERS {
            let (takes, waiting) = (&takes, Arc::clone(&waiting));
            scope.spawn(move || takes(waiting));
        }
        drop(waiting);
        let makes = for_each(groups, || {
            let (made, mut maker) = (made.clone(), make());
            move |group: &&[T]| {
                let mut each = group.iter();
                each.try_for_each(|item| made.send(maker(item).map_err(Some)?).map_err(|_| None))
            }
        });
        drop(made);
        if let Err(Some(error)) = makes {
            failure().get_or_insert(error);
        }
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
    fn everything_made_is_taken_once_unless_one_fails() {
        let items: Vec<usize> = (0..1000).collect();
        let seen = Mutex::new(Vec::new());
        let double = || |item: &usize| Ok::<usize, usize>(2 * item);
        let collect = || {
            |made| {
                seen.lock().unwrap().push(made);
                Ok(())
            }
        };
        piped(&[&items[..300], &items[300..]], 3, double, collect).unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        assert!(seen.iter().copied().eq((0..1000).map(|item| 2 * item)));
        let refuse = || |made: usize| if made == 1400 { Err(made) } else { Ok(()) };
        assert_eq!(piped(&[&items[..300], &items[300..]], 3, double, refuse), Err(1400));
        let fail = || |item: &usize| if *item == 700 { Err(*item) } else { Ok(*item) };
        assert_eq!(piped(&[&items[..300], &items[300..]], 3, fail, || |_| Ok(())), Err(700));
        assert_eq!(piped(&[], 3, double, || |_| Err(0)), Ok(()));
    }

    /// Whoever makes or takes: nobody waits for ever for those that are gone.
    #[test]
    fn a_panic_on_either_side_is_passed_on() {
        let items: Vec<usize> = (0..1000).collect();
        for makes in [true, false] {
            let panicked = std::panic::catch_unwind(|| {
                let make = || {
                    |item: &usize| {
                        assert!(!makes, "as asked");
                        Ok::<usize, ()>(*item)
                    }
                };
                piped(&[&items[..300], &items[300..]], 3, make, || |_| panic!("as asked"))
            });
            assert!(panicked.is_err());
        }
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
