//! The container image, built by the repository's own Dockerfile and run by a real Docker engine.
//!
//! No registry is asked: what the image is built on is a stand-in for the platform's image, a plain Debian with those
//! of its parts that matter here. The gateway in it is real.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    MOLTINIT, PATIENCE,
    container::TOKEN,
    docker::{Container, Engine},
    eventually,
};

/// The gateway takes 10 s to start on an idle machine; this one may be busy.
const BOOT: Duration = Duration::from_secs(300);
const IMAGE: &str = "moltinit:test";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ANTHROPIC_KEY: &str = "ANTHROPIC_API_KEY=sk-ant-test-0123456789";

/// What the Dockerfile names as the base, and as what it takes from `worker/`, are of one release of the Sandbox SDK.
#[test]
fn the_image_is_built_on_what_the_worker_talks_to() {
    let dockerfile = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap();
    let package = fs::read_to_string(format!("{ROOT}/worker/package.json")).unwrap();
    let package: Value = serde_json::from_str(&package).unwrap();
    let version = package["dependencies"]["@cloudflare/sandbox"].as_str().unwrap();
    let base = format!("ARG BASE=docker.io/cloudflare/sandbox:{version}\n");
    assert!(dockerfile.contains(&base), "{base}");
}

/// The stage that compiles is not run here, for want of its base: what it needs has at least to get there.
#[test]
fn what_the_image_is_built_from_is_there_and_let_in() {
    let read = |name: &str| fs::read_to_string(format!("{ROOT}/{name}")).unwrap();
    let (dockerfile, ignored) = (read("Dockerfile"), read(".dockerignore"));
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied: Vec<&str> = copies
        .filter(|copy| !copy.starts_with("--from"))
        .flat_map(|copy| copy.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    for needed in [".cargo", "Cargo.toml", "Cargo.lock", "docs", "skills", "src"] {
        assert!(copied.contains(&needed), "COPY {needed}");
    }
    for source in copied {
        let lets_in = |line: &str| {
            line.strip_prefix('!')
                .is_some_and(|line| Path::new(source).starts_with(line))
        };
        assert!(Path::new(ROOT).join(source).exists(), "{source}");
        assert!(ignored.lines().any(lets_in), "!{source}");
    }
}

/// The stage that compiles is not run here, but what it makes has to run on the base, which is Ubuntu 22.04. The builder
/// that the Dockerfile names is a Debian whose glibc is no newer.
#[test]
fn the_builders_glibc_is_no_newer_than_the_bases() {
    let dockerfile = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap();
    let builder = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ARG BUILDER="))
        .unwrap();
    let (_, debian) = builder.rsplit_once('-').unwrap();
    let glibc = [("bullseye", 31), ("bookworm", 36), ("trixie", 41)];
    let (_, minor) = glibc
        .iter()
        .find(|(name, _)| *name == debian)
        .expect("a Debian that is known");
    assert!(*minor <= 35, "{builder} has glibc 2.{minor}, and the base 2.35");
}

/// The image is for two machines, and only one of them is here: what the gateway has for the one in machine code, it has
/// for the other as well.
#[test]
fn the_gateways_native_parts_are_there_for_arm64() {
    let openclaw = std::env::var("MOLTINIT_TEST_OPENCLAW").expect("run the tests by ./scripts/test");
    let lock = fs::read_to_string(format!("{openclaw}/package-lock.json")).unwrap();
    let lock: Value = serde_json::from_str(&lock).unwrap();
    let packages = lock["packages"].as_object().unwrap();
    let native: Vec<&String> = packages.keys().filter(|name| name.contains("linux-x64")).collect();
    assert!(!native.is_empty(), "how they are named has changed");
    for name in native {
        let other = name.replace("linux-x64", "linux-arm64");
        assert!(packages.contains_key(&other), "{other}");
    }
}

/// One test, because one engine and one build serve all of it.
#[test]
fn an_agent_in_the_image_outlives_its_containers() {
    let engine = match Engine::start() {
        Ok(engine) => engine,
        Err(why) => {
            // Past the harness, which keeps what a test prints to itself.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: the image is not tested, for there is no Docker engine: {why}"
            );
            return;
        }
    };
    build(&engine);
    let store = engine.dir.path().join("store");
    fs::create_dir(&store).unwrap();
    a_stop_is_a_last_commit(&engine, &store);
    a_kill_loses_nothing_committed(&engine, &store);
    moltworkers_worker_is_served(&engine, &store);
    it_can_be_built_on(&engine);
}

