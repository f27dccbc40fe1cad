//! The container image, built by the repository's own Dockerfile and run by a real Docker engine.
//!
//! No registry is asked: what the image is built on is a stand-in for the platform's image, a plain Debian with those
//! of its parts that matter here. The gateway in it is real.

use std::{
    fs,
    net::TcpStream,
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

/// One test, because one engine and one build serve all of it.
#[test]
fn an_agent_in_the_image_outlives_its_containers() {
    let engine = match Engine::start() {
        Ok(engine) => engine,
        Err(why) => {
            eprintln!("skipped: the image is not tested, for there is no Docker engine: {why}");
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
    let shell = |command: &str| sdk("POST", "/api/execute", json!({ "command": command }))["stdout"].clone();
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
    let wait_for_port = || {
        eventually(format_args!("port 18789: {container}"), BOOT, || {
            container.within(|| TcpStream::connect(("127.0.0.1", 18789))).ok()
        });
    };

    assert_eq!(existing(), None, "no key, no gateway");
    let first = start(SCRIPT);
    wait_for_port();
    let process = existing().expect("the start script, for as long as the gateway is there");
    assert_eq!(process["id"], first.as_str());
    let gateway = pid(&container, "gateway");
    check_is_there(&container, "stopped.md");
    check_is_there(&container, "killed.md");

    // What it does when the port does not answer in time.
    sdk("DELETE", &format!("/api/process/{first}"), Value::Null);
    assert_eq!(existing(), None);
    start("/usr/local/bin/start-moltbot.sh");
    wait_for_port();
    assert!(existing().is_some());
    assert_ne!(pid(&container, "gateway"), gateway);

    shell("date -Iseconds > /tmp/.last-sync");
    let synced = shell("cat /tmp/.last-sync 2>/dev/null || echo \"\"");
    assert!(synced.as_str().unwrap().starts_with("20"), "{synced}");
    assert_eq!(
        shell("test -f /root/.openclaw/openclaw.json && echo openclaw || echo none"),
        "openclaw\n"
    );
    let version = shell("openclaw --version");
    assert!(version.as_str().unwrap().contains("OpenClaw"), "{version}");
    assert_eq!(shell("clawdbot --version"), version);

    // The server's end takes the start script with it, and what the Worker then does brings everything back.
    let server = pid(&container, "sandbox");
    container.exec(&["sh", "-c", &format!("kill -9 {server}")]);
    eventually("the sandbox server again", PATIENCE, || answers_ping(&container));
    assert_eq!(existing(), None, "it has forgotten");
    start(SCRIPT);
    wait_for_port();
    check_is_there(&container, "killed.md");
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
