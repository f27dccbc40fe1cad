//! `moltinit attach`: the start script by which a Worker gives an agent what PID 1 was not given.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Child,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{self, Container, Disk, TOKEN, commit, stand_in, with_gateway},
    eventually, free_port, http, process,
    s3::S3,
};

/// A start script with that environment. Killed when this is dropped.
pub struct Script(Child);

impl Script {
    pub fn start(disk: &Disk, env: &[(&str, &str)]) -> Script {
        let script = disk.command(&["attach", "gateway"]).envs(env.iter().copied()).spawn();
        Script(script.unwrap())
    }

    /// Its exit code, when it has ended by itself.
    fn end(&mut self) -> Option<i32> {
        eventually("the end of the script", PATIENCE, || self.0.try_wait().unwrap()).code()
    }

    pub fn is_there(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and its exit code.
    fn stop(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        self.end()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn gateway(container: &Container) -> Value {
    container.status()["services"]["gateway"].clone()
}

/// The environment of the gateway's process.
fn environment(container: &Container) -> Vec<String> {
    let inside = gateway(container)["pid"].as_i64().expect("a gateway");
    let pid = process::outside(container.init.as_raw(), inside as i32);
    let env = fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8_lossy(&env).split('\0').map(str::to_owned).collect()
}

#[test]
fn a_script_lives_as_long_as_its_service() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    let mut script = Script::start(&disk, &[("BROUGHT", "along")]);
    eventually("the environment that was brought", PATIENCE, || {
        // What is no business of its keeper's waits for the next start. The script may not have handed it over yet.
        let restarted = disk.command(&["restart", "gateway", "--wait"]).status().unwrap();
        assert!(restarted.success());
        environment(&container)
            .contains(&"BROUGHT=along".to_owned())
            .then_some(())
    });
    assert!(script.is_there(), "a restart is not its end");
    assert_eq!(script.stop(), Some(143), "as a shell has it of what SIGTERM has ended");
    assert_eq!(gateway(&container)["state"], "stopped");
}

/// Each time it is attached to, the service is started again, and ends as it is told to.
#[test]
fn the_exit_code_of_a_script_is_that_of_its_service() {
    let disk = Disk::new();
    let end = disk.path("end");
    let command = format!(r#"["sh", "-c", ". {}"]"#, end.display());
    let env = container::gateway(&disk, r#"["sleep", "100000"]"#, "");
    let file = disk.path("moltinit.toml");
    let services = fs::read_to_string(&file).unwrap();
    let job = format!("[[service]]\nname = \"job\"\ncommand = {command}\nrestart = \"never\"\n");
    fs::write(&file, services + &job).unwrap();
    fs::write(&end, "exit 5").unwrap();
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    container.wait_for("/healthz", PATIENCE);
    let stopped = || container.status()["services"]["job"]["state"] == "stopped";
    for (says, code) in [
        ("exit 7", 7),
        ("exit 0", 0),
        ("kill -KILL $$", 137),
        ("kill -USR1 $$", 138),
    ] {
        eventually(format_args!("its rest; log: {container}"), PATIENCE, || {
            stopped().then_some(())
        });
        fs::write(&end, says).unwrap();
        let mut script = Script(disk.command(&["attach", "job"]).spawn().unwrap());
        assert_eq!(script.end(), Some(code), "{says}; log: {container}");
    }
}

#[test]
fn who_attaches_from_a_bare_shell_takes_nothing_away() {
    let disk = Disk::new();
    // Each start leaves its environment behind.
    let command = format!(
        r#"["sh", "-c", "env >{0}.new; mv {0}.new {0}; exec sleep 100000"]"#,
        disk.path("env").display()
    );
    let container = with_gateway(&disk, &disk.path("store"), &command);
    container.wait_for("/readyz", PATIENCE);
    let started_with = |variable: &str| {
        let env = fs::read_to_string(disk.path("env")).unwrap_or_default();
        env.lines().any(|known| known == variable)
    };
    let restarted_with = |variable: &str| {
        eventually(format_args!("{variable}; {container}"), PATIENCE, || {
            started_with(variable).then_some(())
        });
    };
    const KEY: (&str, &str) = ("ANTHROPIC_API_KEY", "anthropic-0123456789");
    let _first = Script::start(&disk, &[KEY]);
    restarted_with("ANTHROPIC_API_KEY=anthropic-0123456789");
    // A key of which moltinit knows nothing is one all the same.
    let _second = Script::start(&disk, &[KEY, ("OPENROUTER_API_KEY", "openrouter-0123456789")]);
    restarted_with("OPENROUTER_API_KEY=openrouter-0123456789");

    let _bare = Script::start(&disk, &[("BROUGHT", "along"), ("HOME", "/elsewhere")]);
    eventually("the environment that was brought", PATIENCE, || {
        let restarted = disk.command(&["restart", "gateway", "--wait"]).status().unwrap();
        assert!(restarted.success());
        started_with("BROUGHT=along").then_some(())
    });
    let mut bad = Script::start(&disk, &[("ANTHROPIC_API_KEY", "with a space")]);
    assert_eq!(bad.end(), Some(78));
    for kept in [
        "ANTHROPIC_API_KEY=anthropic-0123456789".to_owned(),
        "OPENROUTER_API_KEY=openrouter-0123456789".to_owned(),
        format!("HOME={}", disk.path("home").display()),
        format!("OPENCLAW_STATE_DIR={}", disk.state().display()),
    ] {
        assert!(started_with(&kept), "{kept}");
    }
}

/// As an unmodified moltworker has it: PID 1 knows nothing, the start script brings it all, and later brings other keys.
#[test]
fn a_script_brings_all_that_pid_1_was_not_given() {
    const CALLBACK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let disk = Disk::new();
    let file = disk.path("moltinit.toml");
    fs::write(
        &file,
        r#"
            [[service]]
            name = "sandbox"
            command = ["sleep", "100000"]
            ready = { command = ["true"] }
            live = { command = ["true"] }

            [[service]]
            name = "gateway"
            command = ["sh", "-c", "echo my key is $ANTHROPIC_API_KEY; exec sleep 100000"]
            ready = { command = ["true"] }
            live = { command = ["true"] }
        "#,
    )
    .unwrap();
    let cdp = free_port();
    let cdp_addr = format!("127.0.0.1:{cdp}");
    let env = [
        ("MOLTINIT_CONFIG", file.to_str().unwrap()),
        ("MOLTINIT_STORE_WAIT", "500ms"),
        ("MOLTINIT_CDP_ADDR", &cdp_addr),
    ];
    let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    let held = eventually("a gateway that waits", PATIENCE, || {
        let answer = container.get("/status").ok()?;
        let gateway = answer.json()["services"]["gateway"].clone();
        (gateway["state"] == "held").then(|| gateway["why"].to_string())
    });
    assert!(held.contains("moltinit attach gateway"), "{held}");
    assert_eq!(container.get("/healthz").unwrap().status, 200);
    assert_eq!(container.get("/readyz").unwrap().status, 503);
    assert!(http::get(cdp, "/json/version", None).is_err(), "no browser, no port");

    let worker = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", worker.local_addr().unwrap());
    let mut brought = [
        ("OPENCLAW_GATEWAY_TOKEN", "gateway-token-0123456789"),
        ("MOLTINIT_ADMIN_TOKEN", "admin-token-0123456789"),
        ("ANTHROPIC_API_KEY", "first-key-0123456789"),
        ("WORKER_URL", &url),
        ("CDP_SECRET", "cdp-secret-0123456789"),
        ("MOLTINIT_CALLBACK_SECRET", CALLBACK_SECRET),
    ];
    let first = Script::start(&disk, &brought);
    let (mut posted, _) = worker.accept().unwrap();
    let mut request = BufReader::new(posted.try_clone().unwrap()).lines().map(Result::unwrap);
    assert_eq!(request.next().unwrap(), "POST /_moltinit/events HTTP/1.1");
    assert!(
        request
            .take_while(|line| !line.is_empty())
            .any(|line| line.starts_with("webhook-signature: v1,"))
    );
    posted
        .write_all(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
        .unwrap();

    container.wait_for("/readyz", PATIENCE);
    let status = |token| http::get(container.port, "/status", Some(token)).unwrap();
    eventually("the token that was brought", PATIENCE, || {
        (status("admin-token-0123456789").status == 200).then_some(())
    });
    assert_eq!(status(TOKEN).status, 401, "PID 1's own counts no more");
    let discovery = http::get(cdp, "/json/version", None).unwrap();
    assert_eq!(discovery.status, 200);
    assert!(discovery.body.contains(&cdp_addr));
    eventually("a line of the gateway's", PATIENCE, || {
        container.log().contains("my key is [secret]").then_some(())
    });

    let services = || status("admin-token-0123456789").json()["services"].clone();
    let before = services()["gateway"]["pid"].clone();
    let same = Script::start(&disk, &brought);
    brought[2].1 = "second-key-0123456789";
    let second = Script::start(&disk, &brought);
    eventually("a gateway with the second key", PATIENCE, || {
        let log = container.log();
        (log.matches("my key is [secret]").count() == 2).then_some(())
    });
    assert_ne!(services()["gateway"]["pid"], before);
    drop((first, same));
    assert_eq!(second.stop(), Some(143));
    assert_eq!(services()["gateway"]["state"], "stopped");
    for (name, value) in &brought {
        let told = name.starts_with("WORKER");
        assert!(told || !container.log().contains(value), "{name} in {container}");
    }
    assert!(!container.log().contains("first-key"));
}

/// moltworker's Worker with nothing but its image changed: it gives the bucket's keys to its start script too. Until then
/// the store is not known, so nothing is started on what a fresh disk holds; then the bucket is mounted and restored from.
#[test]
fn a_script_brings_the_bucket_and_the_state_outlives_the_container() {
    let s3 = S3::start();
    let endpoint = format!("http://127.0.0.1:{}", s3.port);
    let mut disk = Disk::new();
    for round in ["first", "second"] {
        let file = disk.path("moltinit.toml");
        fs::write(
            &file,
            r#"
                [[service]]
                name = "sandbox"
                command = ["sleep", "100000"]

                [[service]]
                name = "gateway"
                command = ["sh", "-c", "echo I remember $(cat $HOME/.openclaw/memory.md); exec sleep 100000"]
                ready = { command = ["true"] }
                live = { command = ["true"] }
            "#,
        )
        .unwrap();
        let env = [
            ("MOLTINIT_CONFIG", file.to_str().unwrap()),
            ("MOLTINIT_STORE", ""),
            ("MOLTINIT_STORE_WAIT", "1s"),
        ];
        let container = Container::start(&disk, &disk.path("bucket"), &env, &["run"]);
        container.wait_for("/healthz", PATIENCE);
        let services = container.status()["services"].clone();
        assert_eq!(services["gateway"]["state"], "waiting", "{services}");
        // Somebody who brings nothing does not say that there is no store, either.
        assert!(disk.command(&["stop", "gateway"]).status().unwrap().success());
        let _bare = Script::start(&disk, &[("MOLTINIT_STORE", "")]);
        eventually("what it starts", PATIENCE, || {
            (gateway(&container)["state"] == "waiting").then_some(())
        });
        assert_eq!(container.get("/startupz").unwrap().json()["pendingReason"], "store");

        let bucket = disk.path("bucket");
        let script = Script::start(
            &disk,
            &[
                ("OPENCLAW_GATEWAY_TOKEN", "gateway-token-0123456789"),
                ("MOLTINIT_ADMIN_TOKEN", TOKEN),
                ("MOLTINIT_STORE", bucket.to_str().unwrap()),
                ("R2_ACCESS_KEY_ID", "key-0123456789"),
                ("R2_SECRET_ACCESS_KEY", "secret-0123456789"),
                ("R2_BUCKET_NAME", "agent"),
                ("R2_ENDPOINT", &endpoint),
            ],
        );
        container.wait_for("/readyz", PATIENCE);
        let status = container.status();
        assert_eq!(status["store"]["durable"], true, "{}", status["store"]);
        assert_eq!(status["store"]["required"], true, "{}", status["store"]);
        if round == "second" {
            eventually(format_args!("a memory: {container}"), PATIENCE, || {
                container.log().contains("I remember everything").then_some(())
            });
        }
        fs::write(disk.state().join("memory.md"), "everything").unwrap();
        commit(&container);
        assert!(!container.log().contains("key-0123456789"), "{container}");
        drop(script);
        container.kill();
        disk = disk.wiped();
    }
    assert!(
        s3.keys().iter().any(|key| key.starts_with("default/")),
        "{:?}",
        s3.keys()
    );
}
