//! Locks that gateways leave behind.
//!
//! The early generation believes a lock by the process id in it, which after a restore or a crash may be somebody
//! else's, and gives up at one it cannot read. The current one knows a stale lock by itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha1::{Digest, Sha1};

/// The locks there are on that configuration and its state. With no gateway alive they are all stale.
pub fn found(config: &Path, state_dir: &Path, temp_dir: &Path) -> Vec<PathBuf> {
    let mut locks = sessions(state_dir);
    locks.extend(instance(config, temp_dir).filter(|lock| fs::symlink_metadata(lock).is_ok()));
    locks
}

/// One gateway for one configuration: `<tmp>/openclaw-<uid>/gateway.<start of the SHA-1 of the path>.lock`.
fn instance(config: &Path, temp_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let uid = nix::unistd::getuid();
    let hash = Sha1::digest(config.as_os_str().as_encoded_bytes());
    let hash: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    ["openclaw", "moltbot", "clawdbot"]
        .map(|name| temp_dir.join(format!("{name}-{uid}/gateway.{hash}.lock")))
        .into_iter()
}

/// One run for one session: `agents/<id>/sessions/<session>.jsonl.lock`.
fn sessions(state_dir: &Path) -> Vec<PathBuf> {
    let entries = |dir: PathBuf| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    entries(state_dir.join("agents"))
        .flat_map(|agent| entries(agent.join("sessions")))
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(".jsonl.lock")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_locks_of_this_state_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (state, temp) = (dir.path().join("state"), dir.path().join("tmp"));
        let sessions = state.join("agents/main/sessions");
        let locks = temp.join(format!("openclaw-{}", nix::unistd::getuid()));
        fs::create_dir_all(&sessions).unwrap();
        fs::create_dir_all(&locks).unwrap();
        fs::write(sessions.join("a.jsonl"), "").unwrap();
        fs::write(sessions.join("a.jsonl.lock"), "").unwrap();
        fs::write(locks.join("gateway.00000000.lock"), "").unwrap();
        // printf /root/.openclaw/openclaw.json | sha1sum
        fs::write(locks.join("gateway.050719e6.lock"), "").unwrap();
        let config = Path::new("/root/.openclaw/openclaw.json");
        assert_eq!(
            found(config, &state, &temp),
            [sessions.join("a.jsonl.lock"), locks.join("gateway.050719e6.lock")]
        );
    }
}
