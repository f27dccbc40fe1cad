//! A workspace that is inside of the state by another name, through a link or a bind mount, or outside of it by one that
//! is inside.

use std::{fs, os::unix::fs::symlink, path::Path};

use nix::sys::signal::Signal;

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit},
};

const GATEWAY: &str = r#"
    [[service]]
    name = "gateway"
    command = ["sleep", "100000"]
    ready = { command = ["true"] }
    live = { command = ["true"] }
"#;

/// Has the agent work there by its configuration.
fn configure(disk: &Disk, workspace: &Path) {
    fs::create_dir_all(disk.state()).unwrap();
    let text = format!(
        r#"{{"agents":{{"defaults":{{"workspace":"{}"}}}}}}"#,
        workspace.display()
    );
    fs::write(disk.state().join("openclaw.json"), text).unwrap();
}

fn boot_by(by: &[&str], disk: &Disk) -> Container {
    let file = disk.path("moltinit.toml");
    fs::write(&file, GATEWAY).unwrap();
    let env = [("MOLTINIT_CONFIG", file.to_str().unwrap())];
    let container = Container::start_by(by, disk, &disk.path("store"), &env, &["run"]);
    container.wait_for("/readyz", PATIENCE);
    container
}

fn boot(disk: &Disk) -> Container {
    boot_by(&[], disk)
}

fn stop(mut container: Container) {
    container.signal(Signal::SIGTERM);
    assert!(container.wait(PATIENCE).success(), "{container}");
}

/// Loses what is lost with a container, and is not of its image.
fn lose(disk: &Disk) {
    for name in ["home", "data"] {
        let _ = fs::remove_dir_all(disk.path(name));
    }
    fs::create_dir(disk.path("home")).unwrap();
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|error| error.to_string())
}

/// The link is the image's, so a fresh container has it before there is anything at its end.
#[test]
fn a_workspace_that_is_a_link_into_the_state_comes_back_as_it_was() {
    let disk = Disk::new();
    let (link, inside) = (disk.path("home/clawd"), disk.state().join("workspace"));
    configure(&disk, &link);
    fs::create_dir(&inside).unwrap();
    symlink(&inside, &link).unwrap();
    fs::write(link.join("MEMORY.md"), "old").unwrap();
    let container = boot(&disk);
    commit(&container);
    fs::write(link.join("MEMORY.md"), "new").unwrap();
    fs::write(link.join("diary.md"), "diary").unwrap();
    commit(&container);
    // A disk that survives is no reason to hold the next boot.
    stop(container);
    let container = boot(&disk);
    assert_eq!(read(&link, "MEMORY.md"), "new");
    container.kill();

    lose(&disk);
    symlink(&inside, &link).unwrap();
    let _container = boot(&disk);
    assert!(link.is_symlink());
    assert_eq!([read(&link, "MEMORY.md"), read(&link, "diary.md")], ["new", "diary"]);
}

/// Two directories in the snapshot that are one in the next container: the state has it.
#[test]
fn a_workspace_that_has_become_a_link_into_the_state_holds_no_boot() {
    let disk = Disk::new();
    let (link, inside) = (disk.path("home/clawd"), disk.state().join("workspace"));
    configure(&disk, &link);
    for (dir, text) in [(&link, "apart"), (&inside, "in the state")] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("MEMORY.md"), text).unwrap();
    }
    let container = boot(&disk);
    commit(&container);
    stop(container);
    fs::remove_dir_all(&link).unwrap();
    symlink(&inside, &link).unwrap();
    for is_lost in [false, true] {
        if is_lost {
            lose(&disk);
            symlink(&inside, &link).unwrap();
        }
        let container = boot(&disk);
        assert_eq!(read(&link, "MEMORY.md"), "in the state");
        assert!(container.log().contains("has no place here"), "{container}");
        stop(container);
    }
}

/// The link is the agent's, and a fresh container has what the image has in its place, or nothing.
#[test]
fn a_workspace_that_the_agent_has_moved_into_the_state_is_a_link_in_the_next_container() {
    let disk = Disk::new();
    let (link, inside) = (disk.path("home/clawd"), disk.state().join("workspace"));
    configure(&disk, &link);
    fs::create_dir(&link).unwrap();
    fs::write(link.join("MEMORY.md"), "old").unwrap();
    let container = boot(&disk);
    commit(&container);
    fs::rename(&link, &inside).unwrap();
    symlink(&inside, &link).unwrap();
    fs::write(link.join("MEMORY.md"), "new").unwrap();
    commit(&container);
    container.kill();
    for has_image in [true, false] {
        lose(&disk);
        if has_image {
            fs::create_dir(&link).unwrap();
            fs::write(link.join("skill"), "the image's").unwrap();
        }
        let container = boot(&disk);
        assert_eq!(read(&link, "MEMORY.md"), "new", "{container}");
        assert_eq!(fs::read_link(&link).unwrap(), inside);
        stop(container);
    }
}

/// The other way round: what the state has is only a name, and its end is captured and comes back by itself.
#[test]
fn a_workspace_in_the_state_that_is_a_link_out_of_it_is_captured_where_it_leads() {
    let disk = Disk::new();
    let (link, outside) = (disk.state().join("workspace"), disk.path("home/clawd"));
    configure(&disk, &link);
    fs::create_dir(&outside).unwrap();
    symlink(&outside, &link).unwrap();
    fs::write(outside.join("MEMORY.md"), "mine").unwrap();
    let container = boot(&disk);
    commit(&container);
    container.kill();
    lose(&disk);
    let _container = boot(&disk);
    assert!(link.is_symlink());
    assert_eq!(read(&link, "MEMORY.md"), "mine");
}

/// A mount is of the directory that was there before the restore, so that is what has to be filled.
#[test]
fn a_workspace_that_is_a_bind_mount_of_a_part_of_the_state_comes_back_as_it_was() {
    let disk = Disk::new();
    let (bound, inside) = (disk.path("home/clawd"), disk.state().join("workspace"));
    let bind = format!(
        "mkdir -p {0} {1} && mount --bind {0} {1} && exec \"$0\" \"$@\"",
        inside.display(),
        bound.display()
    );
    let by = ["unshare", "--mount", "--propagation=private", "sh", "-c", &bind];
    configure(&disk, &bound);
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("MEMORY.md"), "old").unwrap();
    let container = boot_by(&by, &disk);
    commit(&container);
    fs::write(inside.join("MEMORY.md"), "new").unwrap();
    commit(&container);
    stop(container);
    for is_lost in [false, true] {
        if is_lost {
            lose(&disk);
        }
        let container = boot_by(&by, &disk);
        // As the agent sees it, which has another table of mounts than this test.
        let seen = Path::new("/proc").join(container.init.to_string()).join("root");
        let seen = seen.join(bound.strip_prefix("/").unwrap());
        assert_eq!(read(&seen, "MEMORY.md"), "new", "{container}");
        stop(container);
    }
}
