//! A real Chromium, and moltinit's browser port in front of whatever is behind it.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use moltinit::{
    browser::{Port, upstream::Upstream},
    config::{self, env::Env, secret::Secret},
    event::{Event, Events},
};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{PATIENCE, eventually};

/// A browser port on `upstream`, and what it says happened.
pub async fn port(upstream: &str, env: &[(&str, &str)]) -> (u16, UnboundedReceiver<Event>) {
    port_with(upstream, env, None).await
}

pub async fn port_with(upstream: &str, env: &[(&str, &str)], token: Option<Secret>) -> (u16, UnboundedReceiver<Event>) {
    let variables = [("HOME", "/root"), ("MOLTINIT_CDP_UPSTREAM", upstream)]
        .into_iter()
        .chain(env.iter().copied());
    let env = Env::from_iter(variables.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let config = config::load(None, env, &config::Machine::look()).unwrap();
    let upstream = Upstream::of(&config).unwrap().unwrap();
    let (events, said) = Events::channel();
    let addr = Port::new("127.0.0.1:0".parse().unwrap(), token, events)
        .serve(upstream)
        .await
        .unwrap();
    (addr.port(), said)
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
