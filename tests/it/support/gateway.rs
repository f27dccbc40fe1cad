//! The real gateway: where it is installed, how a container runs it, and calls over its WebSocket.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{
    container::{Disk, TOKEN},
    free_port,
};

/// OpenClaw as `scripts/install-openclaw` installed it.
pub struct Gateway {
    bin: PathBuf,
    pub port: u16,
}

impl Gateway {
    pub fn latest() -> Gateway {
        Gateway::installed("MOLTINIT_TEST_OPENCLAW")
    }

    /// The generation that moltworker pins.
    pub fn pinned() -> Gateway {
        Gateway::installed("MOLTINIT_TEST_OPENCLAW_PINNED")
    }

    fn installed(variable: &str) -> Gateway {
        let installed = std::env::var_os(variable).expect("run the tests by ./scripts/test");
        Gateway {
            bin: Path::new(&installed).join("bin"),
            port: free_port(),
        }
    }

    pub fn program(&self) -> PathBuf {
        self.bin.join("openclaw")
    }

    /// The environment and the file with which `disk`'s moltinit runs this gateway on a port of its own.
    pub fn environment(&self, disk: &Disk) -> Vec<(String, String)> {
        let port = self.port.to_string();
        self.environment_with(disk, &["openclaw", "gateway", "--port", &port, "--bind", "loopback"])
    }

    /// The same, with another program at work beside the gateway.
    pub fn environment_beside(&self, disk: &Disk, program: &[&str]) -> Vec<(String, String)> {
        let gateway = format!("\"$@\" & exec openclaw gateway --port {} --bind loopback", self.port);
        self.environment_with(disk, &[&["sh", "-c", gateway.as_str(), "sh"], program].concat())
    }

    fn environment_with(&self, disk: &Disk, command: &[&str]) -> Vec<(String, String)> {
        let port = self.port;
        let file = disk.path("moltinit.toml");
        let text = format!(
            r#"
            [[service]]
            name = "gateway"
            command = {command:?}
            ready = {{ http = "http://127.0.0.1:{port}/readyz", json = "ready" }}
            live = {{ http = "http://127.0.0.1:{port}/healthz", json = "ok", every = "2s" }}
            backoff = {{ reset_after = "2s" }}
            "#
        );
        fs::write(&file, text).unwrap();
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        [
            ("MOLTINIT_CONFIG", file.to_str().unwrap()),
            ("PATH", &path),
            ("OPENCLAW_GATEWAY_TOKEN", TOKEN),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// One call over its WebSocket.
    ///
    /// # Panics
    /// It is refused.
    pub fn call(&self, method: &str, params: &Value) -> Value {
        let said = self.node("gateway-rpc.mjs", &[method, &params.to_string()]);
        serde_json::from_str(&said).unwrap()
    }

    /// A new device asks to be paired, from afar as far as the gateway can tell; gives the id of the request.
    pub fn ask_to_pair(&self) -> String {
        self.node("gateway-pair.mjs", &[]).trim_end().to_owned()
    }

    /// Its command line, with nothing in its environment but a path.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        command.args(words).env_clear().env("PATH", path);
        command
    }

    fn node(&self, script: &str, args: &[&str]) -> String {
        let output = Command::new(self.bin.join("node"))
            .arg(format!("{}/tests/tools/{script}", env!("CARGO_MANIFEST_DIR")))
            .args([&self.port.to_string(), TOKEN])
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether the gateway's own command line takes the configuration for valid, and what it says.
    pub fn validate(&self, config: &Value) -> (bool, String) {
        let home = tempfile::tempdir().unwrap();
        let state = home.path().join(".openclaw");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("openclaw.json"), config.to_string()).unwrap();
        // The early generation has no command for it, but refuses any other.
        let output = Command::new(self.program())
            .args(["config", "get", "gateway.mode"])
            .env("HOME", home.path())
            .env_remove("OPENCLAW_STATE_DIR")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}
