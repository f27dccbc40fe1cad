//! A Docker engine of the test's own, and containers of it. It has no network to give: a container has its own
//! loopback, which a thread of ours visits.

use std::{
    fmt::{self, Display, Formatter},
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

use super::{PATIENCE, eventually, http};

/// dockerd with everything it has below a scratch directory. Ended, with all its containers, when this is dropped.
pub struct Engine {
    dockerd: Child,
    pub dir: tempfile::TempDir,
}

impl Engine {
    /// Starts one, or says why this machine cannot have one.
    pub fn start() -> Result<Engine, String> {
        if !Uid::effective().is_root() {
            return Err("an engine needs root".to_owned());
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("daemon.json"), "{}").unwrap();
        let log = File::create(at("log")).unwrap();
        // Ended with us also when we are killed.
        let dockerd = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "dockerd", "--bridge=none", "--iptables=false"])
            .arg("--host")
            .arg(format!("unix://{}", at("sock").display()))
            .args(["--config-file".into(), at("daemon.json")])
            .args(["--data-root".into(), at("data")])
            .args(["--exec-root".into(), at("exec")])
            .args(["--pidfile".into(), at("pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("setpriv: {error}"))?;
        let mut engine = Engine { dockerd, dir };
        let up = eventually("the engine, or its end", PATIENCE, || {
            if engine.dockerd.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let version = engine.command(&["version"]).output().expect("docker");
            version.status.success().then_some(true)
        });
        if up {
            return Ok(engine);
        }
        let log = fs::read_to_string(engine.dir.path().join("log")).unwrap_or_default();
        Err(format!("dockerd: {}", log.lines().last().unwrap_or("not installed")))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // Debian's own, of the engine's version, whatever else is in the path.
        let mut command = Command::new("/usr/bin/docker");
        command
            .args(args)
            .env(
                "DOCKER_HOST",
                format!("unix://{}", self.dir.path().join("sock").display()),
            )
            .env("DOCKER_CONFIG", self.dir.path().join("client"))
            .env("DOCKER_BUILDKIT", "1")
            .env("BUILDKIT_PROGRESS", "plain");
        command
    }

    /// `docker ARGS…`; what it says on stdout.
    ///
    /// # Panics
    /// It fails.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.command(args).stdin(Stdio::null()).output().expect("docker");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes `image` of the files in a tar.
    pub fn import(&self, tar: &Path, image: &str) {
        self.docker(&["import", tar.to_str().unwrap(), image]);
    }

    /// Makes `image` of `from` with one more file, executable, as its entrypoint. Node in it trusts whom the system does.
    pub fn add_entrypoint(&self, from: &str, file: &Path, at: &str, image: &str) {
        let context = self.dir.path().join("context");
        fs::create_dir_all(&context).unwrap();
        fs::copy(file, context.join("file")).unwrap();
        fs::set_permissions(context.join("file"), fs::Permissions::from_mode(0o755)).unwrap();
        let trust = "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt";
        let text = format!("FROM {from}\nENV {trust}\nCOPY file {at}\nENTRYPOINT [\"{at}\"]\n");
        fs::write(context.join("Dockerfile"), text).unwrap();
        self.docker(&["build", "--tag", image, context.to_str().unwrap()]);
    }

    /// Makes `image` by the repository's own Dockerfile.
    pub fn build(&self, args: &[(&str, &str)], image: &str) {
        let args: Vec<String> = args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut words = vec!["build", "--network", "host", "--tag", image];
        for arg in &args {
            words.extend(["--build-arg", arg]);
        }
        words.push(env!("CARGO_MANIFEST_DIR"));
        self.docker(&words);
    }

    /// `docker run OPTIONS…` of that image, which gets a directory of this side as `/store`.
    pub fn run(&self, image: &str, store: &Path, options: &[&str]) -> Container<'_> {
        let volume = format!("{}:/store", store.display());
        let mut words = vec!["run", "--detach", "--network", "none", "--volume", &volume];
        words.extend(["--env", "MOLTINIT_STORE=/store"]);
        words.extend(options);
        words.push(image);
        let id = self.docker(&words);
        let mut container = Container {
            engine: self,
            id,
            net: PathBuf::new(),
        };
        container.net = format!("/proc/{}/ns/net", container.inspect("{{.State.Pid}}")).into();
        container
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers and unmounts what is theirs.
        let _ = kill(Pid::from_raw(self.dockerd.id() as i32), Signal::SIGTERM);
        for _ in 0..600 {
            if !matches!(self.dockerd.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = self.dockerd.kill();
        let _ = self.dockerd.wait();
    }
}

/// A container. Removed when this is dropped.
pub struct Container<'a> {
    engine: &'a Engine,
    id: String,
    net: PathBuf,
}

impl Container<'_> {
    pub fn inspect(&self, format: &str) -> String {
        self.engine.docker(&["inspect", "--format", format, &self.id])
    }

    /// What a command in the container says.
    ///
    /// # Panics
    /// It fails.
    pub fn exec(&self, command: &[&str]) -> String {
        let words: Vec<&str> = ["exec", &self.id].iter().chain(command).copied().collect();
        self.engine.docker(&words)
    }

    /// Does something on the container's network: a port of 127.0.0.1 is the container's.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(&self.net).expect("a container that runs");
        let visit = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("the container's network");
            act()
        };
        thread::scope(|scope| scope.spawn(visit).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn request(
        &self,
        method: &str,
        port: u16,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> std::io::Result<http::Answer> {
        self.within(|| http::request(method, port, path, token, body))
    }

    /// As `docker stop` does, with time to drain; gives the exit code.
    pub fn stop(&self) -> String {
        self.engine.docker(&["stop", "--time", "120", &self.id]);
        self.inspect("{{.State.ExitCode}}")
    }

    pub fn kill(&self) {
        self.engine.docker(&["kill", &self.id]);
    }
}

/// Its log, as it is when it is asked for.
impl Display for Container<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let output = self.engine.command(&["logs", &self.id]).output().expect("docker");
        f.write_str(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let remove = self.engine.command(&["rm", "--force", "--volumes", &self.id]);
        let _ = { remove }.stdout(Stdio::null()).status();
    }
}
