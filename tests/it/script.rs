//! The first of the README's two commands, as a newcomer gives it.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{eventually, free_port, http};

/// The gateway takes 10 s to start on an idle machine.
const BOOT: Duration = Duration::from_secs(300);

/// `scripts/run`, and all that it starts; killed when this is dropped.
struct Run {
    script: Child,
    status_port: u16,
    said: PathBuf,
}

impl Run {
    /// The script finds a `cargo` that does nothing: whoever runs this test has built the program, and the other tests
    /// are running it.
    fn start(cache: &Path, args: &[&str]) -> Run {
        let cargo = cache.join("tools/cargo");
        fs::create_dir_all(cargo.parent().unwrap()).unwrap();
        fs::write(
            &cargo,
            format!("#!/bin/sh\necho \"$@\" >{}\n", cache.join("built").display()),
        )
        .unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let tools = cargo.parent().unwrap().to_str().unwrap().to_owned();
        let status_port = free_port();
        let said = cache.join(format!("said-{status_port}"));
        let said_by_both = File::create(&said).unwrap();
        let script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/run"))
            .args(args)
            .env_clear()
            .env("HOME", cache)
            .env("PATH", format!("{tools}:{}", std::env::var("PATH").unwrap()))
            .env("MOLTINIT_DEV_CACHE", cache)
            .env("GATEWAY_PORT", free_port().to_string())
            .env("STATUS_PORT", status_port.to_string())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(said_by_both.try_clone().unwrap())
            .stderr(said_by_both)
            .spawn()
            .unwrap();
        Run {
            script,
            status_port,
            said,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn wait_until_ready(&mut self) {
        let (port, said) = (self.status_port, self.said.clone());
        eventually("the gateway to be ready", BOOT, || {
            if let Some(status) = self.script.try_wait().unwrap() {
                panic!("{status}: {}", fs::read_to_string(&said).unwrap());
            }
            (http::get(port, "/readyz", None).ok()?.status == 200).then_some(())
        });
    }

    /// With the token that was printed.
    fn status(&self) -> Value {
        let said = self.said();
        let (_, token) = said.split_once("#token=").expect("the gateway's address");
        let token = token.split_whitespace().next().unwrap();
        http::get(self.status_port, "/status", Some(token)).unwrap().json()
    }

    /// Ctrl-C goes to all that belongs to the terminal's foreground job.
    fn interrupt(mut self) {
        killpg(self.group(), Signal::SIGINT).unwrap();
        let status = eventually("the end", BOOT, || self.script.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.script.id()).unwrap())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.script.wait();
    }
}

#[test]
fn the_run_script_runs_the_main_job_and_a_second_start_has_the_state() {
    let cache = tempfile::tempdir().unwrap();
    let openclaw = PathBuf::from(std::env::var_os("MOLTINIT_TEST_OPENCLAW").expect("MOLTINIT_TEST_OPENCLAW"));
    symlink(&openclaw, cache.path().join(openclaw.file_name().unwrap())).unwrap();

    let mut first = Run::start(cache.path(), &[]);
    first.wait_until_ready();
    let said = first.said();
    for part in ["gateway   http://127.0.0.1:", "status    curl ", "stop      Ctrl-C"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(
        fs::read_to_string(cache.path().join("built")).unwrap(),
        "build --release --quiet\n"
    );
    assert_eq!(first.status()["restore"]["commit"], Value::Null);
    let learnt = cache.path().join("run/home/.openclaw/workspace/learnt.md");
    fs::write(&learnt, "to water the plants").unwrap();
    first.interrupt();

    // As a new container finds it: the store, and nothing else.
    let mut second = Run::start(cache.path(), &["--fresh"]);
    second.wait_until_ready();
    assert_ne!(second.status()["restore"]["commit"], Value::Null);
    assert_eq!(fs::read_to_string(&learnt).unwrap(), "to water the plants");
    second.interrupt();
}
