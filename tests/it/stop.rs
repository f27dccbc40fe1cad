//! A stop while things are not as they should be: the store hangs or never was there, the gateway does not end. What the
//! exit code says of it is true.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{self, Disk, event, stand_in, with_gateway_and},
    eventually, process,
    receiver::{CALLBACK_SECRET, Mood, Receiver},
    s3::{Mount, S3, Wire},
};

/// A call to the store is given up after 30 s, and a last commit after a minute.
const LAST: Duration = Duration::from_secs(300);

/// Nothing but a stop commits: what is found afterwards was in the last commit.
const ONLY_AT_THE_END: [(&str, &str); 2] = [("MOLTINIT_SNAPSHOT_QUIET", "1h"), ("MOLTINIT_SNAPSHOT_MAX_DELAY", "1h")];

fn restored_note(disk: Disk) -> String {
    let store = disk.dir.path().with_extension("store");
    fs::rename(disk.path("store"), &store).unwrap();
    let disk = disk.wiped();
    let second = stand_in(&disk, &store);
    second.wait_for("/readyz", PATIENCE);
    let note = fs::read_to_string(disk.state().join("note"));
    second.kill();
    fs::remove_dir_all(&store).unwrap();
    note.unwrap()
}

/// Not as PID 1: what hangs in the mount keeps a process from being gone, and the kernel a namespace from its end.
struct Loose {
    run: Child,
    log: PathBuf,
}

