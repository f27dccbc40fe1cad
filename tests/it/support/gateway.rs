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
        let installed = std::env::var_os("MOLTINIT_TEST_OPENCLAW").expect("run the tests by ./scripts/test");
        Gateway {
            bin: Path::new(&installed).join("bin"),
            port: free_port(),
        }
    }

    /// The environment and the file with which `disk`'s moltinit runs this gateway on a port of its own.
    pub fn environment(&self, disk: &Disk) -> Vec<(String, String)> {
        let port = self.port;
        let file = disk.path("moltinit.toml");
        let text = format!(
            r#"
            [[service]]
            name = "gateway"
            command = ["openclaw", "gateway", "--port", "{port}", "--bind", "loopback"]
            ready = {{ http = "http://127.0.0.1:{port}/readyz", json = "ready" }}
            live = {{ http = "http://127.0.0.1:{port}/healthz", json = "ok" }}
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
        let output = Command::new(self.bin.join("node"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/gateway-rpc.mjs"))
            .args([&self.port.to_string(), TOKEN, method, &params.to_string()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{method}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
