//! A stand-in for a container: a PID namespace of its own in which moltinit is PID 1.

use std::{
    fmt::{self, Display, Formatter},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{MOLTINIT, PATIENCE, eventually, free_port, http};

/// The bearer token of every container.
pub const TOKEN: &str = "test-token-0123456789";

/// The disk of a container: what is lost when it is thrown away, beside the store, which is not.
pub struct Disk {
    pub dir: tempfile::TempDir,
}

impl Disk {
    pub fn new() -> Self {
        Disk {
            dir: tempfile::tempdir().expect("a scratch directory"),
        }
    }

    /// What the next container finds: the same paths, and nothing there.
    pub fn wiped(self) -> Self {
        self.wipe();
        self
    }

    pub fn wipe(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            let path = entry.path();
            let gone = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            gone.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `moltinit ARGS…` with the run directory and the store of this disk, and nothing else in its environment but a
    /// path and a home.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MOLTINIT);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path("home"))
            .env("MOLTINIT_STORE", self.path("store"))
            .env("MOLTINIT_RUN_DIR", self.path("run"));
        command
    }

    pub fn state(&self) -> PathBuf {
        self.path("home/.openclaw")
    }
}

/// moltinit as PID 1 of a new PID namespace. Everything in it is killed when this is dropped.
pub struct Container {
    unshare: Child,
    /// PID 1, as this side sees it.
    pub init: Pid,
    pub port: u16,
    pub log: PathBuf,
}

impl Container {
    /// Starts `moltinit ARGS…` with that disk and nothing in its environment but a path, a home and `env`.
    pub fn start(disk: &Disk, store: &Path, env: &[(&str, &str)], args: &[&str]) -> Container {
        Container::start_by(&[], disk, store, env, args)
    }

    /// The same, by a program that becomes moltinit once it has done what it is for.
    pub fn start_by(by: &[&str], disk: &Disk, store: &Path, env: &[(&str, &str)], args: &[&str]) -> Container {
        let port = free_port();
        std::fs::create_dir_all(disk.path("home")).unwrap();
        let log = disk.path(&format!("log-{port}"));
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"])
            .args(by)
            .arg(MOLTINIT)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", disk.path("home"))
            .env("MOLTINIT_STORE", store)
            .env("MOLTINIT_DATA_DIR", disk.path("data"))
            .env("MOLTINIT_RUN_DIR", disk.path("run"))
            .env("MOLTINIT_HTTP_ADDR", format!("127.0.0.1:{port}"))
            .env("MOLTINIT_CDP_ADDR", format!("127.0.0.1:{}", free_port()))
            .env("MOLTINIT_ADMIN_TOKEN", TOKEN)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(disk.path("stdout")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("unshare (util-linux)");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = eventually("PID 1 of the namespace", PATIENCE, || {
            std::fs::read_to_string(&children)
                .ok()?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        });
        Container {
            unshare,
            init: Pid::from_raw(init),
            port,
            log,
        }
    }

    pub fn get(&self, path: &str) -> std::io::Result<http::Answer> {
        http::get(self.port, path, Some(TOKEN))
    }

    pub fn post(&self, path: &str) -> std::io::Result<http::Answer> {
        http::request("POST", self.port, path, Some(TOKEN), "")
    }

    pub fn log(&self) -> String {
        let mut text = Vec::new();
        File::open(&self.log)
            .and_then(|mut file| file.read_to_end(&mut text))
            .ok();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The lines of its log that are records.
    pub fn records(&self) -> Vec<serde_json::Value> {
        let log = self.log();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until a probe answers 200.
    ///
    /// # Panics
    /// With the container's log, after `patience`.
    pub fn wait_for(&self, probe: &str, patience: Duration) {
        let deadline = std::time::Instant::now() + patience;
        while !self.get(probe).is_ok_and(|answer| answer.status == 200) {
            assert!(
                std::time::Instant::now() < deadline,
                "{probe} was not 200 within {patience:?}: {:?}\n{}",
                self.get(probe),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn status(&self) -> serde_json::Value {
        self.get("/status").expect("/status").json()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.init, signal).expect("PID 1 is there");
    }

    /// SIGKILL to PID 1: the kernel ends everything in the namespace with it.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.unshare.wait().unwrap();
    }

    /// Waits for PID 1 to end by itself.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let log = self.log.clone();
        let what = format!(
            "the end of PID 1; log: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
        eventually(&what, patience, || self.unshare.try_wait().unwrap())
    }
}

/// Its log, as it is when it is asked for.
impl Display for Container {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if matches!(self.unshare.try_wait(), Ok(None)) {
            let _ = kill(self.init, Signal::SIGKILL);
            let _ = self.unshare.wait();
        }
    }
}

/// A container whose gateway is a stand-in that does nothing but be there.
pub fn stand_in(disk: &Disk, store: &Path) -> Container {
    with_gateway(disk, store, r#"["sleep", "100000"]"#)
}

/// A container whose gateway is `command`.
pub fn with_gateway(disk: &Disk, store: &Path, command: &str) -> Container {
    with_gateway_and(disk, store, command, &[])
}

/// And more in its environment.
pub fn with_gateway_and(disk: &Disk, store: &Path, command: &str, env: &[(&str, &str)]) -> Container {
    let gateway = gateway(disk, command, "");
    let mut whole: Vec<(&str, &str)> = gateway.iter().map(|(key, value)| (*key, value.as_str())).collect();
    whole.extend(env);
    Container::start(disk, store, &whole, &["run"])
}

/// The environment and the file with which `disk`'s moltinit runs `command` as its gateway, with further settings of it.
pub fn gateway(disk: &Disk, command: &str, settings: &str) -> [(&'static str, String); 2] {
    let file = disk.path("moltinit.toml");
    let text = format!(
        "[[service]]\nname = \"gateway\"\ncommand = {command}\nready = {{ command = [\"true\"] }}\nlive = {{ command = [\"true\"] }}\n{settings}\n"
    );
    std::fs::write(&file, text).unwrap();
    [
        ("MOLTINIT_CONFIG", file.to_str().unwrap().to_owned()),
        ("MOLTINIT_STORE_WAIT", "500ms".to_owned()),
    ]
}

/// Waits until the event log has an event of that type; gives its data.
pub fn event(container: &Container, kind: &str) -> serde_json::Value {
    eventually(format_args!("{kind}; log: {container}"), PATIENCE, || {
        let events = container.get("/events?after=0").ok()?.json();
        let found = events["events"]
            .as_array()?
            .iter()
            .find(|event| event["type"] == kind)?;
        Some(found["data"].clone())
    })
}

/// Commits now; gives the commit's id.
pub fn commit(container: &Container) -> String {
    let answer = container.post("/snapshots").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}
