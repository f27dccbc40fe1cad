//! Gateways on our state that nobody looks after: left by an earlier supervisor, or started by hand and forgotten.
//! One of them alive would make the next one exit.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
};
use tracing::warn;

use super::processes;

/// For an orderly end. An idle gateway takes two seconds; one that is at work has nobody left to deliver it to.
const PATIENCE: Duration = Duration::from_secs(15);
/// For the kernel to take a killed process away.
const KILLED: Duration = Duration::from_secs(5);
/// Their end makes no event that could be awaited: they need not be our children.
const LOOK: Duration = Duration::from_millis(50);

/// Ends every gateway on the state directory. There must be none of ours.
///
/// # Errors
/// One that does not go.
pub async fn end(state_dir: &Path) -> Result<(), String> {
    for (signal, patience) in [(Signal::SIGTERM, PATIENCE), (Signal::SIGKILL, KILLED)] {
        let found = processes::gateways_on(state_dir);
        for pid in &found {
            warn!("ending a gateway that nobody looks after (pid {pid}, {signal})");
            match kill(*pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(format!(
                        "a gateway (pid {pid}) is in the way and cannot be ended: {errno}"
                    ));
                }
            }
        }
        let deadline = Instant::now() + patience;
        while !processes::gateways_on(state_dir).is_empty() {
            if Instant::now() > deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    match processes::gateways_on(state_dir).first() {
        None => Ok(()),
        Some(pid) => Err(format!("a gateway (pid {pid}) is in the way and does not end")),
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test is no supervisor: it may spawn and wait as it likes"
)]
mod tests {
    use std::{fs, os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[tokio::test]
    async fn a_gateway_on_our_state_ends_and_one_on_another_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a/.openclaw"), dir.path().join("b/.openclaw"));
        let script = dir.path().join("openclaw");
        fs::write(&script, "read forever").unwrap();
        let start = |state: &Path| {
            fs::create_dir_all(state).unwrap();
            let mut command = Command::new("/bin/sh");
            command.arg(&script).args(["gateway", "--port", "1"]);
            command.stdin(std::process::Stdio::piped());
            command
                .env("HOME", state.parent().unwrap())
                .env_remove("OPENCLAW_STATE_DIR")
                .spawn()
                .unwrap()
        };
        let (mut orphan, mut other) = (start(&ours), start(&theirs));
        while processes::gateways_on(&ours).is_empty() || processes::gateways_on(&theirs).is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        // Waiting would close it, and at its end they end.
        let _inputs = (orphan.stdin.take(), other.stdin.take());
        // Somebody has to take its status, as PID 1 does, or it stays in the process table.
        let reaped = tokio::task::spawn_blocking(move || orphan.wait().unwrap());
        let ended = end(&ours).await;
        let other_lives = other.try_wait().unwrap().is_none();
        other.kill().unwrap();
        other.wait().unwrap();
        ended.unwrap();
        assert!(other_lives);
        assert_eq!(reaped.await.unwrap().signal(), Some(Signal::SIGTERM as i32));
    }
}