fn build(engine: &Engine) {
    let base = std::env::var_os("MOLTINIT_TEST_SANDBOX_BASE").expect("run the tests by ./scripts/test");
    engine.import(Path::new(&base), "debian:test");
    let server = Path::new(ROOT).join("tests/tools/sandbox-server.mjs");
    engine.add_entrypoint("debian:test", &server, "/container-server/sandbox", "sandbox:test");

    let binary = engine.dir.path().join("binary");
    fs::create_dir(&binary).unwrap();
    fs::copy(MOLTINIT, binary.join("moltinit")).unwrap();
    let tar = engine.dir.path().join("binary.tar");
    let packed = std::process::Command::new("tar")
        .args([
            "-C".into(),
            binary,
            "-cf".into(),
            tar.clone(),
            PathBuf::from("moltinit"),
        ])
        .status();
    assert!(packed.unwrap().success());
    engine.import(&tar, "binary:test");

    engine.build(&[("BASE", "sandbox:test"), ("BINARY", "binary:test")], IMAGE);
}

fn status(container: &Container) -> Option<Value> {
    let answer = container.request("GET", 9180, "/status", Some(TOKEN), "").ok()?;
    (answer.status == 200).then(|| answer.json())
}

fn wait_until_ready(container: &Container) {
    eventually(format_args!("an agent that is ready: {container}"), BOOT, || {
        let answer = container.request("GET", 9180, "/readyz", None, "").ok()?;
        (answer.status == 200).then_some(())
    });
}

/// The pid in the container of a service, once it is ready.
fn pid(container: &Container, service: &str) -> i64 {
    eventually(format_args!("{service}: {container}"), BOOT, || {
        let service = &status(container)?["services"][service];
        service["pid"].as_i64().filter(|_| service["state"] == "ready")
    })
}

fn answers_ping(container: &Container) -> Option<()> {
    let answer = container.request("GET", 3000, "/api/ping", None, "").ok()?;
    (answer.status == 200).then_some(())
}

fn write(container: &Container, name: &str) {
    container.exec(&["sh", "-c", &format!("echo {name} > /root/clawd/{name}")]);
}

fn check_is_there(container: &Container, name: &str) {
    assert_eq!(container.exec(&["cat", &format!("/root/clawd/{name}")]), name);
}

/// With as little as the smallest container has: 1 GiB, and nothing but the store and scratch to write to.
fn a_stop_is_a_last_commit(engine: &Engine, store: &Path) {
    let token = format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}");
    let mut options = vec!["--read-only", "--memory", "1g", "--health-interval", "1s"];
    options.extend([
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/tmp",
        "--volume",
        "/root",
        "--volume",
        "/var/lib/moltinit",
    ]);
    options.extend(["--env", &token, "--env", ANTHROPIC_KEY]);
    let container = engine.run(IMAGE, store, &options);
    wait_until_ready(&container);
    assert_eq!(
        container.exec(&["readlink", "/proc/1/exe"]),
        "/usr/local/bin/moltinit",
        "PID 1"
    );
    eventually("a container that is healthy", PATIENCE, || {
        (container.inspect("{{.State.Health.Status}}") == "healthy").then_some(())
    });
    assert_eq!(status(&container).unwrap()["memory"]["limit_bytes"], 1 << 30);
    container.exec(&["test", "!", "-w", "/usr/local/bin"]);

    let (server, gateway) = (pid(&container, "sandbox"), pid(&container, "gateway"));
    answers_ping(&container).expect("the sandbox server");
    container.exec(&["sh", "-c", &format!("kill -9 {server}")]);
    eventually("the sandbox server again", PATIENCE, || answers_ping(&container));
    assert_ne!(pid(&container, "sandbox"), server);
    assert_eq!(pid(&container, "gateway"), gateway, "the other service is left alone");

    // On a disk that nothing can be written to, so all that is there came with the image.
    // It lies where this very Node looks for it.
    let node = container.exec(&["/opt/openclaw/bin/node", "--version"]);
    let compiled = format!("find $NODE_COMPILE_CACHE/{node}-* -type f | wc -l");
    let compiled = container.exec(&["sh", "-c", &compiled]);
    assert!(
        compiled.parse::<u32>().unwrap() > 100,
        "files of compiled code: {compiled}"
    );
    // Beside it is a list of what the gateway reads, all of which is there.
    let listed = "cd $NODE_COMPILE_CACHE && wc -l <files && xargs -a files ls -d >/dev/null";
    let listed = container.exec(&["sh", "-c", listed]);
    assert!(
        listed.parse::<u32>().unwrap() > 200,
        "files that the gateway reads: {listed}"
    );
    let environ = format!("tr '\\0' '\\n' < /proc/{gateway}/environ | grep ^NODE_COMPILE_CACHE=");
    assert_eq!(
        container.exec(&["sh", "-c", &environ]),
        "NODE_COMPILE_CACHE=/opt/openclaw/compile-cache",
        "in the gateway's environment"
    );

    write(&container, "stopped.md");
    assert_eq!(container.stop(), "0", "{container}");
    assert_eq!(container.inspect("{{.State.OOMKilled}}"), "false");
}

