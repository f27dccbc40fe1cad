//! The network to the store hangs under a real s3fs mount: probes, signals and the gateway go on, nothing is claimed
//! that is not there, and all is well by itself when it comes back.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    container::{Disk, commit, event, stand_in},
    eventually,
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

    wire.tell("hang");
    fs::write(disk.state().join("note"), "during").unwrap();
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
    assert!(container.status()["services"]["gateway"]["pid"].is_i64());

    wire.tell("ok");
    eventually("a commit of the change", OUTAGE, || {
        let last = container.status()["snapshots"]["last"]["commit"].clone();
        (last != before.as_str()).then_some(())
    });
    event(&container, "store.recovered");
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
