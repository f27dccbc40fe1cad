//! A real Chromium, and moltinit's browser port in front of whatever is behind it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use moltinit::{
    browser::{Port, upstream::Upstream},
    config::{self, env::Env},
    event::{Event, Events},
};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    PATIENCE,
    container::{Container, Disk, with_gateway_and},
    eventually,
};

/// A browser port on `upstream`, and what it says happened.
pub async fn port(upstream: &str, env: &[(&str, &str)]) -> (u16, UnboundedReceiver<Event>) {
    let variables = [("HOME", "/root"), ("MOLTINIT_CDP_UPSTREAM", upstream)]
        .into_iter()
        .chain(env.iter().copied());
    let env = Env::from_iter(variables.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let config = config::load(None, env, &config::Machine::look()).unwrap();
    let upstream = Upstream::of(&config).unwrap().unwrap();
    let (events, mut said) = Events::channel();
    // It is served as long as there is a port, and here that is as long as the test runs.
    let addr = Box::leak(Box::new(Port::new(events)))
        .serve("127.0.0.1:0".parse().unwrap(), config.cdp.token, Arc::new(upstream))
        .await
        .unwrap();
    assert!(matches!(said.recv().await, Some(Event::BrowserOffered { .. })));
    (addr.port(), said)
}

/// A container whose browser port is at `addr`, and whose browser is behind a Worker with the secret `s3cret-canary`.
pub fn behind_a_worker(disk: &Disk, worker: &str, addr: &str) -> Container {
    let env = [
        ("WORKER_URL", worker),
        ("CDP_SECRET", "s3cret-canary"),
        ("MOLTINIT_CDP_ADDR", addr),
    ];
    let container = with_gateway_and(disk, &disk.path("store"), r#"["sleep", "100000"]"#, &env);
    container.wait_for("/readyz", PATIENCE);
    container
}

pub struct Chromium {
    process: Child,
    pub port: u16,
    _profile: tempfile::TempDir,
}

impl Chromium {
    pub fn start() -> Chromium {
        let profile = tempfile::tempdir().unwrap();
        let process = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args(["--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium");
        let mut chromium = Chromium {
            process,
            port: 0,
            _profile: profile,
        };
        let said = chromium._profile.path().join("DevToolsActivePort");
        chromium.port = eventually("Chromium", PATIENCE, || {
            fs::read_to_string(&said).ok()?.lines().next()?.parse().ok()
        });
        chromium
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        super::process::kill_tree(self.process.id() as i32);
        let _ = self.process.wait();
    }
}

/// A Worker in real workerd, with a Chromium behind it.
pub struct Worker {
    process: Child,
    pub url: String,
}

impl Worker {
    /// What behaves like moltworker's shim; its secret is `shim-secret`.
    pub fn shim(chromium: &Chromium) -> Worker {
        Worker::start("shim-worker.mjs", chromium, None)
    }

    /// The relay of the Worker of ours, at a port that the test may give; its secret is `relay-secret`.
    pub fn relay(chromium: &Chromium, port: Option<u16>) -> Worker {
        Worker::start("relay-worker.mjs", chromium, port)
    }

    fn start(script: &str, chromium: &Chromium, port: Option<u16>) -> Worker {
        let mut process = Command::new("node")
            .arg(format!("{}/tests/tools/{script}", env!("CARGO_MANIFEST_DIR")))
            .arg(format!("127.0.0.1:{}", chromium.port))
            .args(port.map(|port| port.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut url)
            .unwrap();
        let url = url.trim_end().to_owned();
        Worker { process, url }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        super::process::kill_tree(self.process.id() as i32);
        let _ = self.process.wait();
    }
}
