//! Who owns the terminal on stdin, and how it changes hands.

use std::io;

use nix::{
    libc,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        termios::tcgetsid,
    },
    unistd::{Pid, getpgrp, getpid, getsid, isatty, tcgetpgrp, tcsetpgrp},
};

use super::launch::Group;

/// What the child becomes, given the terminal we were started on.
///
/// As the leader of the terminal's session (PID 1 of `docker run -t`) we hand terminal and all to a session of the
/// child's. As a job of somebody's shell we stay in its session, so that the shell's job control goes on: the child
/// is a process group of it, in the foreground if that is where we were.
pub fn arrange() -> Group {
    let stdin = io::stdin();
    if !isatty(&stdin).unwrap_or(false) {
        return Group::Session;
    }
    let ours = getsid(None).ok();
    let terminals = tcgetsid(&stdin).ok();
    if ours.is_none() || ours != terminals {
        return Group::SessionWithTerminal;
    }
    if ours == Some(getpid()) {
        give_up();
        return Group::SessionWithTerminal;
    }
    Group::Job {
        foreground: tcgetpgrp(&stdin) == Ok(getpgrp()),
    }
}

/// Lets go of our session's terminal. The kernel tells the foreground group, which we are in, by HUP and CONT: not
/// meant for us, so they are thrown away.
fn give_up() {
    // SAFETY: the request has no argument.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY) };
    for signal in [Signal::SIGHUP, Signal::SIGCONT] {
        for handler in [SigHandler::SigIgn, SigHandler::SigDfl] {
            let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
            // SAFETY: neither is a function of ours. Ignoring a signal also discards one that is pending.
            let _ = unsafe { sigaction(signal, &action) };
        }
    }
}

/// Gives the foreground to `group` if it is with us. Call with SIGTTOU blocked.
pub fn hand_over(group: Pid) {
    let stdin = io::stdin();
    if tcgetpgrp(&stdin) == Ok(getpgrp()) {
        let _ = tcsetpgrp(&stdin, group);
    }
}

/// Takes the foreground back from `group` if it is still there. Call with SIGTTOU blocked.
pub fn take_back(group: Pid) {
    let stdin = io::stdin();
    if tcgetpgrp(&stdin) == Ok(group) {
        let _ = tcsetpgrp(&stdin, getpgrp());
    }
}
