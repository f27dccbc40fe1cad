//! The few threads that touch the store, any of which may be lost to a call that never returns.
//!
//! A call to a hung mount blocks in the kernel and cannot be killed. So each call is a job with a deadline: when
//! that passes the caller gives the job up, its thread counts as lost until the call returns after all, and a
//! fresh thread takes the next job. Lost threads are few: beyond [`MAX_LOST`] one more is risked now and then, ever more
//! seldom, so that a store that came back is noticed though old calls do not return; beyond [`MOST_LOST`] none is until
//! one of them does. What was lost before the mounts changed counts for nothing: another may be in the store's place.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

const MAX_LOST: usize = 8;
const MOST_LOST: usize = 16;
/// Until the second risk; doubles from one to the next.
const FIRST_RISK: Duration = Duration::from_secs(60);

/// Why a job gave no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The deadline passed.
    TimedOut,
    /// Not tried: this many calls are stuck already.
    Stuck(usize),
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads for blocking calls; they end when the pool is dropped, but for those that are stuck.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    size: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(u64, Job)>,
    running: Vec<u64>,
    next: u64,
    /// Threads waiting for a job.
    idle: usize,
    /// Threads that are not lost.
    alive: usize,
    /// Jobs given up while they ran, each holding its thread.
    lost: Vec<u64>,
    /// Of these, how many were before the mounts changed.
    written_off: usize,
    mount_changes: u64,
    risk: Option<Risk>,
    closed: bool,
}