/// In a new container, the other one removed. It starts in the directory that the restore replaces.
fn a_kill_loses_nothing_committed(engine: &Engine, store: &Path) {
    let token = format!("OPENCLAW_GATEWAY_TOKEN={TOKEN}");
    let container = engine.run(
        IMAGE,
        store,
        &["--workdir", "/root/clawd", "--env", &token, "--env", ANTHROPIC_KEY],
    );
    wait_until_ready(&container);
    check_is_there(&container, "stopped.md");

    write(&container, "killed.md");
    let commit = container.request("POST", 9180, "/snapshots", Some(TOKEN), "").unwrap();
    assert_eq!(commit.status, 200, "{commit:?}");
    container.kill();
}

/// What moltworker's Worker, as it is, does by way of the Sandbox SDK: PID 1 knows nothing but where the store is, the
/// start script brings the keys, and is what the Worker looks for, waits for, kills and starts again.
fn moltworkers_worker_is_served(engine: &Engine, store: &Path) {
    const SCRIPT: &str = "/usr/local/bin/start-openclaw.sh";
    let container = engine.run(IMAGE, store, &[]);
    eventually("the sandbox server", PATIENCE, || answers_ping(&container));
    let sdk = |method, path: &str, body: Value| {
        let answer = container.request(method, 3000, path, None, &body.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        answer.json()
    };
    let execute = |command: &str| sdk("POST", "/api/execute", json!({ "command": command }));
    let shell = |command: &str| execute(command)["stdout"].clone();
    let existing = || {
        let list = sdk("GET", "/api/process/list", Value::Null);
        let mut processes = list["processes"].as_array().unwrap().clone().into_iter();
        processes.find(|process| {
            let command = process["command"].as_str().unwrap();
            let is_gateway = [
                "start-openclaw.sh",
                "openclaw gateway",
                "start-moltbot.sh",
                "clawdbot gateway",
            ];
            process["status"] == "running" && is_gateway.iter().any(|name| command.contains(name))
        })
    };
    let start = |script: &str| {
        let env = json!({
            "OPENCLAW_GATEWAY_TOKEN": TOKEN,
            "ANTHROPIC_API_KEY": "sk-ant-test-0123456789",
            "OPENCLAW_DEV_MODE": "false",
        });
        let started = sdk("POST", "/api/process/start", json!({ "command": script, "env": env }));
        started["processId"].as_str().unwrap().to_owned()
    };
    // The last event of the stream, which ends when the port is open or the process is not there any more.
    let watch_port = |process: &str| {
        let body = json!({ "port": 18789, "mode": "tcp", "processId": process, "interval": 500 });
        // It says nothing for as long as nothing changes, which may be longer than is waited for a byte.
        let body = eventually(format_args!("the end of the watch: {container}"), BOOT, || {
            let events = container.request("POST", 3000, "/api/port-watch", None, &body.to_string());
            events.ok().map(|events| events.body)
        });
        let last = body.lines().rev().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str::<Value>(last.expect("an event")).unwrap()["type"].clone()
    };
    let wait_for_port = |process: &str| assert_eq!(watch_port(process), "ready", "{container}");

    sdk(
        "POST",
        "/api/session/create",
        json!({ "id": "sandbox-moltbot", "env": {}, "cwd": "/workspace" }),
    );
    assert_eq!(existing(), None, "no key, no gateway");
    let first = start(SCRIPT);
    wait_for_port(&first);
    let process = existing().expect("the start script, for as long as the gateway is there");
    assert_eq!(process["id"], first.as_str());
    let gateway = pid(&container, "gateway");
    check_is_there(&container, "stopped.md");
    check_is_there(&container, "killed.md");

    // What it does when the port does not answer in time.
    sdk("DELETE", &format!("/api/process/{first}"), Value::Null);
    assert_eq!(existing(), None);
    let second = start("/usr/local/bin/start-moltbot.sh");
    wait_for_port(&second);
    assert!(existing().is_some());
    assert_ne!(pid(&container, "gateway"), gateway);

    let version = shell("openclaw --version");
    assert!(version.as_str().unwrap().contains("OpenClaw"), "{version}");
    assert_eq!(shell("clawdbot --version"), version);

    a_backup_is_a_snapshot(&container, &execute, &|path, content| {
        sdk("POST", "/api/write", json!({ "path": path, "content": content }));
    });

    // The server's end takes the start script with it, and what the Worker then does brings everything back.
    let server = pid(&container, "sandbox");
    container.exec(&["sh", "-c", &format!("kill -9 {server}")]);
    eventually("the sandbox server again", PATIENCE, || answers_ping(&container));
    assert_eq!(existing(), None, "it has forgotten");
    let third = start(SCRIPT);
    wait_for_port(&third);
    check_is_there(&container, "killed.md");
    // And a start script that ends is noticed at once, not after three minutes.
    sdk("DELETE", &format!("/api/process/{third}"), Value::Null);
    assert_eq!(watch_port(&third), "process_exited");
}

/// *Backup now*: moltworker configures rclone, finds the state, syncs it and notes when.
fn a_backup_is_a_snapshot(container: &Container, execute: &dyn Fn(&str) -> Value, put: &dyn Fn(&str, &str)) {
    const CONF: &str = "/root/.config/rclone/rclone.conf";
    const FLAGS: &str = "--transfers=16 --fast-list --s3-no-check-bucket";
    let said = |command: &str| {
        let done = execute(command);
        assert_eq!(done["success"], true, "{command}: {done}");
        done["stdout"].as_str().unwrap().trim().to_owned()
    };
    assert_eq!(said("test -f /tmp/.rclone-configured && echo yes || echo no"), "no");
    said(&format!("mkdir -p $(dirname {CONF})"));
    put(CONF, "[r2]\ntype = s3\n");
    said("touch /tmp/.rclone-configured");
    let detect = "test -f /root/.openclaw/openclaw.json && echo openclaw || (test -f /root/.clawdbot/clawdbot.json && echo clawdbot || echo none)";
    assert_eq!(said(detect), "openclaw");

    write(container, "backed-up.md");
    said(&format!(
        "rclone sync /root/.openclaw/ r2:moltbot-data/openclaw/ {FLAGS} --exclude='*.lock' --exclude='*.log' --exclude='*.tmp' --exclude='.git/**'"
    ));
    assert_eq!(status(container).unwrap()["snapshots"]["behind_seconds"], 0);
    said(&format!(
        "test -d /root/clawd && rclone sync /root/clawd/ r2:moltbot-data/workspace/ {FLAGS} --exclude='skills/**' --exclude='.git/**' || true"
    ));
    said(&format!(
        "test -d /root/clawd/skills && rclone sync /root/clawd/skills/ r2:moltbot-data/skills/ {FLAGS} || true"
    ));
    said("date -Iseconds > /tmp/.last-sync");
    let synced = said("cat /tmp/.last-sync");
    assert!(synced.starts_with("20"), "{synced}");
    assert_eq!(said("cat /tmp/.last-sync 2>/dev/null || echo \"\""), synced);
    assert_eq!(said("rclone lsf r2:moltbot-data/openclaw/"), "");
}

fn it_can_be_built_on(engine: &Engine) {
    let context = engine.dir.path().join("on-top");
    fs::create_dir(&context).unwrap();
    fs::write(
        context.join("Dockerfile"),
        format!("FROM {IMAGE}\nRUN echo mine > /etc/mine && moltinit --version\n"),
    )
    .unwrap();
    engine.docker(&[
        "build",
        "--network",
        "host",
        "--tag",
        "on-top:test",
        context.to_str().unwrap(),
    ]);
    let entrypoint = engine.docker(&["inspect", "--format", "{{json .Config.Entrypoint}}", "on-top:test"]);
    assert_eq!(entrypoint, r#"["/usr/local/bin/moltinit"]"#);
}
