//! All the processes of a service, wherever they have gone.
//!
//! The main process leads a session of its own, but what it starts may leave it: by `setsid`, by a double fork. As
//! orphans come to us (PID 1 or a subreaper), every process of a service stays below us, and is known by its
//! parents, by its session, by having been seen before, by the mark in its environment, or by its score.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, getpid},
};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::pid1::signals;

use super::{
    procfs::{self, Process, Table},
    scores::Scores,
};

/// A process that has not ended so long after SIGKILL hangs in the kernel, most likely on a file system that does
/// not answer; nothing can be done about it.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// The processes of one run of a service.
#[derive(Debug, Clone)]
pub struct Tree {
    service: String,
    main: Pid,
    scores: Scores,
    /// Every process seen so far, by pid and start time.
    known: HashMap<Pid, u64>,
}

impl Tree {
    pub fn new(service: &str, main: Pid, scores: Scores) -> Self {
        Tree {
            service: service.to_owned(),
            main,
            scores,
            known: HashMap::new(),
        }
    }

    /// Who of these belongs to the service; they are remembered.
    pub fn members<'t>(&mut self, table: &'t Table) -> Vec<&'t Process> {
        let mine = table.get(table.me).map(|me| me.session);
        let mut found: HashSet<Pid> = HashSet::new();
        let mut sessions: HashSet<Pid> = HashSet::from([self.main]);
        loop {
            let before = found.len();
            for process in &table.processes {
                let belongs = process.pid == self.main
                    || process.group == self.main
                    || found.contains(&process.parent)
                    || sessions.contains(&process.session)
                    || self.known.get(&process.pid) == Some(&process.started)
                    || process.mark.as_ref() == Some(&self.service)
                    || process.score.is_some_and(|score| self.scores.tell(score));
                if belongs && process.pid != table.me && table.is_ours(process) && found.insert(process.pid) {
                    // No new process can get the number of a session that still has a member.
                    let another = Some(process.session) != mine && process.session != Pid::from_raw(0);
                    sessions.extend(another.then_some(process.session));
                }
            }
            if found.len() == before {
                break;
            }
        }
        let members: Vec<_> = table.processes.iter().filter(|p| found.contains(&p.pid)).collect();
        self.known = members.iter().map(|p| (p.pid, p.started)).collect();
        members
    }

    /// Tells the main process to end. One that is stopped hears it too.
    pub fn terminate(&self, signal: i32) {
        let _ = signals::send(self.main, signal);
        let _ = killpg(self.main, Signal::SIGCONT);
    }

    /// Kills everything, the main process first.
    pub async fn kill(&mut self) {
        let _ = kill(self.main, Signal::SIGKILL);
        let _ = killpg(self.main, Signal::SIGKILL);
        if let Ok(table) = Table::read().await {
            let members: Vec<Process> = self.members(&table).into_iter().cloned().collect();
            for process in members.iter().filter(|process| !self.spares(process)) {
                send(process, Signal::SIGKILL);
            }
        }
    }

    /// Ends what the main process, which is gone, has left running: asks, and kills once `force` says so. Comes back
    /// when nothing is left, or nothing that can be ended.
    pub async fn clear(&mut self, force: &CancellationToken) {
        let service = self.service.clone();
        let left = |table: &Table| {
            let members = self.members(table).into_iter().cloned().collect::<Vec<_>>();
            members.into_iter().filter(|process| !self.spares(process)).collect()
        };
        if end_all(&service, left, force).await.is_err() {
            // Without `/proc` the process group is all that can be seen.
            end_group(self.main, force).await;
        }
    }

    /// A file system's daemon that the service mounted serves others too, our store among them: it outlives the
    /// service, and ends with the supervisor.
    pub fn spares(&self, process: &Process) -> bool {
        process.session != self.main
            && procfs::open_files(process.pid)
                .iter()
                .any(|file| file == Path::new("/dev/fuse"))
    }
}

/// Between the reading of a table and now the pid may have become somebody else's.
fn send(process: &Process, signal: Signal) {
    if procfs::started(process.pid) == Some(process.started) {
        let _ = kill(process.pid, signal);
    }
}

/// Ends what `left` finds, until it finds nothing: asks each once, kills once `force` says so.
///
/// # Errors
/// `/proc` cannot be read.
async fn end_all(
    whose: &str,
    mut left: impl FnMut(&Table) -> Vec<Process>,
    force: &CancellationToken,
) -> io::Result<()> {
    let mut asked: HashSet<Pid> = HashSet::new();
    let mut look = Look::default();
    loop {
        let left = left(&Table::read().await?);
        if left.is_empty() {
            return Ok(());
        }
        if force.is_cancelled() {
            left.iter().for_each(|process| send(process, Signal::SIGKILL));
        }
        for process in left.iter().filter(|process| asked.insert(process.pid)) {
            info!(
                service = whose,
                "ending {} ({}), which was left running", process.name, process.pid
            );
            // One of us, in `attach`, would take it for a wish to stop what it is attached to.
            if !procfs::is_this_program(process.pid) {
                send(process, Signal::SIGTERM);
                send(process, Signal::SIGCONT);
            }
        }
        if !look.again(force).await {
            let names: Vec<_> = left.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
            warn!(service = whose, "these do not die, even killed: {}", names.join(", "));
            return Ok(());
        }
    }
}

