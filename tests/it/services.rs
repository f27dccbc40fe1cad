//! Services as PID 1 has them, seen from outside.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    MOLTINIT, PATIENCE, compile,
    container::{Container, Disk, TOKEN, gateway, with_gateway, with_gateway_and},
    eventually, free_port, http, process,
};

fn score(pid: i32) -> i32 {
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    score.trim().parse().unwrap_or(i32::MIN)
}

/// What it writes, how much memory it takes, and whom the kernel shall kill before whom.
#[test]
fn a_service_is_heard_measured_and_ranked() {
    let disk = Disk::new();
    let gateway = r#"["sh", "-c", "echo to stdout; echo to stderr >&2; sleep 100000 & exec sleep 100001"]"#;
    let container = with_gateway(&disk, &disk.path("store"), gateway);
    container.wait_for("/readyz", PATIENCE);
    for stream in ["stdout", "stderr"] {
        let line = eventually(format_args!("{stream}; log: {container}"), PATIENCE, || {
            let mut lines = container.records().into_iter();
            lines.find(|line| line["message"] == format!("to {stream}").as_str())
        });
        assert_eq!((&line["service"], &line["stream"]), (&"gateway".into(), &stream.into()));
    }
    let used = eventually("its memory", PATIENCE, || {
        container.status()["services"]["gateway"]["memory_bytes"].as_u64()
    });
    assert!(used > 100_000, "{used}");
    let inside = container.status()["services"]["gateway"]["pid"].as_i64().unwrap();
    let main = process::outside(container.init.as_raw(), inside as i32);
    let child = process::children(main)[0];
    eventually("the kernel's choice", PATIENCE, || {
        let scores = [container.init.as_raw(), main, child].map(score);
        (scores[0] < scores[1] && scores[1] < scores[2]).then_some(())
    });
}

