//! The network to the store hangs under a real s3fs mount: probes, signals and the gateway go on, nothing is claimed
//! that is not there, and all is well by itself when it comes back.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    PATIENCE,
    container::{Disk, commit, event, stand_in, with_gateway_and},
    eventually, process,
    s3::{Mount, S3, Wire},
};

/// A store call is given up after 30 s; then comes a retry.
const OUTAGE: Duration = Duration::from_secs(180);
/// Far more than a probe takes, far less than anything takes that waits for the store.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_store_that_hangs_holds_nothing_up_and_loses_nothing() {
    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let disk = Disk::new();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let container = stand_in(&disk, &mount.path);
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "before").unwrap();
    let before = commit(&container);

    let behind = || container.status()["snapshots"]["behind_seconds"].as_u64().unwrap();
    eventually("nothing that is not durable", PATIENCE, || {
        (behind() == 0).then_some(())
    });

    wire.tell("hang");
    fs::write(disk.state().join("note"), "during").unwrap();
    // Before anything is given up, the change is known not to be durable, and gets older.
    eventually("a change that waits", PATIENCE, || (behind() >= 2).then_some(()));
    assert!(container.status()["snapshots"]["failing"].is_null());
    let failed = || {
        let began = Instant::now();
        for probe in ["/healthz", "/startupz", "/readyz", "/status"] {
            container.get(probe).unwrap();
        }
        assert!(began.elapsed() < AT_ONCE, "{:?} for the probes", began.elapsed());
        container.status()["snapshots"]["failing"].is_object().then_some(())
    };
    eventually("a failed commit", OUTAGE, failed);
    assert_eq!(
        container.status()["snapshots"]["last"]["commit"],
        before.as_str(),
        "nothing is claimed"
    );
    assert!(behind() >= 20, "{} s behind", behind());
    let gateway = || container.status()["services"]["gateway"]["pid"].as_i64();
    let pid = gateway().expect("a gateway");
    let killed = process::outside(container.init.as_raw(), pid as i32);
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    eventually("another gateway", PATIENCE, || gateway().filter(|now| *now != pid));

    wire.tell("ok");
    eventually("a commit of the change", OUTAGE, || {
        let last = container.status()["snapshots"]["last"]["commit"].clone();
        (last != before.as_str()).then_some(())
    });
    event(&container, "store.recovered");
    eventually("nothing that is not durable", OUTAGE, || (behind() == 0).then_some(()));
    container.kill();
    drop(mount);

    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    let disk = disk.wiped();
    let second = stand_in(&disk, &mount.path);
    second.wait_for("/readyz", PATIENCE);
    let status = second.status();
    assert_ne!(status["restore"]["commit"], before.as_str());
}

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

/// A process that waits for a file system whose server does not answer cannot be killed. That of the gateway's must not
/// cost what it has written.
#[test]
fn a_gateway_that_cannot_be_killed_costs_no_commit() {
    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let disk = Disk::new();
    let (go, file) = (disk.path("go"), disk.path("moltinit.toml"));
    let script = format!(
        "while ! [ -e {go:?} ]; do sleep 0.05; done; exec cat {:?}/file",
        mount.path
    );
    let text = format!(
        "[[service]]\nname = \"gateway\"\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         ready = {{ command = [\"true\"] }}\nlive = {{ command = [\"true\"] }}\nstop = {{ timeout = \"1s\" }}\n"
    );
    fs::write(&file, text).unwrap();
    let log = disk.path("log");
    // Not as PID 1: the kernel would not let go of that before the last of its namespace is gone.
    let mut run = disk
        .command(&["run"])
        .env("MOLTINIT_CONFIG", file)
        .env("MOLTINIT_DATA_DIR", disk.path("data"))
        .env("MOLTINIT_HTTP_ADDR", "127.0.0.1:0")
        .envs(ONLY_AT_THE_END)
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let gateway = eventually("the gateway", PATIENCE, || {
        let children = process::children(run.id() as i32);
        children.into_iter().find(|pid| process::name(*pid) == "sh")
    });
    wire.tell("hang");
    fs::write(&go, "").unwrap();
    eventually("its hanging", PATIENCE, || {
        (process::name(gateway) == "cat" && !process::is_in_state(gateway, 'R')).then_some(())
    });
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "written late").unwrap();
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).unwrap();
    let status = eventually(format_args!("its end: {}", said()), PATIENCE, || {
        run.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0), "{}", said());
    assert!(said().contains("going on without the end of gateway"), "{}", said());
    assert!(kill(Pid::from_raw(gateway), None).is_ok(), "it is still there");
    wire.tell("ok");
    assert_eq!(restored_note(disk), "written late");
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
