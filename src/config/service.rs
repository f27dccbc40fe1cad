//! What a service is: its command, its order, its probes and its limits. Plain data, checked by the loader.

use std::{collections::BTreeMap, time::Duration};

use nix::libc;

/// One supervised service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub name: String,
    pub command: Vec<String>,
    /// Services and conditions (`store`) that must be ready before this one starts, and stop after it.
    pub after: Vec<String>,
    pub restart: Restart,
    pub backoff: Backoff,
    pub crash_loop: CrashLoop,
    pub on_crash_loop: OnCrashLoop,
    pub ready: Option<Probe>,
    pub live: Option<Probe>,
    pub stop: Stop,
    /// Added to the supervisor's own environment.
    pub env: BTreeMap<String, String>,
    /// Bytes of resident memory of the whole service at which it is restarted in an orderly way.
    pub memory_max: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// How long to wait before a restart: `first` for the first, then `base` doubled each time up to `max`, until
/// the service has run for `reset_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub base: Duration,
    pub max: Duration,
    pub reset_after: Duration,
}

/// So many restarts within so long are a crash loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashLoop {
    pub restarts: u32,
    pub within: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrashLoop {
    /// Stay up and say so, retry slowly.
    Hold,
    /// End the supervisor with exit code 70.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Its number.
    pub signal: i32,
    /// From the signal to SIGKILL for the whole tree.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub every: Duration,
    /// For `ready`: how long the service may take to become ready. For `live`: how long one answer may take.
    pub timeout: Duration,
    /// So many failures in a row make a running service unhealthy.
    pub failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A 2xx answer to GET; with `json`, a JSON object in which that key is `true`.
    Http { url: String, json: Option<String> },
    /// A connection to `host:port` is accepted.
    Tcp { addr: String },
    /// The command exits 0.
    Command { argv: Vec<String> },
    /// The service writes a newline to this file descriptor, as s6 has it.
    Notify { fd: i32 },
    /// The service's keeper says.
    Keeper,
}

impl Service {
    /// A service of that name with the documented defaults and no command yet.
    pub fn named(name: &str) -> Self {
        Service {
            name: name.to_owned(),
            command: Vec::new(),
            after: Vec::new(),
            restart: Restart::Always,
            backoff: Backoff {
                first: Duration::ZERO,
                base: Duration::from_millis(500),
                max: Duration::from_secs(30),
                reset_after: Duration::from_secs(60),
            },
            crash_loop: CrashLoop {
                restarts: 6,
                within: Duration::from_secs(120),
            },
            on_crash_loop: OnCrashLoop::Hold,
            ready: None,
            live: None,
            stop: Stop {
                signal: libc::SIGTERM,
                timeout: Duration::from_secs(10),
            },
            env: BTreeMap::new(),
            memory_max: None,
        }
    }
}

impl Probe {
    /// A readiness probe with the documented timing.
    pub fn ready(check: Check) -> Self {
        Probe {
            check,
            every: Duration::from_millis(250),
            timeout: Duration::from_secs(180),
            failures: 1,
        }
    }

    /// A liveness probe with the documented timing.
    pub fn live(check: Check) -> Self {
        Probe {
            check,
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failures: 3,
        }
    }
}
