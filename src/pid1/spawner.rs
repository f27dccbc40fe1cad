//! The one way to start a process.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        signal::{SigSet, Signal, killpg},
        stat::Mode,
    },
    unistd::pipe2,
};
use tokio::io::AsyncReadExt;

use super::{
    launch::{self, EXEC_PATIENCE, Group, Launch, Stdio},
    lookup::{self, NotFound},
    reaper::{Child, Reaper},
    signals,
    wait::Exit,
};

/// What is kept of each stream of a command that is [run](Spawner::run).
const OUTPUT_MAX: u64 = 1 << 20;

/// A process to start.
#[derive(Debug)]
pub struct Spawn {
    /// The command; never empty.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    pub cwd: Option<PathBuf>,
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
    /// Further file descriptors, and the numbers the child shall find them under.
    pub extra_fds: Vec<(OwnedFd, i32)>,
    /// For the kernel's choice of whom to kill: -1000 never, 1000 first. `None`: what this process was started with.
    pub oom_score_adj: Option<i32>,
}

impl Spawn {
    /// That command with this process's environment, directory and output, and nothing to read.
    pub fn new(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Spawn {
        Spawn {
            argv: argv.into_iter().map(Into::into).collect(),
            env: std::env::vars_os().collect(),
            cwd: None,
            stdin: Stdio::Null,
            stdout: Stdio::Inherit,
            stderr: Stdio::Inherit,
            extra_fds: Vec::new(),
            oom_score_adj: None,
        }
    }
}

/// A process that did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("{0}")]
    NotFound(NotFound),
    #[error("`{}` cannot be run: {}", .program.display(), why(*.errno, .cwd.as_ref()))]
    Exec {
        program: PathBuf,
        cwd: Option<PathBuf>,
        errno: Errno,
    },
    #[error("no process can be started: {0}")]
    Fork(#[from] io::Error),
}

fn why(errno: Errno, cwd: Option<&PathBuf>) -> String {
    match (errno, cwd) {
        (Errno::ENOENT, Some(cwd)) => format!(
            "no such file, or the interpreter in its first line or its directory {} is missing",
            cwd.display()
        ),
        (Errno::ENOENT, None) => "no such file, or the interpreter in its first line is missing".to_owned(),
        (Errno::EACCES, _) => "it is not executable (chmod +x), or a directory on the way is closed".to_owned(),
        (errno, _) => errno.desc().to_owned(),
    }
}

impl SpawnError {
    /// 127 or 126, as a shell has it; 126 also when there are no more processes to be had.
    pub fn exit_code(&self) -> i32 {
        match self {
            SpawnError::NotFound(NotFound::Nowhere(_)) => 127,
            SpawnError::NotFound(NotFound::NotExecutable(_)) | SpawnError::Fork(_) => 126,
            SpawnError::Exec { errno, .. } => launch::exit_code(*errno),
        }
    }
}

/// What a command that was [run](Spawner::run) wrote, up to a MiB a stream, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("`{command}` did not end within {} s and was killed", .deadline.as_secs())]
    Deadline { command: String, deadline: Duration },
}

/// Starts processes. Cheap to clone; there is one reaper behind all of them.
#[derive(Clone)]
pub struct Spawner {
    reaper: Reaper,
    /// The signal mask this process was started with, which is its children's too.
    mask: SigSet,
    /// The like: PID 1 takes itself out of the kernel's choice, but not its children.
    oom_score_adj: Option<i32>,
}

