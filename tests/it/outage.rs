//! The network to the store hangs or is cut under a real s3fs mount, or s3fs dies: probes, signals and the gateway go on,
//! nothing is claimed that is not there, nothing is taken for lost, and all is well by itself when it comes back.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit, event, stand_in, with_gateway_and},
    eventually, process,
    s3::{BUCKET, Mount, S3, Wire},
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

/// A container that says in its log each time it could not bring the state back.
fn verbose(disk: &Disk, mount: &Mount) -> Container {
    with_gateway_and(
        disk,
        &mount.path,
        r#"["sleep", "100000"]"#,
        &[("MOLTINIT_LOG", "debug")],
    )
}

/// Waits until it has tried in vain once more so many times.
fn fails(container: &Container, times: usize) {
    let tried = || container.log().matches("the state is not back yet").count();
    let before = tried();
    eventually(format_args!("{times} failed tries; log: {container}"), OUTAGE, || {
        (tried() >= before + times).then_some(())
    });
    assert_eq!(
        container.status()["services"]["gateway"]["pid"],
        Value::Null,
        "never on empty state"
    );
}

#[test]
fn a_store_that_cannot_be_reached_at_boot_is_neither_empty_nor_damaged() {
    let s3 = S3::start();
    let disk = Disk::new();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    let first = stand_in(&disk, &mount.path);
    first.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "old").unwrap();
    commit(&first);
    fs::write(disk.state().join("note"), "new").unwrap();
    let mut noise = vec![0; 24 << 20];
    getrandom(&mut noise);
    fs::write(disk.state().join("large"), &noise).unwrap();
    let newest = commit(&first);
    first.kill();
    drop(mount);

    // s3fs remembers, for a minute, that what it could not look at is not there.
    let wire = Wire::to(&s3, 20);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let disk = disk.wiped();
    wire.tell("cut");
    let second = verbose(&disk, &mount);
    fails(&second, 3);
    wire.tell("ok");
    // And once more, while it is being read.
    eventually("the restore", OUTAGE, || {
        let at = second.get("/startupz").ok()?.json()["pendingReason"].clone();
        (at == "restore").then_some(())
    });
    wire.tell("cut");
    fails(&second, 2);
    wire.tell("ok");
    second.wait_for("/readyz", OUTAGE);
    let status = second.status();
    assert_eq!(status["restore"]["commit"], newest.as_str(), "{second}");
    assert_eq!(status["restore_degraded"], Value::Null);
    assert_eq!(fs::read_to_string(disk.state().join("note")).unwrap(), "new");
    assert_eq!(fs::read(disk.state().join("large")).unwrap(), noise);
}

fn getrandom(bytes: &mut [u8]) {
    use std::io::Read;
    fs::File::open("/dev/urandom").unwrap().read_exact(bytes).unwrap();
}

#[test]
fn a_bucket_that_moltinit_mounts_is_mounted_again_when_s3fs_dies() {
    let s3 = S3::start();
    let disk = Disk::new();
    let store = disk.path("bucket");
    let endpoint = format!("http://127.0.0.1:{}", s3.port);
    let start = |disk: &Disk| {
        let env = [
            ("MOLTINIT_MOUNT", "s3fs"),
            ("MOLTINIT_STORE_WAIT", "30s"),
            ("R2_BUCKET_NAME", BUCKET),
            ("R2_ACCESS_KEY_ID", "key"),
            ("R2_SECRET_ACCESS_KEY", "secret"),
            ("R2_ENDPOINT", &endpoint),
        ];
        let container = with_gateway_and(disk, &store, r#"["sleep", "100000"]"#, &env);
        container.wait_for("/readyz", PATIENCE);
        container
    };
    let first = start(&disk);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "one").unwrap();
    commit(&first);
    assert!(s3.keys().iter().any(|key| key.ends_with(".seg")), "{:?}", s3.keys());

    let pid = || first.status()["services"]["mount"]["pid"].as_i64();
    let before = pid().expect("s3fs");
    let outside = process::outside(first.init.as_raw(), i32::try_from(before).unwrap());
    kill(Pid::from_raw(outside), Signal::SIGKILL).unwrap();
    fs::write(disk.state().join("note"), "two").unwrap();
    eventually(format_args!("another s3fs; log: {first}"), PATIENCE, || {
        pid().filter(|pid| *pid != before)
    });
    let last = eventually(format_args!("a commit; log: {first}"), OUTAGE, || {
        let answer = first.post("/snapshots").ok().filter(|answer| answer.status == 200)?;
        Some(answer.json()["id"].as_str()?.to_owned())
    });
    first.kill();

    let disk = disk.wiped();
    let second = start(&disk);
    assert_eq!(second.status()["restore"]["commit"], last.as_str());
    assert_eq!(fs::read_to_string(disk.state().join("note")).unwrap(), "two");
}
