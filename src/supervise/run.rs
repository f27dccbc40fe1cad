//! One run of a service: from a started process to nothing left of it.

use std::{
    collections::HashMap,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::unistd::Pid;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::pid1::{Child, Exit};

use super::{
    care::Ended,
    launch::Started,
    logs::{Log, Stream},
    machine::Input,
    probe::Prober,
    procfs::Table,
    scores::{self, Scores},
    service::{Message, Task},
    tree::Tree,
};

/// Lines of a run that its keeper gets to see when it has ended.
const TAIL: usize = 100;
/// How long the last lines may take to arrive once the processes are gone.
const LAST_LINES: Duration = Duration::from_millis(200);

pub struct Run {
    pub number: u64,
    /// The world has been told of it.
    pub told: bool,
    pub pid: Pid,
    pub started: Instant,
    /// `None` once it has ended.
    pub child: Option<Child>,
    pub was_ready: bool,
    /// The kernel's count when it was last looked at.
    pub oom_kills: u64,
    ended: Option<Ended>,
    /// `None` while what is left of it is being ended.
    tree: Option<Tree>,
    /// Processes that the kernel has been told to kill first.
    scored: HashMap<Pid, u64>,
    /// The number of its first line in the log.
    first_line: u64,
    readers: Vec<JoinHandle<()>>,
    probing: AbortOnDropHandle<()>,
    /// Cancelled when its liveness begins to count.
    watched: CancellationToken,
    /// Cancelled to kill what is left of it.
    force: CancellationToken,
}

impl Run {
    /// Begins to read what it writes and to probe it.
    pub fn begin(number: u64, started: Started, task: &Task) -> Run {
        let pid = started.child.pid();
        let first_line = task.log.next();
        let readers = [(started.stdout, Stream::Stdout), (started.stderr, Stream::Stderr)]
            .map(|(from, stream)| tokio::spawn(Arc::clone(&task.log).take_in(from, stream)));
        let prober = Prober {
            service: Arc::clone(&task.service),
            care: Arc::clone(&task.launcher.care),
            spawner: task.launcher.spawner.clone(),
            env: started.env,
            pulse: task.common.pulse.clone(),
        };
        let (outbox, notice) = (task.outbox.clone(), started.notice);
        let watched = CancellationToken::new();
        let watch = watched.clone();
        let probing = tokio::spawn(async move {
            let tell = |input| drop(outbox.send(Message::Probed(number, input)));
            let readiness = async {
                if let Some(probe) = &prober.service.ready {
                    let not_yet = |why| tell(Input::NotReady(why));
                    prober.until_ready(probe, notice, not_yet).await;
                    tell(Input::Ready);
                }
                watch.cancel();
            };
            let liveness = async {
                if let Some(probe) = &prober.service.live {
                    watch.cancelled().await;
                    tell(Input::Unhealthy(prober.until_unhealthy(probe).await));
                }
            };
            tokio::join!(readiness, liveness);
        });
        Run {
            number,
            told: false,
            pid,
            started: started.at,
            child: Some(started.child),
            was_ready: false,
            oom_kills: task.common.accounts.oom_kills(),
            ended: None,
            tree: Some(Tree::new(&task.service.name, pid, task.launcher.scores)),
            scored: HashMap::new(),
            first_line,
            readers: readers.into(),
            probing: AbortOnDropHandle::new(probing),
            watched,
            force: CancellationToken::new(),
        }
    }

    /// Comes back when the main process has ended.
    pub async fn exit(&mut self) -> Exit {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    pub fn has_ended(&mut self, exit: Exit, oom: bool, unhealthy: bool) {
        self.child = None;
        self.probing.abort();
        self.ended = Some(Ended {
            exit,
            was_ready: self.was_ready,
            oom,
            unhealthy,
            tail: Vec::new(),
        });
    }

    /// Asks whether it is alive, from now on, though it is not ready yet.
    pub fn watch(&self) {
        self.watched.cancel();
    }

    /// Tells the main process to end.
    pub fn terminate(&self, signal: i32) {
        if let Some(tree) = self.tree.as_ref().filter(|_| self.child.is_some()) {
            tree.terminate(signal);
        }
    }

    /// Kills everything, now if the main process lives, or else as it is cleared.
    pub fn kill(&self) {
        self.force.cancel();
        if let Some(tree) = self.tree.as_ref().filter(|_| self.child.is_some()) {
            let mut tree = tree.clone();
            tokio::spawn(async move { tree.kill().await });
        }
    }

    /// Finds its processes: has the kernel kill what it has started before itself, and gives the memory of all in
    /// bytes.
    pub fn count(&mut self, table: &Table, scores: Scores) -> Option<u64> {
        let tree = self.tree.as_mut()?;
        let members = tree.members(table);
        let used = members.iter().map(|process| process.resident).sum();
        let before = mem::take(&mut self.scored);
        for process in members.into_iter().filter(|process| process.pid != self.pid) {
            if before.get(&process.pid) != Some(&process.started) && !tree.spares(process) {
                scores::set(process.pid, scores.descendant);
            }
            self.scored.insert(process.pid, process.started);
        }
        Some(used)
    }

    /// Ends what the main process has left running and waits for its last lines; then says how it was. `None` if
    /// that is under way.
    pub fn clear(&mut self, log: &Arc<Log>) -> Option<impl Future<Output = Ended> + Send + use<>> {
        let mut tree = self.tree.take()?;
        let mut ended = self.ended.take()?;
        let readers = mem::take(&mut self.readers);
        let (log, force, first_line) = (Arc::clone(log), self.force.clone(), self.first_line);
        Some(async move {
            tree.clear(&force).await;
            let _ = timeout(LAST_LINES, join_all(readers)).await;
            ended.tail = log.last(TAIL, first_line);
            ended
        })
    }
}