impl Spawner {
    /// The process's spawner, started on first use. From then on the status of every child of this process is taken
    /// by its reaper.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> io::Result<Spawner> {
        static STARTED: OnceLock<Mutex<Option<Spawner>>> = OnceLock::new();
        let mut started = STARTED
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(spawner) = &*started {
            return Ok(spawner.clone());
        }
        let mask = SigSet::thread_get_mask()?;
        signals::hear_of_children();
        // Pending while blocked, it wakes the reaper even when the first child of all is somebody else's orphan.
        // Threads started from here on inherit this; a child gets the mask from before.
        SigSet::from(Signal::SIGCHLD).thread_block()?;
        let spawner = Spawner {
            reaper: Reaper::start()?,
            mask,
            oom_score_adj: std::fs::read_to_string("/proc/self/oom_score_adj")
                .ok()
                .and_then(|score| score.trim().parse().ok()),
        };
        Ok(started.insert(spawner).clone())
    }

    /// Starts a process, the leader of a session of its own.
    ///
    /// Returns when the program runs or is known not to: a few milliseconds, two seconds at most.
    ///
    /// # Errors
    /// [`SpawnError`] names the file.
    pub fn spawn(&self, spawn: Spawn) -> Result<Child, SpawnError> {
        let name = spawn.argv.first().cloned().unwrap_or_default();
        let path = spawn
            .env
            .iter()
            .rev()
            .find(|(key, _)| key == "PATH")
            .map(|(_, value)| value.as_os_str());
        let program = lookup::program(&name, path).map_err(SpawnError::NotFound)?;
        let cwd = spawn.cwd.clone();
        let mut fds = spawn.extra_fds;
        for (number, stream) in [spawn.stdin, spawn.stdout, spawn.stderr].into_iter().enumerate() {
            let number = number as i32;
            match stream {
                Stdio::Inherit => {}
                Stdio::Null => fds.push((null()?, number)),
                Stdio::Fd(fd) => fds.push((fd, number)),
            }
        }
        let launch = Launch {
            program: program.clone(),
            argv: spawn.argv,
            env: spawn.env,
            cwd: spawn.cwd,
            fds,
            group: Group::Session,
            oom_score_adj: spawn.oom_score_adj.or(self.oom_score_adj),
            mask: self.mask,
        };
        let (child, verdict) = self.reaper.adopt(|| launch.fork())?;
        match verdict.wait(EXEC_PATIENCE) {
            Ok(()) => Ok(child),
            Err(errno) => Err(SpawnError::Exec { program, cwd, errno }),
        }
    }

    /// Runs a command to its end and gives what it wrote. After `deadline`, or if nobody waits for it any more, its
    /// whole session is killed.
    ///
    /// # Errors
    /// It does not start, or does not end in time.
    pub async fn run(&self, mut spawn: Spawn, deadline: Duration) -> Result<Output, RunError> {
        let command = spawn
            .argv
            .first()
            .map(|name| name.display().to_string())
            .unwrap_or_default();
        let (stdout, out) = pipe().map_err(SpawnError::Fork)?;
        let (stderr, err) = pipe().map_err(SpawnError::Fork)?;
        (spawn.stdout, spawn.stderr) = (Stdio::Fd(out), Stdio::Fd(err));
        let spawner = self.clone();
        let spawned =
            tokio::task::spawn_blocking(move || spawner.spawn(spawn).map(|child| Run { child, ended: false }));
        let mut run = spawned.await.map_err(|error| SpawnError::Fork(error.into()))??;
        let whole = async {
            let (exit, stdout, stderr) = tokio::join!(run.child.wait(), drain(stdout), drain(stderr));
            run.ended = true;
            Output { exit, stdout, stderr }
        };
        let output = tokio::time::timeout(deadline, whole).await;
        output.map_err(|_| RunError::Deadline { command, deadline })
    }
}

/// A command that is killed with its session if it is dropped before it has ended and closed its output.
struct Run {
    child: Child,
    ended: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            let _ = killpg(self.child.pid(), Signal::SIGKILL);
        }
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// A pipe from a child: our end to read, and the child's.
///
/// # Errors
/// Those of `pipe2`.
pub fn pipe() -> io::Result<(tokio::net::unix::pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(read.as_fd(), nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((tokio::net::unix::pipe::Receiver::from_owned_fd(read)?, write))
}

/// Reads to the end, keeping the first MiB.
async fn drain(mut from: tokio::net::unix::pipe::Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut from).take(OUTPUT_MAX).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    kept
}
