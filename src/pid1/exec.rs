//! `moltinit exec`: PID 1's duties for one command, as tini and dumb-init do them.
//!
//! One thread, every signal blocked, one loop: wait for a signal; reap on SIGCHLD, forward anything else. Nothing
//! here waits for anything but a signal.

use std::{ffi::OsString, io::Write, os::fd::AsFd};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, raise},
    },
    unistd::{Pid, getpid},
};

use super::{
    launch::{self, EXEC_PATIENCE, Group, Launch},
    lookup::{self, NotFound},
    signals, terminal,
    wait::{self, Change},
};

/// How to run the command.
#[derive(Debug, Default)]
pub struct Options {
    /// Signals go to the child only, not to its process group.
    pub single_child: bool,
    /// What to forward in place of a signal; `None` drops it.
    pub rewrite: Vec<(i32, Option<i32>)>,
    /// Exit codes of the child that become 0.
    pub remap: Vec<i32>,
    /// Sent to us when our parent dies.
    pub pdeathsig: Option<i32>,
    pub subreaper: bool,
    pub warn_on_reap: bool,
    pub verbose: bool,
}

/// Runs the command to its end. Returns its exit code, 128 and the signal's number, or 127/126 when it cannot be run.
pub fn exec(options: &Options, argv: Vec<OsString>) -> i32 {
    let callers = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
    let _ = SigSet::all().thread_block();
    signals::hear_of_children();
    if let Some(signal) = options.pdeathsig
        && let Err(errno) = signals::at_parents_death(signal)
    {
        say(&format!("no signal will come when the parent dies: {errno}"));
    }
    if options.subreaper
        && let Err(errno) = prctl::set_child_subreaper(true)
    {
        say(&format!("cannot become a subreaper: {errno}"));
        return 1;
    }
    if getpid() != Pid::from_raw(1) && !options.subreaper {
        say("not PID 1, and no subreaper: orphans will not be reaped here; add -s to reap them");
    }
    let group = terminal::arrange();
    match start(argv, group, callers) {
        Ok(child) => Watch {
            options,
            child,
            group,
            exit: None,
        }
        .run(),
        Err((code, why)) => {
            say(&why);
            code
        }
    }
}

fn start(argv: Vec<OsString>, group: Group, mask: SigSet) -> Result<Pid, (i32, String)> {
    let name = argv.first().cloned().unwrap_or_default();
    let path = std::env::var_os("PATH");
    let program = lookup::program(&name, path.as_deref()).map_err(|error| {
        let code = if matches!(error, NotFound::Nowhere(_)) {
            127
        } else {
            126
        };
        (code, error.to_string())
    })?;
    let env = std::env::vars_os().collect();
    let launch = Launch {
        program,
        argv,
        env,
        cwd: None,
        fds: Vec::new(),
        group,
        oom_score_adj: None,
        mask,
    };
    let (child, verdict) = launch
        .fork()
        .map_err(|error| (126, format!("no process can be started: {error}")))?;
    verdict.wait(EXEC_PATIENCE).map_err(|errno| {
        let code = launch::exit_code(errno);
        (code, format!("`{}` cannot be run: {}", name.display(), errno.desc()))
    })?;
    Ok(child)
}

struct Watch<'a> {
    options: &'a Options,
    child: Pid,
    group: Group,
    exit: Option<i32>,
}

impl Watch<'_> {
    fn run(mut self) -> i32 {
        loop {
            match signals::wait(&SigSet::all()) {
                Ok(libc::SIGCHLD) => {
                    self.reap();
                    if let Some(code) = self.exit {
                        self.end();
                        return if self.options.remap.contains(&code) { 0 } else { code };
                    }
                }
                Ok(signal) => self.forward(signal),
                Err(_) => {}
            }
        }
    }

    /// Takes the status of everything that has ended by now.
    fn reap(&mut self) {
        loop {
            match wait::take(None, libc::WUNTRACED) {
                Ok(Some((pid, Change::Ended(exit)))) => self.reaped(pid, exit.status()),
                Ok(Some((pid, Change::Stopped(signal)))) if pid == self.child => self.stopped(signal),
                Ok(Some(_)) | Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn reaped(&mut self, pid: Pid, code: i32) {
        if pid == self.child {
            self.exit = Some(code);
            self.verbose(|| format!("the command ended with {code}"));
        } else if self.options.warn_on_reap {
            say(&format!("reaped zombie process {pid}, exit code {code}"));
        }
    }

    /// The child was stopped. As a job of a shell we stop too, so that the shell has its terminal back.
    fn stopped(&self, signal: i32) {
        self.verbose(|| format!("the command was stopped by {}", signals::name(signal)));
        if matches!(self.group, Group::Job { .. }) {
            terminal::take_back(self.child);
            let _ = raise(Signal::SIGSTOP);
        }
    }

    fn forward(&self, signal: i32) {
        let name = signals::name(signal);
        let job_stop = matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
        let rewritten = self
            .options
            .rewrite
            .iter()
            .rev()
            .find(|(from, _)| *from == signal)
            .map(|(_, to)| *to);
        let to = match rewritten {
            Some(None) => {
                self.verbose(|| format!("{name} dropped"));
                return;
            }
            Some(Some(to)) => to,
            // A session of its own has nobody to wake it from a terminal's stop, so the kernel ignores those there.
            None if job_stop => libc::SIGSTOP,
            None => signal,
        };
        if signal == libc::SIGCONT && matches!(self.group, Group::Job { .. }) {
            terminal::hand_over(self.child);
        }
        let sent = if self.options.single_child {
            signals::send(self.child, to)
        } else {
            signals::send_group(self.child, to)
        };
        self.verbose(|| match (sent, signals::name(to)) {
            (Ok(()), to) => format!("{name} forwarded as {to}"),
            (Err(errno), to) => format!("{name} could not be forwarded as {to}: {errno}"),
        });
        if job_stop {
            let _ = raise(Signal::SIGSTOP);
        }
    }

    fn end(&self) {
        if matches!(self.group, Group::Job { .. }) {
            terminal::take_back(self.child);
        }
    }

    fn verbose(&self, line: impl FnOnce() -> String) {
        if self.options.verbose {
            say(&line());
        }
    }
}

/// One line to stderr, if stderr takes it at once: nobody who does not read it may hold PID 1 up.
fn say(line: &str) {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) == Ok(1) {
        let _ = writeln!(stderr.lock(), "moltinit: {line}");
    }
}
