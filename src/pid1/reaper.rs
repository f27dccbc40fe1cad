//! The reaper: one thread that sleeps in `waitid` and takes the status of every child there is.
//!
//! The table of who waits for which pid is filled under its lock together with the fork, and a status is taken under
//! the same lock. So a child that exits at once is in the table when it is reaped, and a pid that the kernel uses
//! again cannot be taken for its predecessor. The reaper waits for nothing else and does nothing slow.

use std::{
    collections::HashMap,
    io,
    os::unix::thread::JoinHandleExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        pthread::{Pthread, pthread_kill},
        signal::{SigSet, Signal},
    },
    unistd::Pid,
};
use tokio::sync::oneshot;

use super::{
    signals,
    wait::{self, Change, Exit},
};

/// A child whose exit status will be told. Dropping it neither ends the process nor leaves a zombie.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
}

impl Child {
    /// Its pid; also its process group, and its session if it was given one.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end; again and again it tells the same. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        // The reaper lives as long as the process, so a sender is only dropped unused if something else in this
        // process took the status, which is what the ban on other spawners is about.
        let exit = (&mut self.exit).await.unwrap_or(Exit::Code(1));
        *self.ended.insert(exit)
    }
}

type Table = HashMap<Pid, oneshot::Sender<Exit>>;

/// The table of awaited children, and the thread that empties it.
#[derive(Clone)]
pub struct Reaper {
    awaited: Arc<Mutex<Table>>,
    thread: Pthread,
}

impl Reaper {
    /// Starts the thread. Called once in a process.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> io::Result<Reaper> {
        let awaited = Arc::new(Mutex::new(Table::new()));
        let table = Arc::clone(&awaited);
        let thread = std::thread::Builder::new()
            .name("reaper".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                // Blocked here, SIGCHLD stays pending until it is waited for.
                let children = SigSet::from(Signal::SIGCHLD);
                let _ = children.thread_block();
                loop {
                    reap(&table, &children);
                }
            })?;
        let thread = thread.as_pthread_t();
        Ok(Reaper { awaited, thread })
    }

    /// Makes a child by `fork` and waits for its end from then on.
    ///
    /// # Errors
    /// Those of `fork`.
    pub fn adopt<T>(&self, fork: impl FnOnce() -> io::Result<(Pid, T)>) -> io::Result<(Child, T)> {
        let (sender, exit) = oneshot::channel();
        let mut table = lock(&self.awaited);
        let (pid, with) = fork()?;
        table.insert(pid, sender);
        drop(table);
        // The reaper may be waiting for a first child to appear.
        let _ = pthread_kill(self.thread, Signal::SIGCHLD);
        Ok((Child { pid, exit, ended: None }, with))
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(table: &Mutex<Table>, children: &SigSet) {
    // Looks without taking: the status is taken under the lock.
    let pid = match wait::ended() {
        Ok(pid) => pid,
        Err(Errno::EINTR) => return,
        // There is no child.
        Err(_) => {
            let _ = signals::wait(children);
            return;
        }
    };
    let mut table = lock(table);
    let Ok(Some((pid, Change::Ended(exit)))) = wait::take(Some(pid), 0) else {
        return;
    };
    if let Some(waiting) = table.remove(&pid) {
        let _ = waiting.send(exit);
    }
}
