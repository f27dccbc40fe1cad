//! `moltinit exec` beside what tini and dumb-init do, as PID 1 of a namespace and as a subreaper.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdout, Command, Stdio},
};

use moltinit::pid1::signals;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{MOLTINIT, PATIENCE, compile, eventually, process, pty::Terminal};

const LISTENER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/signals.py");

#[derive(Debug, Clone, Copy)]
enum As {
    Pid1,
    Subreaper,
}
const BOTH: [As; 2] = [As::Pid1, As::Subreaper];

/// `moltinit exec ARGS…`, ready to be run.
fn exec(role: As, args: &[&str]) -> Command {
    let mut command = match role {
        As::Pid1 => {
            let mut command = Command::new("unshare");
            command.args([
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child=SIGKILL",
                MOLTINIT,
                "exec",
            ]);
            command
        }
        As::Subreaper => {
            let mut command = Command::new(MOLTINIT);
            command.args(["exec", "-s"]);
            command
        }
    };
    command.args(args).stdin(Stdio::null());
    command
}

fn code(role: As, args: &[&str]) -> i32 {
    let output = exec(role, args).output().unwrap();
    output.status.code().unwrap_or_else(|| panic!("{args:?}: {output:?}"))
}

/// A running `moltinit exec` whose output is read line by line.
struct Running {
    outer: Child,
    /// moltinit itself.
    pid: Pid,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(role: As, args: &[&str]) -> Running {
        let mut outer = exec(role, args).stdout(Stdio::piped()).spawn().unwrap();
        let pid = match role {
            As::Pid1 => eventually("PID 1", PATIENCE, || {
                process::children(outer.id() as i32).first().copied()
            }),
            As::Subreaper => outer.id() as i32,
        };
        let lines = BufReader::new(outer.stdout.take().unwrap());
        Running {
            outer,
            pid: Pid::from_raw(pid),
            lines,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// The command that moltinit runs.
    fn child(&self) -> i32 {
        eventually("the command", PATIENCE, || {
            process::children(self.pid.as_raw()).first().copied()
        })
    }

    fn end(&mut self) -> i32 {
        let status = self.outer.wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        process::kill_tree(self.outer.id() as i32);
        let _ = self.outer.wait();
    }
}

#[test]
fn the_exit_code_is_the_commands() {
    for role in BOTH {
        for expected in 0..=255 {
            assert_eq!(
                code(role, &["--", "sh", "-c", &format!("exit {expected}")]),
                expected,
                "{role:?}"
            );
        }
    }
}

#[test]
fn a_death_by_signal_is_128_and_its_number() {
    for role in BOTH {
        for signal in [1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 31, 34, 64] {
            let script = format!("ulimit -c 0; kill -{signal} $$; sleep 100");
            assert_eq!(code(role, &["sh", "-c", &script]), 128 + signal, "{role:?}");
        }
    }
}

#[test]
fn exit_codes_are_remapped() {
    for role in BOTH {
        assert_eq!(code(role, &["-e", "143", "-e", "7", "--", "sh", "-c", "kill $$"]), 0);
        assert_eq!(
            code(role, &["-e", "143", "--remap-exit", "7", "--", "sh", "-c", "exit 7"]),
            0
        );
        assert_eq!(code(role, &["-e", "143", "--", "sh", "-c", "exit 7"]), 7);
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    for role in BOTH {
        for (command, expected) in [
            ("no-such-command", 127),
            ("/no/such/command", 127),
            ("/etc/passwd", 126),
            ("/", 126),
        ] {
            let output = exec(role, &["--", command]).output().unwrap();
            assert_eq!(output.status.code(), Some(expected), "{command}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.contains(&format!("`{command}`")), "{stderr}");
        }
    }
    for wrong in [
        &["--"][..],
        &["-r", "nonsense", "true"],
        &["-e", "256", "true"],
        &["--no-such-option", "--", "true"],
    ] {
        assert_eq!(code(As::Subreaper, wrong), 2, "{wrong:?}");
    }
}

/// Every signal that can be caught and whose forwarding is not the terminal's business, the real-time ones among them.
fn forwardable() -> impl Iterator<Item = i32> {
    let apart = [
        Signal::SIGKILL,
        Signal::SIGSTOP,
        Signal::SIGCHLD,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    let last = Signal::SIGTERM;
    Signal::iterator()
        .filter(move |signal| !apart.contains(signal) && *signal != last)
        .map(|signal| signal as i32)
        .chain([34, 37, 64, last as i32])
}

#[test]
fn every_signal_is_forwarded() {
    for role in BOTH {
        let mut running = Running::start(role, &["--", "python3", LISTENER]);
        assert_eq!(running.line(), "ready");
        for signal in forwardable() {
            signals::send(running.pid, signal).unwrap();
            assert_eq!(running.line(), signal.to_string(), "{role:?}");
        }
        assert_eq!(running.end(), 0);
    }
}

#[test]
fn signals_are_rewritten_and_dropped() {
    for role in BOTH {
        let args = [
            "-r",
            "HUP:USR1",
            "--rewrite",
            "2:0",
            "-r",
            "TSTP:USR2",
            "-r",
            "RTMIN+3:TERM",
            "--",
            "python3",
            LISTENER,
        ];
        let mut running = Running::start(role, &args);
        assert_eq!(running.line(), "ready");
        for (signal, expected) in [(Signal::SIGHUP, "10"), (Signal::SIGWINCH, "28")] {
            running.signal(Signal::SIGINT);
            running.signal(signal);
            assert_eq!(running.line(), expected, "INT was dropped, {signal} was not");
        }
        // As `docker stop` does with an image that has systemd's STOPSIGNAL.
        signals::send(running.pid, 37).unwrap();
        assert_eq!(running.line(), "15");
        assert_eq!(running.end(), 0);
    }
}

#[test]
fn signals_go_to_the_group_or_to_the_child_alone() {
    let both = format!("python3 {LISTENER} grandchild- & trap : USR1 TERM; while ! wait; do :; done");
    for role in BOTH {
        let mut running = Running::start(role, &["--", "sh", "-c", &both]);
        assert_eq!(running.line(), "grandchild-ready");
        running.signal(Signal::SIGUSR1);
        assert_eq!(running.line(), "grandchild-10");

        let alone = format!("python3 {LISTENER} grandchild- & trap 'echo child; exit 4' USR1; while :; do wait; done");
        let mut running = Running::start(role, &["-c", "--", "sh", "-c", &alone]);
        assert_eq!(running.line(), "grandchild-ready");
        let grandchildren = process::children(running.child());
        running.signal(Signal::SIGUSR1);
        assert_eq!(running.line(), "child", "and the grandchild heard nothing before it");
        assert_eq!(running.end(), 4);
        // Who is left of a subreaper's tree is nobody's.
        for grandchild in grandchildren {
            let _ = kill(Pid::from_raw(grandchild), Signal::SIGKILL);
        }
    }
}

#[test]
fn a_terminal_stop_suspends_both_and_cont_wakes_both() {
    for signal in [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU] {
        for role in BOTH {
            let mut running = Running::start(role, &["--", "sh", "-c", "echo up; exec sleep 1000"]);
            assert_eq!(running.line(), "up");
            let child = running.child();
            running.signal(signal);
            process::wait_for_state(child, 'T');
            if let As::Subreaper = role {
                // The kernel never stops PID 1 of a namespace from within.
                process::wait_for_state(running.pid.as_raw(), 'T');
            }
            running.signal(Signal::SIGCONT);
            process::wait_for_state(running.pid.as_raw(), 'S');
            process::wait_for_state(child, 'S');
            running.signal(Signal::SIGTERM);
            assert_eq!(running.end(), 143);
        }
    }
}

#[test]
fn orphans_are_reaped_and_named_when_asked() {
    let script = "for i in 1 2 3 4 5; do (sh -c 'exit 3' &) ; done; sleep 0.5; ps -o stat= -A | grep -c Z; exit 5";
    for role in BOTH {
        let output = exec(role, &["-w", "--", "sh", "-c", script]).output().unwrap();
        assert_eq!(output.status.code(), Some(5));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("reaped zombie process").count(), 5, "{stderr}");
        if let As::Pid1 = role {
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
        }
    }
}

#[test]
fn without_being_asked_it_is_no_subreaper_and_says_so() {
    let output = Command::new(MOLTINIT)
        .args(["exec", "true"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("add -s"));
}

#[test]
fn the_parents_death_is_a_signal() {
    let script = format!("{MOLTINIT} exec -s -p USR1 -- python3 {LISTENER} & wait");
    let mut parent = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let moltinit = process::children(parent.id() as i32)[0];
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "10");
    kill(Pid::from_raw(moltinit), Signal::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "15");
}

#[test]
fn the_child_has_the_callers_environment_directory_and_mask() {
    let run = |command: &[&str]| {
        let output = Command::new("env")
            .args(["--block-signal=USR1", "A=b c", MOLTINIT, "exec", "-s", "--"])
            .args(command)
            .current_dir("/usr")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["sh", "-c", "pwd; echo \"$A\""]), "/usr\nb c\n");
    // Not by a shell, which has a mask of its own.
    let signals = run(&["grep", "SigBlk", "/proc/self/status"]);
    assert_eq!(signals, "SigBlk:\t0000000000000200\n", "USR1 and nothing else");
    let ignored = run(&["grep", "SigIgn", "/proc/self/status"]);
    let ignored = u64::from_str_radix(ignored.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "neither SIGPIPE nor anything else");
}

/// Who ignores SIGCHLD has the kernel reap for it, and passes that on to whom it starts.
#[test]
fn a_caller_that_ignores_its_children_does_not_make_it_deaf() {
    let script = format!("trap '' CHLD; exec {MOLTINIT} exec -s -- sh -c 'exit 7'");
    let mut deaf = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let status = eventually("its end", PATIENCE, || deaf.try_wait().unwrap());
    assert_eq!(status.code(), Some(7));
}

/// What may be wrong with the surroundings of a PID 1 without ending it.
#[test]
fn poor_surroundings_do_not_matter() {
    let command = |script: &str| {
        let mut command = Command::new("unshare");
        command.args([
            "--pid",
            "--fork",
            "--mount",
            "--kill-child=SIGKILL",
            "sh",
            "-c",
            script,
            MOLTINIT,
        ]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    for script in [
        "ulimit -n 16; exec \"$0\" exec -- sh -c 'exit 6'",
        "exec \"$0\" exec -v -- sh -c 'exit 6' <&- >&- 2>&-",
        "mount -t tmpfs none /proc && exec \"$0\" exec -- sh -c 'exit 6'",
    ] {
        let output = command(script);
        assert_eq!(output.status.code(), Some(6), "{script}: {output:?}");
    }
}

#[test]
fn a_stderr_that_nobody_reads_holds_nothing_up() {
    let mut child = exec(As::Subreaper, &["-v", "-w", "-r", "USR1:0", "--", "sleep", "1000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    eventually("the command", PATIENCE, || {
        process::children(pid.as_raw()).first().copied()
    });
    for _ in 0..5_000 {
        kill(pid, Signal::SIGUSR1).unwrap();
        // One at a time, or most of them are one.
        while process::pending(pid.as_raw()) {
            std::thread::yield_now();
        }
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("SIGUSR1 dropped"));
}

#[test]
fn ten_thousand_orphans_at_once_are_reaped() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile("orphans", &["-O1"], dir.path());
    let output = exec(As::Pid1, &["--", program.to_str().unwrap(), "10000"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "0 are left",
        "{output:?}"
    );
}

/// PID 1 of `docker run -t`: the shell it runs owns the terminal, so its job control works.
#[test]
fn an_interactive_shell_owns_the_terminal() {
    let mut terminal = Terminal::run(&[
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child=SIGKILL",
        MOLTINIT,
        "exec",
        "--",
        "bash",
        "--norc",
        "-i",
    ]);
    terminal.expect("$ ");
    assert!(!terminal.seen().contains("no job control"), "{}", terminal.seen());
    terminal.type_line("sleep 1000");
    terminal.wait_for_state_of("sleep", 'S');
    terminal.type_keys("\x1a");
    terminal.expect("Stopped");
    terminal.type_line("kill -9 %1; echo two$((1+1))");
    terminal.expect("two2");
    terminal.type_line("exit 3");
    assert_eq!(terminal.end(), 3);
}

/// As a job of a shell it keeps the shell's rules: stopped and continued with its command, in the background it
/// does not take the terminal.
#[test]
fn as_a_shells_job_it_keeps_the_shells_rules() {
    let mut terminal = Terminal::run(&["bash", "--norc", "-i"]);
    terminal.expect("$ ");
    terminal.type_line(&format!("{MOLTINIT} exec -s -- sh -c 'echo u''p; sleep 1000; echo no'"));
    terminal.expect("up\r\n");
    terminal.type_keys("\x1a");
    terminal.expect("Stopped");
    terminal.type_line("fg");
    terminal.expect("fg\r\n");
    terminal.wait_for_state_of("sleep", 'S');
    terminal.type_keys("\x03");
    terminal.type_line("echo code$?");
    terminal.expect("code130");
    terminal.type_line(&format!("{MOLTINIT} exec -s -- cat &"));
    // In the background, reading from the terminal stops it, and moltinit with it.
    terminal.wait_for_state_of("moltinit", 'T');
    terminal.type_line("jobs");
    terminal.expect("Stopped");
    terminal.type_line("fg");
    terminal.wait_for_state_of("cat", 'S');
    terminal.type_line("typed");
    terminal.expect("typed\r\ntyped\r\n");
    terminal.type_keys("\x04");
    terminal.type_line("exit 4");
    assert_eq!(terminal.end(), 4);
}

#[test]
fn version_and_help_say_what_it_is() {
    for (argument, expected) in [("--version", "moltinit "), ("--help", "exec"), ("exec", "COMMAND")] {
        let output = Command::new(MOLTINIT).arg(argument).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&text).contains(expected));
    }
}
