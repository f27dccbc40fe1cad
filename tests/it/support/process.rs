//! What `/proc` says about processes.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{PATIENCE, eventually};

/// Pids of the children of `pid`, as this side's namespace has them. The kernel lists them by the thread they are of.
pub fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children = |list: String| {
        list.split_whitespace()
            .filter_map(|child| child.parse().ok())
            .collect::<Vec<_>>()
    };
    lists.flat_map(children).collect()
}

/// `pid` and everything below it.
pub fn tree(pid: i32) -> Vec<i32> {
    let below = children(pid).into_iter().flat_map(tree);
    [pid].into_iter().chain(below).collect()
}

pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

fn status(pid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Bytes of memory that are resident.
pub fn resident(pid: i32) -> u64 {
    let resident = status(pid, "VmRSS").unwrap_or_default();
    1024 * resident.trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
}

/// The most of it since [`forget_peak`].
pub fn peak(pid: i32) -> u64 {
    let peak = status(pid, "VmHWM").unwrap_or_default();
    1024 * peak.trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
}

pub fn forget_peak(pid: i32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// The pid here of a process that is `inside` in the PID namespace of `init`.
///
/// # Panics
/// There is none.
pub fn outside(init: i32, inside: i32) -> i32 {
    find_outside(init, inside).unwrap_or_else(|| panic!("no process is {inside} in the namespace of {init}"))
}

/// The same, of a process that may have ended.
pub fn find_outside(init: i32, inside: i32) -> Option<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(init).expect("the namespace's first process");
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| namespace(*pid).as_ref() == Some(&wanted))
        .find(|pid| {
            let pids = status(*pid, "NSpid").unwrap_or_default();
            pids.split_whitespace().last() == Some(inside.to_string().as_str())
        })
}

/// Waits until the process is in that state: `S` sleeping, `T` stopped.
pub fn wait_for_state(pid: i32, state: char) {
    eventually(format_args!("state {state} of {pid}"), PATIENCE, || {
        is_in_state(pid, state).then_some(())
    });
}

pub fn is_in_state(pid: i32, state: char) -> bool {
    status(pid, "State").is_some_and(|now| now.starts_with(state))
}

/// Ends `pid`, which must be a child not waited for yet, and everything below it.
pub fn kill_tree(pid: i32) {
    for pid in tree(pid) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Whether a signal is waiting to be taken by the process.
pub fn pending(pid: i32) -> bool {
    status(pid, "ShdPnd").is_some_and(|signals| signals.contains(|digit| digit != '0'))
}

/// Whether a signal to `pid` is caught, or kept until it is.
pub fn heeds(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let is_in = |set: &str| {
        let bits = status.lines().find_map(|line| line.strip_prefix(set))?.trim();
        Some(u64::from_str_radix(bits, 16).ok()? & 1 << (signal as i32 - 1) != 0)
    };
    is_in("SigBlk:") == Some(true) || is_in("SigCgt:") == Some(true)
}
