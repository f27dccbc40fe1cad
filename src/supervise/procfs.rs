//! The processes there are, as `/proc` has them.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::unistd::{Pid, SysconfVar, getpid, sysconf};

use super::scores;

/// The variable by which a service's processes are known when nothing else tells whose they are.
pub const MARK: &str = "MOLTINIT_SERVICE";

/// Reading `/proc` takes milliseconds, but a process that hangs in a page fault can block who reads its environment.
const PATIENCE: Duration = Duration::from_secs(2);
/// A thread hangs so. While one does no other is put at risk.
static HANGS: AtomicBool = AtomicBool::new(false);

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
    /// When it was started, in clock ticks since boot: with the pid, who it is.
    pub started: u64,
    /// Resident memory in bytes.
    pub resident: u64,
    pub name: String,
    /// For a child of ours: the service that its environment names.
    pub mark: Option<String>,
    /// For a child of ours without a mark: its `oom_score_adj`.
    pub score: Option<i32>,
}

/// Every process that is alive.
#[derive(Debug, Clone)]
pub struct Table {
    pub me: Pid,
    pub processes: Vec<Process>,
}

impl Table {
    /// Reads them on a thread that may block.
    ///
    /// # Errors
    /// `/proc` is not mounted, or cannot be read in time.
    pub async fn read() -> io::Result<Table> {
        if !HANGS.load(Ordering::Relaxed) {
            let read = tokio::task::spawn_blocking(|| {
                let table = Table::read_now(true);
                HANGS.store(false, Ordering::Relaxed);
                table
            });
            match tokio::time::timeout(PATIENCE, read).await {
                Ok(table) => return table?,
                Err(_) => HANGS.store(true, Ordering::Relaxed),
            }
        }
        // Without the environments, whose reading hangs.
        tokio::task::spawn_blocking(|| Table::read_now(false)).await?
    }

    fn read_now(with_marks: bool) -> io::Result<Table> {
        let me = getpid();
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Those that end while this goes on are none.
            let Ok(stat) = fs::read(entry.path().join("stat")) else {
                continue;
            };
            let Some(mut process) = parse(Pid::from_raw(pid), &String::from_utf8_lossy(&stat), page) else {
                continue;
            };
            if with_marks && process.parent == me {
                process.mark = mark(process.pid);
                process.score = process.mark.is_none().then(|| scores::get(process.pid)).flatten();
            }
            processes.push(process);
        }
        if !processes.iter().any(|process| process.pid == me) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "/proc is not mounted"));
        }
        Ok(Table { me, processes })
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.iter().find(|process| process.pid == pid)
    }

    /// Whether a process has come from us, however far down.
    pub fn is_ours(&self, process: &Process) -> bool {
        self.child_above(process).is_some()
    }

    /// The service that a process has come from, as far as environments tell.
    pub fn mark_of<'t>(&'t self, process: &'t Process) -> Option<&'t str> {
        self.child_above(process)?.mark.as_deref()
    }

    /// The child of ours that a process is or has come from, however far down.
    fn child_above<'t>(&'t self, process: &'t Process) -> Option<&'t Process> {
        let mut above = process;
        // A table that was read while processes came and went may have a ring in it.
        for _ in 0..=self.processes.len() {
            if above.parent == self.me {
                return Some(above);
            }
            above = self.get(above.parent)?;
        }
        None
    }
}

/// A line of `/proc/PID/stat`; `None` for a zombie, of which there is nothing left to end.
fn parse(pid: Pid, stat: &str, page: u64) -> Option<Process> {
    // The name may have spaces and brackets in it.
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X" | "x") {
        return None;
    }
    let number = |index: usize| fields.get(index)?.parse::<i64>().ok();
    let id = |index: usize| Some(Pid::from_raw(i32::try_from(number(index)?).ok()?));
    Some(Process {
        pid,
        parent: id(1)?,
        group: id(2)?,
        session: id(3)?,
        started: u64::try_from(number(19)?).ok()?,
        resident: u64::try_from(number(21)?).ok()? * page,
        name,
        mark: None,
        score: None,
    })
}

fn mark(pid: Pid) -> Option<String> {
    let environ = fs::read(directory(pid).join("environ")).ok()?;
    environ.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

/// When the process of that pid was started, if there is one and it is no zombie.
pub fn started(pid: Pid) -> Option<u64> {
    let stat = fs::read(directory(pid).join("stat")).ok()?;
    Some(parse(pid, &String::from_utf8_lossy(&stat), 0)?.started)
}

/// What a process has open, as far as it can be seen.
pub fn open_files(pid: Pid) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory(pid).join("fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect()
}

/// Whether a process runs this very program.
pub fn is_this_program(pid: Pid) -> bool {
    let exe = |of: PathBuf| fs::read_link(of.join("exe")).ok();
    exe(directory(pid)).is_some_and(|theirs| exe(directory(getpid())) == Some(theirs))
}

fn directory(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_trap() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1000 25 18446744073709551615";
        let process = parse(Pid::from_raw(7), stat, 4096).unwrap();
        assert_eq!(process.name, "a) b (c");
        assert_eq!((process.parent, process.started), (Pid::from_raw(1), 12345));
        assert_eq!(process.resident, 25 * 4096);
        assert_eq!(parse(Pid::from_raw(7), &stat.replace(") S", ") Z"), 4096), None);
    }

    #[tokio::test]
    async fn this_process_is_in_the_table() {
        let table = Table::read().await.unwrap();
        let me = table.get(getpid()).unwrap();
        assert!(me.resident > 0);
        assert_eq!(started(me.pid), Some(me.started));
        assert!(is_this_program(me.pid));
    }
}
