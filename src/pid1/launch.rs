//! Fork and exec.
//!
//! Everything the child needs is made ready before the fork: between fork and exec only async-signal-safe system
//! calls are made, because another thread may have held any lock at the moment of the fork.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::signal::SigSet,
    unistd::{ForkResult, Pid, fork, pipe2},
};

/// How long a fork's child may take to become its program before it counts as started: the program may lie on a file
/// system that hangs, and signals and orphans have to be seen to all the same.
pub const EXEC_PATIENCE: Duration = Duration::from_secs(2);

/// Where one of a child's standard streams leads.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    Null,
    Fd(OwnedFd),
}

/// How the child stands to the caller's session and terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Leader of a new session, without a terminal.
    Session,
    /// Leader of a new session that takes the terminal on stdin as its own.
    SessionWithTerminal,
    /// Leader of a new process group of the caller's session, in the terminal's foreground or not.
    Job { foreground: bool },
}

/// A process to be, everything settled but the fork.
pub struct Launch {
    pub program: PathBuf,
    pub argv: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cwd: Option<PathBuf>,
    /// What becomes which file descriptor of the child. Everything else is closed if it is close-on-exec.
    pub fds: Vec<(OwnedFd, RawFd)>,
    pub group: Group,
    pub oom_score_adj: Option<i32>,
    /// The child's signal mask.
    pub mask: SigSet,
}

/// The pipe on which the child says why it could not become the program.
pub struct Verdict(OwnedFd);

struct Prepared {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<CString>,
    oom_score_adj: Option<CString>,
    fds: Vec<(OwnedFd, RawFd)>,
    /// `/bin/sh PROGRAM ARG…`, for a script without a `#!` line.
    shell: Vec<CString>,
}

fn text(what: &OsStr) -> io::Result<CString> {
    CString::new(what.as_bytes()).map_err(|_| {
        let message = format!("`{}` has a zero byte in it", what.display());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

impl Launch {
    fn prepare(self, report: &OwnedFd) -> io::Result<(Prepared, OwnedFd)> {
        let program = text(self.program.as_os_str())?;
        let argv = self.argv.iter().map(|arg| text(arg)).collect::<io::Result<Vec<_>>>()?;
        let mut shell = vec![c"/bin/sh".to_owned(), program.clone()];
        shell.extend(argv.iter().skip(1).cloned());
        let env = self
            .env
            .iter()
            .map(|(key, value)| text(&[key.as_os_str(), value.as_os_str()].join(OsStr::new("="))))
            .collect::<io::Result<Vec<_>>>()?;
        // Sources are moved above every target, so that no dup2 in the child closes one that is still needed.
        let above = 1 + self.fds.iter().map(|(_, target)| *target).max().unwrap_or(2).max(2);
        let lift = |fd: &OwnedFd| -> io::Result<OwnedFd> {
            let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above))?;
            // SAFETY: fcntl has just made this descriptor for us, and nobody else knows it.
            Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) })
        };
        let fds = self
            .fds
            .iter()
            .map(|(fd, target)| Ok((lift(fd)?, *target)))
            .collect::<io::Result<Vec<_>>>()?;
        let report = lift(report)?;
        let prepared = Prepared {
            program,
            argv,
            env,
            shell,
            fds,
            cwd: self.cwd.as_deref().map(Path::as_os_str).map(text).transpose()?,
            oom_score_adj: self
                .oom_score_adj
                .map(|score| text(OsStr::new(&score.to_string())))
                .transpose()?,
        };
        Ok((prepared, report))
    }

    /// Forks. `born` is called in the parent, with the child's pid, before anything else can happen to it if the
    /// caller holds the lock that its reaper needs.
    ///
    /// # Errors
    /// The fork was refused, or a string has a zero byte in it.
    pub fn fork(self) -> io::Result<(Pid, Verdict)> {
        let (group, mask) = (self.group, self.mask);
        let (verdict, report) = pipe2(OFlag::O_CLOEXEC)?;
        let (prepared, report) = self.prepare(&report)?;
        let (argv, env, shell) = (
            pointers(&prepared.argv),
            pointers(&prepared.env),
            pointers(&prepared.shell),
        );
        // SAFETY: the child calls nothing but async-signal-safe functions on memory made ready above, and leaves
        // by exec or _exit.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok((child, Verdict(verdict))),
            ForkResult::Child => {
                let errno = become_program(&prepared, &argv, &env, &shell, group, &mask);
                let number = errno as i32;
                // SAFETY: plain system calls on a descriptor and a value of our own; never returns.
                unsafe {
                    libc::write(report.as_raw_fd(), (&raw const number).cast(), size_of::<i32>());
                    libc::_exit(exit_code(errno));
                }
            }
        }
    }
}

/// 127 or 126, as a shell has it for a command that is not there or cannot be run.
pub fn exit_code(errno: Errno) -> i32 {
    if errno == Errno::ENOENT { 127 } else { 126 }
}

/// In the child, up to and including exec. Returns only if that fails.
fn become_program(
    child: &Prepared,
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
    shell: &[*const libc::c_char],
    group: Group,
    mask: &SigSet,
) -> Errno {
    // SAFETY: async-signal-safe system calls only, on memory that was made ready before the fork and that this
    // process has a copy of.
    unsafe {
        match group {
            Group::Session => {
                libc::setsid();
            }
            Group::SessionWithTerminal => {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            }
            Group::Job { foreground } => {
                libc::setpgid(0, 0);
                if foreground {
                    // From a background group this would stop us, were SIGTTOU not blocked as everything is here.
                    libc::tcsetpgrp(0, libc::getpid());
                }
            }
        }
        if let Some(score) = &child.oom_score_adj {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, score.as_ptr().cast(), score.as_bytes().len());
                libc::close(file);
            }
        }
        for (from, to) in &child.fds {
            if libc::dup2(from.as_raw_fd(), *to) < 0 {
                return Errno::last();
            }
        }
        if let Some(cwd) = &child.cwd
            && libc::chdir(cwd.as_ptr()) < 0
        {
            return Errno::last();
        }
        // Handlers go back to the default by exec, but what is ignored stays so, and Rust's runtime ignores SIGPIPE.
        for ignored in [libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU] {
            libc::signal(ignored, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_SETMASK, mask.as_ref(), ptr::null_mut());
        libc::execve(child.program.as_ptr(), argv.as_ptr(), env.as_ptr());
        if Errno::last() == Errno::ENOEXEC {
            libc::execve(shell[0], shell.as_ptr(), env.as_ptr());
        }
        Errno::last()
    }
}

impl Verdict {
    /// Waits until the child has become the program, or says why it could not. The end of the child's life also ends
    /// the wait; a program on a file system that hangs is given up after `patience` and counts as started, its exit
    /// status will tell.
    pub fn wait(self, patience: Duration) -> Result<(), Errno> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;

        let deadline = std::time::Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => continue,
                Err(_) | Ok(0) => return Ok(()),
                Ok(_) => {}
            }
            let mut number = [0; 4];
            return match nix::unistd::read(&self.0, &mut number) {
                Ok(4) => Err(Errno::from_raw(i32::from_ne_bytes(number))),
                Err(Errno::EINTR) => continue,
                _ => Ok(()),
            };
        }
    }
}