/// Bytes of a file that are in memory.
fn in_memory(file: &Path) -> u64 {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(file)
        .output()
        .expect("fincore (util-linux)");
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

/// A container begins with nothing of its image in memory, and Node reads one file after the other.
#[test]
fn what_a_start_reads_is_read_ahead_of_it() {
    const LEN: u64 = 64 << 10;
    let disk = Disk::new();
    let compiled = disk.path("compiled");
    fs::create_dir(&compiled).unwrap();
    let [of_module, module, other] = [
        compiled.join("of-module"),
        disk.path("module.mjs"),
        disk.path("other.mjs"),
    ];
    for file in [&of_module, &module, &other] {
        fs::write(file, vec![1; LEN as usize]).unwrap();
        let open = fs::File::open(file).unwrap();
        open.sync_all().unwrap();
        eventually(format_args!("{} on the disk only", file.display()), PATIENCE, || {
            posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            (in_memory(file) == 0).then_some(())
        });
    }
    fs::write(compiled.join("files"), format!("of-module\n{}\n", module.display())).unwrap();
    let cache = [("NODE_COMPILE_CACHE", compiled.to_str().unwrap())];
    let _container = with_gateway_and(&disk, &disk.path("store"), r#"["sleep", "100000"]"#, &cache);
    eventually("what is listed in memory", PATIENCE, || {
        [&of_module, &module]
            .iter()
            .all(|file| in_memory(file) == LEN)
            .then_some(())
    });
    assert_eq!(in_memory(&other), 0);
}

/// Who has the gateway's port is named, and ended only where nobody else's business is.
#[test]
fn whoever_holds_the_gateways_port_is_named() {
    const LISTEN: &str = "import socket, time\n\
        s = socket.create_server((\"127.0.0.1\", int(__import__(\"sys\").argv[1])))\nprint(\"listening\", flush=True)\ntime.sleep(1e5)";
    let disk = Disk::new();
    let (script, file) = (disk.path("listen.py"), disk.path("moltinit.toml"));
    fs::write(&script, LISTEN).unwrap();
    let (others, left) = (free_port(), free_port());
    let listen = |port: u16| format!("python3 {} {port}", script.display());
    // What has left the service's tree without a trace is what a process looks like that an earlier supervisor has left.
    let leaves = format!("(setsid env -i PATH=$PATH {} &); exec sleep 100000", listen(left));
    let service = |name: &str, command: &str, port: u16, more: &str| {
        let command = serde_json::json!(["sh", "-c", command]);
        format!("[[service]]\nname = {name:?}\ncommand = {command}\nready = {{ tcp = \"127.0.0.1:{port}\" }}\n{more}\n")
    };
    let text = [
        service("other", &format!("exec {}", listen(others)), others, "after = []"),
        service("leaver", &leaves, left, "after = []"),
        service(
            "gateway",
            &format!("exec {}", listen(left)),
            left,
            "after = [\"store\", \"leaver\"]\nlive = { command = [\"true\"] }",
        ),
        service(
            "second",
            &format!("exec {}", listen(others)),
            others,
            "after = [\"other\"]",
        ),
    ];
    fs::write(&file, text.concat()).unwrap();
    let env = [("MOLTINIT_CONFIG", file.to_str().unwrap())];
    let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    for (service, port, why) in [
        ("gateway", left, ", left from before; ending it"),
        ("second", others, " of other, which is not this service's to end"),
    ] {
        let said = eventually(format_args!("{service}; log: {container}"), PATIENCE, || {
            let mut lines = container.records().into_iter();
            let held = format!("port {port} is held by python3 (");
            lines.find(|line| {
                let message = line["message"].as_str().unwrap_or_default();
                line["service"] == service && message.starts_with(&held) && message.ends_with(why)
            })
        });
        assert_eq!(said["level"], "WARN", "{said}");
    }
    container.wait_for("/healthz", PATIENCE);
    let services = container.status()["services"].clone();
    assert_eq!(services["other"]["restarts"], 0, "{services}");
    eventually(format_args!("the gateway; log: {container}"), PATIENCE, || {
        (container.status()["services"]["gateway"]["state"] == "ready").then_some(())
    });
}

/// moltinit as PID 1, called by a script.
fn run(disk: &Disk, script: &str, port: u16, stderr: Stdio) -> Child {
    fs::create_dir_all(disk.path("home")).unwrap();
    let file = disk.path("moltinit.toml");
    fs::write(&file, "[[service]]\nname = \"gateway\"\ncommand = [\"sleep\", \"100000\"]\nready = { command = [\"true\"] }\nlive = { command = [\"true\"] }\n").unwrap();
    Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child=SIGKILL",
            "sh",
            "-c",
            script,
            MOLTINIT,
        ])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", disk.path("home"))
        .env("MOLTINIT_CONFIG", file)
        .env("MOLTINIT_STORE", disk.path("store"))
        .env("MOLTINIT_DATA_DIR", disk.path("data"))
        .env("MOLTINIT_RUN_DIR", disk.path("run"))
        .env("MOLTINIT_HTTP_ADDR", format!("127.0.0.1:{port}"))
        .env("MOLTINIT_CDP_ADDR", format!("127.0.0.1:{}", free_port()))
        .env("MOLTINIT_ADMIN_TOKEN", TOKEN)
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

fn comes_up_and_ends(mut outer: Child, port: u16, why: &str) {
    eventually(format_args!("readiness, {why}"), PATIENCE, || {
        let ready = http::get(port, "/readyz", None).ok()?;
        (ready.status == 200).then_some(())
    });
    let init = process::children(outer.id() as i32)[0];
    kill(Pid::from_raw(init), Signal::SIGTERM).unwrap();
    let status = eventually(format_args!("the end, {why}"), PATIENCE, || outer.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{why}");
}

#[test]
fn poor_surroundings_do_not_matter() {
    for script in [
        "ulimit -n 64; exec \"$0\" run",
        "exec \"$0\" run <&- >&- 2>&-",
        "mount -t tmpfs none /proc && exec \"$0\" run",
    ] {
        let (disk, port) = (Disk::new(), free_port());
        let outer = run(&disk, script, port, Stdio::null());
        comes_up_and_ends(outer, port, script);
    }
}

/// A pipe that is full holds up nobody: the first lines are in it, and the rest is dropped.
#[test]
fn a_stderr_that_nobody_reads_holds_nothing_up() {
    let (disk, port) = (Disk::new(), free_port());
    let (mut read, write) = std::io::pipe().unwrap();
    let script = "export MOLTINIT_LOG=debug; (while :; do echo fill; done | head -c 60000) >&2; exec \"$0\" run";
    let outer = run(&disk, script, port, write.into());
    comes_up_and_ends(outer, port, "with stderr full");
    let mut said = Vec::new();
    read.read_to_end(&mut said).unwrap();
    assert!(said.starts_with(b"fill"));
}

/// Ten thousand that end at once while services are looked after.
#[test]
fn ten_thousand_orphans_are_reaped() {
    let disk = Disk::new();
    let program = compile("orphans", &["-O1"], disk.dir.path());
    let counted = disk.path("counted");
    let script = format!(
        "{} 10000 >{counted:?}.new; mv {counted:?}.new {counted:?}; exec sleep 100000",
        program.display()
    );
    let command = serde_json::json!(["sh", "-c", script]).to_string();
    // All of them together are more memory than a gateway may take by default, for which it would be started again.
    let gateway = gateway(&disk, &command, "memory_max = \"1024GiB\"");
    let env: Vec<(&str, &str)> = gateway.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    let counted = eventually(
        format_args!("the last to be reaped; log: {container}"),
        2 * PATIENCE,
        || fs::read_to_string(&counted).ok(),
    );
    assert_eq!(counted.trim(), "0 are left");
    assert_eq!(
        container.status()["services"]["gateway"]["restarts"],
        0,
        "log: {container}"
    );
}