async fn end_group(group: Pid, force: &CancellationToken) {
    let mut look = Look::default();
    let _ = killpg(group, Signal::SIGTERM);
    let _ = killpg(group, Signal::SIGCONT);
    while killpg(group, None) != Err(Errno::ESRCH) {
        if force.is_cancelled() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        if !look.again(force).await {
            return;
        }
    }
}

/// When to look again whether processes have ended: they are not our children, so nobody tells us.
struct Look {
    pause: Duration,
    forced: Option<Instant>,
}

impl Default for Look {
    fn default() -> Self {
        Look {
            pause: LOOK_FIRST,
            forced: None,
        }
    }
}

impl Look {
    /// Waits a little, a little longer each time. False when killing has been tried for long enough.
    async fn again(&mut self, force: &CancellationToken) -> bool {
        if force.is_cancelled() && self.forced.is_none() {
            (self.forced, self.pause) = (Some(Instant::now()), LOOK_FIRST);
        }
        if self.forced.is_some() {
            sleep(self.pause).await;
        } else {
            tokio::select! {
                () = sleep(self.pause) => {}
                () = force.cancelled() => return true,
            }
        }
        self.pause = (self.pause * 2).min(LOOK_MAX);
        self.forced.is_none_or(|since| since.elapsed() < KILL_PATIENCE)
    }
}

/// Ends every process below us: asks, and kills what is left after `grace`. For the very end, when nothing may be
/// left.
pub async fn sweep(grace: Duration) {
    let force = CancellationToken::new();
    let forced = force.clone();
    let _timer = AbortOnDropHandle::new(tokio::spawn(async move {
        sleep(grace).await;
        forced.cancel();
    }));
    let left = |table: &Table| {
        // As PID 1 all there is in the namespace is ours, also what was started into it from outside; but not the
        // kernel's threads, which have no memory.
        let all = table.me == Pid::from_raw(1);
        let ours = |process: &&Process| process.pid != table.me && (all || table.is_ours(process));
        let living = |process: &&Process| process.resident > 0;
        table.processes.iter().filter(ours).filter(living).cloned().collect()
    };
    if end_all("", left, &force).await.is_err() && getpid() == Pid::from_raw(1) {
        let everybody = Pid::from_raw(-1);
        let _ = kill(everybody, Signal::SIGTERM);
        force.cancelled().await;
        let _ = kill(everybody, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, session: i32, mark: Option<&str>) -> Process {
        Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(session),
            session: Pid::from_raw(session),
            started: 1,
            resident: 1,
            name: "p".into(),
            mark: mark.map(str::to_owned),
            score: None,
        }
    }

    fn members(tree: &mut Tree, processes: Vec<Process>) -> Vec<i32> {
        let me = Pid::from_raw(1);
        let mut all = vec![process(1, 0, 1, None)];
        all.extend(processes);
        let table = Table { me, processes: all };
        tree.members(&table).iter().map(|p| p.pid.as_raw()).collect()
    }

    fn tree() -> Tree {
        Tree::new("a", Pid::from_raw(10), Scores::of(0, 0))
    }

    #[test]
    fn parents_sessions_and_marks_tell_whose_a_process_is() {
        let found = members(
            &mut tree(),
            vec![
                process(10, 1, 10, Some("a")),
                process(11, 10, 10, None),
                process(12, 11, 12, None),
                process(13, 1, 10, None),
                process(14, 1, 14, Some("a")),
                process(15, 1, 14, None),
                process(20, 1, 20, Some("b")),
                process(21, 20, 20, None),
                process(22, 1, 1, None),
            ],
        );
        assert_eq!(found, [10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn who_was_seen_once_is_known_again_but_not_by_its_pid_alone() {
        let mut tree = tree();
        members(&mut tree, vec![process(10, 1, 10, None), process(12, 10, 12, None)]);
        assert_eq!(members(&mut tree, vec![process(12, 1, 12, None)]), [12]);
        let mut another = process(12, 1, 12, None);
        another.started = 2;
        assert_eq!(members(&mut tree, vec![another]), [0; 0]);
    }

    #[test]
    fn who_has_dropped_all_else_is_known_by_its_score() {
        let with_score = |pid, score| Process {
            score: Some(score),
            ..process(pid, 1, pid, None)
        };
        let [a, b] = [0, 1].map(|index| Scores::of(index, 0));
        let all = vec![
            with_score(20, a.main),
            with_score(21, a.descendant),
            with_score(22, b.main),
        ];
        assert_eq!(members(&mut tree(), all), [20, 21]);
    }

    #[test]
    fn what_is_not_below_us_is_never_ours() {
        assert_eq!(members(&mut tree(), vec![process(30, 0, 10, Some("a"))]), [0; 0]);
        assert_eq!(
            members(&mut tree(), vec![process(31, 32, 10, None), process(32, 31, 10, None)]),
            [0; 0],
            "and a ring is no way to us"
        );
    }
}
