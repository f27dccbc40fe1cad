//! Real neighbours, in the languages of those who receive callbacks.

use std::{
    ffi::OsStr,
    io::{Seek, Write},
};

use serde_json::{Value, json};

use crate::{
    config::secret::Secret,
    neighbour::{Neighbour, run, with_env},
    pid1::{Exit, Spawn, Stdio},
    report::{Callback, SigningKey},
};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where `scripts/test` has put what it installs.
fn installed(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run this by scripts/test"))
}

pub fn python(words: &[impl AsRef<OsStr>]) -> Spawn {
    let argv = std::iter::once(OsStr::new("python3")).chain(words.iter().map(AsRef::as_ref));
    with_env(Spawn::new(argv), "PYTHONPATH", installed("MOLTINIT_TEST_PYTHONPATH"))
}

/// `tests/tools/receiver.py`.
pub struct Receiver {
    pub port: u16,
    /// What it got, there before its sender has an answer.
    log: tempfile::NamedTempFile,
    _process: Neighbour,
}

/// One request that it got.
#[derive(Debug, Clone)]
pub struct Got {
    pub boot: String,
    pub seq: u64,
    pub kind: String,
    pub status: u64,
    pub target: String,
    /// Seconds on the receiver's clock.
    pub at: f64,
}

impl Receiver {
    /// `plan` as the tool has it, without the secret and the log.
    pub fn start(mut plan: Value) -> Receiver {
        let log = tempfile::NamedTempFile::new().unwrap();
        plan["secret"] = json!(SECRET);
        plan["log"] = json!(log.path());
        let tool = format!("{ROOT}/tests/tools/receiver.py");
        let mut process = Neighbour::start(python(&[tool, plan.to_string()]));
        Receiver {
            port: process.line().parse().unwrap(),
            log,
            _process: process,
        }
    }

    pub fn callback(&self) -> Callback {
        callback(&format!("http://127.0.0.1:{}/hook", self.port))
    }

    pub fn lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        // The last may be in the midst of being written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    }

    /// Everything that has come, each of which verified.
    pub fn got(&self) -> Vec<Got> {
        let got = self.lines().into_iter().map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["verified"], true, "{line}");
            let event = &line["event"];
            assert_eq!(line["headers"]["webhook-id"], event["id"]);
            Got {
                boot: event["boot"].as_str().unwrap().to_owned(),
                seq: event["seq"].as_u64().unwrap(),
                kind: event["type"].as_str().unwrap().to_owned(),
                status: line["status"].as_u64().unwrap(),
                target: line["target"].as_str().unwrap().to_owned(),
                at: line["at"].as_f64().unwrap(),
            }
        });
        got.collect()
    }
}

pub fn callback(url: &str) -> Callback {
    Callback {
        url: url.parse().unwrap(),
        key: SigningKey::parse(&Secret::new(SECRET.to_owned())).unwrap(),
    }
}

/// Has the published library for Node verify the lines of a receiver.
pub fn verify_in_node(lines: &[String]) {
    let tool = format!("{ROOT}/tests/tools/verify-webhooks.cjs");
    let node = Spawn::new(["node", &tool, SECRET]);
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(lines.join("\n").as_bytes()).unwrap();
    input.rewind().unwrap();
    let output = run(Spawn {
        stdin: Stdio::Fd(input.into()),
        ..with_env(node, "NODE_PATH", installed("MOLTINIT_TEST_NODE_MODULES"))
    });
    assert_eq!(
        output.exit,
        Exit::Code(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let verified = String::from_utf8(output.stdout).unwrap();
    assert_eq!(verified.trim(), lines.len().to_string());
}

/// Runs one test of this test binary again as a process of its own, with `ROLE` set.
pub fn again(test: &str, role: &str) -> Spawn {
    let test = format!("report::tests::{test}");
    let argv = [
        std::env::current_exe().unwrap(),
        "--exact".into(),
        "--nocapture".into(),
        test.into(),
    ];
    with_env(Spawn::new(argv), "ROLE", role)
}

/// Set in the process that [`again`] made.
pub fn role() -> Option<String> {
    std::env::var("ROLE").ok()
}
