//! Gateways on our state that nobody looks after: left by an earlier supervisor, or started by hand and forgotten.
//! One of them alive would make the next one exit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
};
use tracing::warn;

use super::{blocking, places::Places, processes};

/// For an orderly end. An idle gateway takes two seconds; one that is at work has nobody left to deliver it to.
const PATIENCE: Duration = Duration::from_secs(15);
/// For the kernel to take a killed process away.
const KILLED: Duration = Duration::from_secs(5);
/// Their end makes no event that could be awaited: they need not be our children.
const LOOK: Duration = Duration::from_millis(50);

/// Ends every gateway on the state. There must be none of ours.
///
/// # Errors
/// One that does not go.
pub async fn end(places: &Arc<Places>) -> Result<(), String> {
    let found = || {
        let places = Arc::clone(places);
        blocking(move || processes::gateways_on(&places.state_dir))
    };
    for (signal, patience) in [(Signal::SIGTERM, PATIENCE), (Signal::SIGKILL, KILLED)] {
        for pid in found().await {
            warn!("ending a gateway that nobody looks after (pid {pid}, {signal})");
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(format!(
                        "a gateway (pid {pid}) is in the way and cannot be ended: {errno}"
                    ));
                }
            }
        }
        let deadline = Instant::now() + patience;
        while !found().await.is_empty() {
            if Instant::now() > deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    match found().await.first() {
        None => Ok(()),
        Some(pid) => Err(format!("a gateway (pid {pid}) is in the way and does not end")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;
    use crate::pid1::{Exit, Spawn, Spawner, Stdio};

    #[tokio::test]
    async fn a_gateway_on_our_state_ends_and_one_on_another_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a/.openclaw"), dir.path().join("b/.openclaw"));
        let script = dir.path().join("openclaw");
        fs::write(&script, "read forever").unwrap();
        let spawner = Spawner::start().unwrap();
        let start = |state: &Path| {
            fs::create_dir_all(state).unwrap();
            let words = ["/bin/sh", script.to_str().unwrap(), "gateway", "--port", "1"];
            let (input, until) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let child = spawner.spawn(Spawn {
                env: vec![("HOME".into(), state.parent().unwrap().into())],
                stdin: Stdio::Fd(input),
                ..Spawn::new(words)
            });
            (child.unwrap(), until)
        };
        let ((mut orphan, _input), (mut other, until)) = (start(&ours), start(&theirs));
        let places = Places::new(&crate::config::env::Env::default(), &ours, &[]);
        end(&Arc::new(places)).await.unwrap();
        assert_eq!(orphan.wait().await, Exit::Signal(Signal::SIGTERM as i32));
        assert_eq!(processes::gateways_on(&theirs), [other.pid()]);
        drop(until);
        assert_eq!(other.wait().await, Exit::Code(1));
    }
}