impl Loose {
    fn start(disk: &Disk, store: &Path, env: &[(&str, &str)]) -> Loose {
        Loose::with_gateway(disk, store, r#"["sleep", "100000"]"#, env)
    }

    fn with_gateway(disk: &Disk, store: &Path, command: &str, env: &[(&str, &str)]) -> Loose {
        let log = disk.path("log");
        let run = disk
            .command(&["run"])
            .env("MOLTINIT_STORE", store)
            .env("MOLTINIT_DATA_DIR", disk.path("data"))
            .env("MOLTINIT_HTTP_ADDR", "127.0.0.1:0")
            .envs(container::gateway(disk, command, "stop = { timeout = \"1s\" }"))
            .envs(env.iter().copied())
            .stderr(fs::File::create(&log).unwrap())
            .spawn();
        Loose { run: run.unwrap(), log }
    }

    /// The gateway's process once it is there, by its name.
    fn gateway(&self, name: &str) -> i32 {
        eventually(format_args!("the gateway; log: {}", self.log()), PATIENCE, || {
            let children = process::children(self.run.id() as i32);
            children.into_iter().find(|pid| process::name(*pid) == name)
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line with all of these in it.
    fn says(&self, what: &[&str], patience: Duration) -> String {
        eventually(format_args!("{what:?}; log: {}", self.log()), patience, || {
            let log = self.log();
            let mut lines = log.lines();
            lines
                .find(|line| what.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        })
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.run.id() as i32), Signal::SIGTERM).unwrap();
    }

    fn end(&mut self) -> Option<i32> {
        let ended = eventually("its end", PATIENCE, || self.run.try_wait().unwrap());
        ended.code()
    }
}

impl Drop for Loose {
    fn drop(&mut self) {
        // Not waited for: it may hang in a mount that is there for longer.
        let _ = self.run.kill();
    }
}

/// A process that waits for a file system whose server does not answer cannot be killed. That of the gateway's must not
/// cost what it has written.
#[test]
fn a_gateway_that_cannot_be_killed_costs_no_commit() {
    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let disk = Disk::new();
    let go = disk.path("go");
    let script = format!(
        "while ! [ -e {go:?} ]; do sleep 0.05; done; exec cat {:?}/file",
        mount.path
    );
    let hangs = format!(r#"["sh", "-c", {script:?}]"#);
    let mut run = Loose::with_gateway(&disk, &disk.path("store"), &hangs, &ONLY_AT_THE_END);
    let gateway = run.gateway("sh");
    wire.tell("hang");
    fs::write(&go, "").unwrap();
    eventually("its hanging", PATIENCE, || {
        (process::name(gateway) == "cat" && !process::is_in_state(gateway, 'R')).then_some(())
    });
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "written late").unwrap();
    run.terminate();
    assert_eq!(run.end(), Some(0), "{}", run.log());
    assert!(
        run.log().contains("going on without the end of gateway"),
        "{}",
        run.log()
    );
    assert!(kill(Pid::from_raw(gateway), None).is_ok(), "it is still there");
    wire.tell("ok");
    assert_eq!(restored_note(disk), "written late");
}

/// Who reads exit code 0 takes it that nothing is lost.
#[test]
fn a_stop_whose_last_commit_hangs_is_exit_code_69_after_one_deadline() {
    let receiver = Receiver::start(Mood::Take);
    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let disk = Disk::new();
    let callbacks = [
        ("MOLTINIT_CALLBACK_URL", receiver.url.as_str()),
        ("MOLTINIT_CALLBACK_SECRET", CALLBACK_SECRET),
    ];
    let mut container = Loose::start(&disk, &mount.path, &callbacks);
    eventually("a snapshot", PATIENCE, || {
        let shown = disk.command(&["snapshot", "now", "--json"]).output().unwrap();
        shown.status.success().then_some(())
    });
    wire.tell("hang");
    for name in ["one", "two"] {
        fs::write(disk.state().join(name), "not durable").unwrap();
    }
    let told = Instant::now();
    container.terminate();
    let last = container.says(&["the last commit failed"], LAST);
    // Two waits for the store would be more than 120 s.
    assert!(told.elapsed() < Duration::from_secs(115), "{:?}", told.elapsed());
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&last["level"], &last["code"]), (&"ERROR".into(), &69.into()), "{last}");
    assert!(last["paths"].as_u64().unwrap() >= 2, "{last}");
    let finished = receiver
        .got()
        .into_iter()
        .find(|got| got.event["type"] == "shutdown.finished");
    let data = finished.expect("a last callback").event["data"].clone();
    assert_eq!(data["code"], 69, "{data}");
    assert!(data["pending_paths"].as_u64().unwrap() >= 2, "{data}");
    assert!(
        data["why"].as_str().unwrap().contains("not committed in time"),
        "{data}"
    );
    wire.tell("ok");
    assert_eq!(container.end(), Some(69));
    let log = container.log();
    assert!(log.lines().last().unwrap().contains("the last commit failed"), "{log}");
}

#[test]
fn a_stop_while_the_store_hangs_in_the_boot_is_orderly() {
    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    wire.tell("hang");
    let disk = Disk::new();
    let mut container = Loose::start(&disk, &mount.path, &[("MOLTINIT_STORE_WAIT", "1s")]);
    eventually("its socket", PATIENCE, || {
        disk.path("run/control.sock").exists().then_some(())
    });
    container.terminate();
    container.says(&["stopped before the state was back"], PATIENCE);
    wire.tell("ok");
    assert_eq!(
        container.end(),
        Some(0),
        "nothing ran, so nothing is lost: {}",
        container.log()
    );
    assert!(!disk.state().exists(), "never on empty state");
}

/// What was told to go on without a store has kept nothing.
#[test]
fn a_stop_without_ever_a_store_is_exit_code_69() {
    let disk = Disk::new();
    let store = disk.path("store");
    fs::write(&store, "in the way").unwrap();
    let env = [("MOLTINIT_STORE_REQUIRED", "false"), ("MOLTINIT_STORE_WAIT", "500ms")];
    let mut container = Loose::start(&disk, &store, &env);
    container.gateway("sleep");
    container.terminate();
    assert_eq!(container.end(), Some(69), "{}", container.log());
    container.says(&["the last commit failed", "no store since the start"], PATIENCE);
}

/// Somebody is in a hurry, and the gateway takes its time.
#[test]
fn a_second_sigterm_cuts_the_drain_short_and_not_the_commit() {
    let disk = Disk::new();
    let deaf = r#"["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]"#;
    let mut container = with_gateway_and(&disk, &disk.path("store"), deaf, &ONLY_AT_THE_END);
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "written late").unwrap();
    container.signal(Signal::SIGTERM);
    event(&container, "shutdown.started");
    eventually("the drain", PATIENCE, || {
        (container.status()["services"]["gateway"]["state"] == "stopping").then_some(())
    });
    container.signal(Signal::SIGTERM);
    // It would drain for 330 s.
    assert_eq!(container.wait(PATIENCE).code(), Some(0), "{}", container.log());
    assert_eq!(restored_note(disk), "written late");
}