/// When one more thread may be risked, and how long it is then to the next.
struct Risk {
    at: Instant,
    pause: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A job panics outside the lock, so a poisoned queue is still whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool of at most `size` threads, started when first needed.
    pub fn new(size: usize) -> Pool {
        Pool {
            shared: Arc::new(Shared {
                size,
                queue: Mutex::default(),
                wake: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on one of the threads and waits for its answer, `deadline` at the most.
    pub fn call<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, answered) = mpsc::sync_channel(1);
        let id = self.submit(Box::new(move || {
            // The caller may have given up: then nobody wants the answer.
            let _ = answer.send(job());
        }))?;
        match answered.recv_timeout(deadline) {
            Ok(value) => Ok(value),
            Err(_) => {
                self.give_up(id);
                // It may have answered between the deadline and the giving up.
                answered.try_recv().map_err(|_| NoAnswer::TimedOut)
            }
        }
    }

    /// Runs `job` some time, without waiting; if all threads are stuck, when one of them comes back. Whatever it owns
    /// is dropped there: that may block as well.
    pub fn send(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.lock();
        self.staff(&mut queue);
        queue.add(Box::new(job));
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// How often the mounts have changed.
    pub fn look_at_mounts(&self, changes: u64) {
        self.shared.lock().look_at_mounts(changes);
    }

    /// Calls that were given up and have not returned yet.
    pub fn stuck(&self) -> usize {
        self.shared.lock().lost.len()
    }

    fn submit(&self, job: Job) -> Result<u64, NoAnswer> {
        let mut queue = self.shared.lock();
        self.staff(&mut queue);
        if queue.alive == 0 {
            return Err(NoAnswer::Stuck(queue.lost.len()));
        }
        let id = queue.add(job);
        drop(queue);
        self.shared.wake.notify_one();
        Ok(id)
    }

    /// Starts one more thread, if the next job needs one and it may be risked.
    fn staff(&self, queue: &mut Queue) {
        if queue.idle <= queue.waiting.len() && queue.alive < self.shared.size && queue.may_risk(Instant::now()) {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("store".into()).spawn(move || work(&shared));
            queue.alive += usize::from(started.is_ok());
        }
    }

    fn give_up(&self, id: u64) {
        let mut queue = self.shared.lock();
        queue.waiting.retain(|(waiting, _)| *waiting != id);
        if queue.running.contains(&id) {
            queue.lost.push(id);
            queue.alive -= 1;
        }
    }
}

impl Queue {
    fn add(&mut self, job: Job) -> u64 {
        self.next += 1;
        self.waiting.push_back((self.next, job));
        self.next
    }

    fn look_at_mounts(&mut self, changes: u64) {
        if self.mount_changes != changes {
            (self.mount_changes, self.written_off, self.risk) = (changes, self.lost.len(), None);
        }
    }

    fn may_risk(&mut self, now: Instant) -> bool {
        match (self.lost.len() - self.written_off, &self.risk) {
            (..MAX_LOST, _) => return true,
            (MOST_LOST.., _) => return false,
            (_, Some(risk)) if now < risk.at => return false,
            _ => {}
        }
        let pause = self.risk.take().map_or(FIRST_RISK, |risk| risk.pause);
        self.risk = Some(Risk {
            at: now + pause,
            pause: 2 * pause,
        });
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        if let Some((id, job)) = queue.waiting.pop_front() {
            queue.running.push(id);
            drop(queue);
            // A panic drops the answer's sender, which the caller sees; the thread and its books stay sound.
            let _ = catch_unwind(AssertUnwindSafe(job));
            queue = shared.lock();
            queue.running.retain(|running| *running != id);
            if let Some(at) = queue.lost.iter().position(|lost| *lost == id) {
                queue.lost.swap_remove(at);
                queue.written_off = queue.written_off.min(queue.lost.len());
                queue.risk = None;
                if queue.alive >= shared.size {
                    return;
                }
                queue.alive += 1;
            }
        } else if queue.closed {
            queue.alive -= 1;
            return;
        } else {
            queue.idle += 1;
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    /// Loses one thread of the pool until the sender is dropped.
    fn lose(pool: &Pool) -> mpsc::Sender<()> {
        let before = pool.stuck();
        loop {
            let (release, job) = hang();
            assert_eq!(pool.call(SHORT, job), Err(NoAnswer::TimedOut));
            // On a busy machine the deadline may pass before the job has begun, and then it never does.
            if pool.stuck() > before {
                return release;
            }
        }
    }

    /// A job that runs until its sender is dropped.
    fn hang() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (release, held) = mpsc::channel::<()>();
        (release, move || {
            let _ = held.recv();
        })
    }

    #[test]
    fn a_stuck_call_is_given_up_and_others_go_on() {
        let pool = Pool::new(1);
        let release = lose(&pool);
        assert_eq!(pool.call(LONG, || 7), Ok(7));
        drop(release);
        while pool.stuck() > 0 {
            thread::yield_now();
        }
        assert_eq!(pool.call(LONG, || 8), Ok(8));
    }

    #[test]
    fn threads_are_lost_up_to_a_small_number_and_then_one_is_risked() {
        let pool = Pool::new(1);
        // One more than the limit: the first risk is taken at once, the second only after a while.
        let held: Vec<_> = (0..=MAX_LOST).map(|_| lose(&pool)).collect();
        assert_eq!(pool.call(LONG, || ()), Err(NoAnswer::Stuck(MAX_LOST + 1)));
        drop(held);
        while pool.stuck() > 0 {
            thread::yield_now();
        }
        assert_eq!(pool.call(LONG, || 9), Ok(9));
    }

    #[test]
    fn threads_are_risked_ever_more_seldom_and_not_without_end() {
        let (mut queue, began) = (Queue::default(), Instant::now());
        let mut minutes = Vec::new();
        for minute in 0..30 * 24 * 60 {
            while queue.may_risk(began + Duration::from_secs(60 * minute)) {
                queue.lost.push(0);
                minutes.push(minute);
            }
        }
        assert_eq!(minutes[..MAX_LOST], [0; MAX_LOST]);
        assert_eq!(minutes[MAX_LOST..], [0, 1, 3, 7, 15, 31, 63, 127]);
        assert_eq!(queue.lost.len(), MOST_LOST);
        queue.look_at_mounts(1);
        assert!(queue.may_risk(began));
    }

    #[test]
    fn what_is_sent_while_all_are_stuck_is_never_dropped_by_the_sender() {
        struct Here(mpsc::Sender<thread::ThreadId>);
        impl Drop for Here {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let pool = Pool::new(1);
        let held: Vec<_> = (0..=MAX_LOST).map(|_| lose(&pool)).collect();
        let (dropped, seen) = mpsc::channel();
        let here = Here(dropped);
        pool.send(move || drop(here));
        assert!(seen.try_recv().is_err());
        drop(held);
        assert_ne!(seen.recv_timeout(LONG), Ok(thread::current().id()));
    }

    #[test]
    fn a_job_still_queued_at_its_deadline_never_runs() {
        let pool = Pool::new(1);
        let (release, job) = hang();
        pool.send(job);
        let (ran, seen) = mpsc::channel();
        assert_eq!(pool.call(SHORT, move || ran.send(()).is_ok()), Err(NoAnswer::TimedOut));
        drop(release);
        assert_eq!(pool.call(LONG, || ()), Ok(()));
        assert!(seen.try_recv().is_err());
    }

    #[test]
    fn a_panic_costs_its_caller_only() {
        let pool = Pool::new(1);
        assert_eq!(
            pool.call(LONG, || panic!("on purpose")),
            Err::<(), _>(NoAnswer::TimedOut)
        );
        assert_eq!(pool.call(LONG, || 1), Ok(1));
    }
}
