//! Waiting for children, in plain numbers: `nix` knows signals by name, and a real-time signal has none, so that it
//! takes the status of whoever died of one for an error.

use nix::{errno::Errno, libc, unistd::Pid};

use super::signals;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    /// The number of the signal that ended it.
    Signal(i32),
}

impl Exit {
    /// The exit code as a shell has it: the code, or 128 and the signal's number.
    pub fn status(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "killed by {}", signals::name(*signal)),
        }
    }
}

/// What has become of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Ended(Exit),
    Stopped(i32),
}

/// Sleeps until a child has ended, and leaves its status to be [taken](take).
///
/// # Errors
/// `ECHILD`: there is no child. `EINTR`.
pub fn ended() -> nix::Result<Pid> {
    // SAFETY: all zeroes is a siginfo, which the kernel fills in; the pid is read where it has done so.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(
            libc::P_ALL,
            0,
            &raw mut info,
            libc::WEXITED | libc::WNOWAIT,
        ))?;
        Ok(Pid::from_raw(info.si_pid()))
    }
}

/// Takes the status of that child, or of any, without waiting; of one that has stopped too if `options` has
/// `WUNTRACED`. `None` if there is nothing to be told.
///
/// # Errors
/// `ECHILD`: there is no such child.
pub fn take(child: Option<Pid>, options: i32) -> nix::Result<Option<(Pid, Change)>> {
    let mut status = 0;
    let which = child.map_or(-1, Pid::as_raw);
    // SAFETY: the kernel writes one integer, of ours.
    let pid = Errno::result(unsafe { libc::waitpid(which, &raw mut status, options | libc::WNOHANG) })?;
    let change = if libc::WIFEXITED(status) {
        Change::Ended(Exit::Code(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Change::Ended(Exit::Signal(libc::WTERMSIG(status)))
    } else {
        Change::Stopped(libc::WSTOPSIG(status))
    };
    Ok((pid != 0).then_some((Pid::from_raw(pid), change)))
}
