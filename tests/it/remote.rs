//! File systems that others answer for, mounted somewhere in the state.

use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::support::{
    PATIENCE,
    container::{Disk, commit, stand_in},
    s3::{Mount, S3},
};

#[test]
fn a_mount_in_the_workspace_that_hangs_holds_up_no_snapshot_and_is_named() {
    let s3 = S3::start();
    let disk = Disk::new();
    let place = disk.state().join("workspace/remote");
    fs::create_dir_all(&place).unwrap();
    let mount = Mount::of(&s3, &place);
    fs::write(mount.path.join("doc"), "elsewhere").unwrap();
    fs::write(place.join("beside"), "here").unwrap();
    // From before the first look: everything is looked at then.
    kill(mount.s3fs(), Signal::SIGSTOP).unwrap();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    fs::write(disk.state().join("note"), "precious").unwrap();
    commit(&container);
    let warnings = container.status()["snapshots"]["warnings"].clone();
    assert_eq!(
        warnings,
        serde_json::json!([
            "state/workspace/remote/data: is a mount of another file system (fuse.s3fs), and is not in snapshots"
        ])
    );
    container.kill();
    drop(mount);

    let fresh = Disk::new();
    let second = stand_in(&fresh, &disk.path("store"));
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read_to_string(fresh.state().join("note")).unwrap(), "precious");
    let back = fresh.state().join("workspace/remote");
    assert_eq!(fs::read_to_string(back.join("beside")).unwrap(), "here");
    assert!(!back.join("data").exists());
}
