//! The gateway's own command line, for what nothing else can do. It takes seconds, so a normal boot never needs it.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tracing::{info, warn};

use crate::pid1::{Output, RunError, Spawn, Spawner};

use super::{failure, rpc::RpcError};

/// For a doctor on a small machine: the current generation's takes 30 s on two busy cores.
const DOCTOR: Duration = Duration::from_secs(300);
/// For a question or an errand, which takes seconds.
const ERRAND: Duration = Duration::from_secs(30);
/// A handoff is void after a minute.
const HANDOFF: Duration = Duration::from_secs(60);

/// How to run it: the words of the service's command before `gateway`, in the gateway's whole environment.
pub struct Cli {
    program: Vec<String>,
    env: BTreeMap<String, String>,
    spawner: Spawner,
}

impl Cli {
    /// `None` if the command is not that of a gateway.
    pub fn of(command: &[String], env: BTreeMap<String, String>, spawner: Spawner) -> Option<Cli> {
        let at = command.iter().position(|word| word == "gateway")?;
        let program = command[..at].to_vec();
        (!program.is_empty()).then_some(Cli { program, env, spawner })
    }

    /// Has the gateway's doctor repair what it can. Whether that was enough shows when the gateway starts.
    pub async fn doctor(&self) {
        info!("the gateway refuses its configuration: running its doctor, once");
        match self
            .run(&["doctor", "--fix", "--yes", "--non-interactive"], DOCTOR)
            .await
        {
            Ok(output) if output.exit.status() == 0 => {}
            Ok(output) => warn!(
                "the gateway's doctor exited with {}: {}",
                output.exit.status(),
                failure::last_words(&lines(&output.stderr)),
            ),
            Err(error) => warn!("the gateway's doctor: {error}"),
        }
    }

    /// Takes the request for a restart that the gateway of that process id has left. True if there was one.
    pub async fn consume_handoff(&self, pid: i32) -> bool {
        let pid = pid.to_string();
        let consume = [
            "gateway",
            "restart-handoff",
            "consume",
            "--expected-pid",
            &pid,
            "--json",
        ];
        match self.run(&consume, HANDOFF).await {
            Ok(output) => is_accepted(&output.stdout),
            Err(error) => {
                warn!("cannot ask whether the gateway wanted a restart: {error}");
                false
            }
        }
    }

    /// Has it do something and tell what came of it.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn json(&self, words: &[&str]) -> Result<Value, RpcError> {
        let output = self.run(words, ERRAND).await;
        let output = output.map_err(|error| RpcError::Unknown(error.to_string()))?;
        if output.exit.status() != 0 {
            let said = [lines(&output.stdout), lines(&output.stderr)].concat();
            return Err(RpcError::refused(
                "the command line".to_owned(),
                failure::last_words(&said),
            ));
        }
        // What it has to say besides comes before.
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map_or("", |at| &text[at..]);
        serde_json::from_str(json)
            .map_err(|error| RpcError::Unknown(format!("its command line does not answer in JSON: {error}")))
    }

    async fn run(&self, words: &[&str], deadline: Duration) -> Result<Output, RunError> {
        let words = words.iter().map(|word| (*word).to_owned());
        let mut spawn = Spawn::new(self.program.iter().cloned().chain(words));
        spawn.env = self
            .env
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        // Ours may be gone, as for the gateway itself.
        spawn.cwd = std::env::current_dir().is_err().then(|| "/".into());
        self.spawner.run(spawn, deadline).await
    }
}

fn lines(of: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(of).lines().map(str::to_owned).collect()
}

fn is_accepted(stdout: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        ok: bool,
        status: String,
    }
    serde_json::from_slice::<Answer>(stdout).is_ok_and(|answer| answer.ok && answer.status == "accepted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_accepted_handoff_is_a_request() {
        assert!(is_accepted(
            br#"{"ok":true,"protocolVersion":1,"status":"accepted","handoff":{}}"#
        ));
        assert!(!is_accepted(
            br#"{"ok":true,"protocolVersion":1,"status":"none","reason":"missing"}"#
        ));
        assert!(!is_accepted(b"not JSON"));
    }
}
