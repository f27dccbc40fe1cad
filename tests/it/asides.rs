//! What is on a disk before a restore: it is moved aside, once, and nothing is lost of what is nowhere else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit, event, gateway, stand_in, with_gateway_and},
    eventually,
};

/// What restores have moved aside in `dir`, oldest first.
fn asides(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains(".before-restore-"))
        .collect();
    found.sort();
    found
}

/// Where it is said that the state has been moved.
fn of_state(restored: &Value) -> String {
    let asides = restored["aside"]
        .as_array()
        .unwrap()
        .iter()
        .map(|aside| aside.as_str().unwrap());
    let mut of_state = asides.filter(|aside| aside.contains(".openclaw."));
    of_state.next().unwrap().to_owned()
}

fn stop(mut container: Container) {
    container.signal(Signal::SIGTERM);
    let ended = container.wait(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{container}");
}

/// However often the container starts again after it has worked without its store and was killed.
#[test]
fn what_was_never_committed_stays_on_the_disk_and_is_named() {
    let disk = Disk::new();
    let (store, away) = (disk.path("store"), disk.path("away"));
    let start = || {
        let container = stand_in(&disk, &store);
        container.wait_for("/readyz", PATIENCE);
        container
    };
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "committed").unwrap();
    let first = start();
    commit(&first);
    stop(first);
    // What is a copy is called so.
    let second = start();
    let aside = of_state(&event(&second, "state.restored"));
    assert_eq!(asides(&disk.path("home")), [PathBuf::from(&aside)]);
    assert!(!aside.ends_with("-unsaved"), "{aside}");

    fs::rename(&store, &away).unwrap();
    fs::write(&store, "in the way").unwrap();
    fs::write(disk.state().join("precious"), "hours of work").unwrap();
    event(&second, "snapshot.failed");
    second.kill();
    fs::remove_file(&store).unwrap();
    fs::rename(&away, &store).unwrap();

    let mut kept = None;
    for _ in 0..6 {
        let container = start();
        let aside = of_state(&container.status()["restore"]);
        let kept = kept.get_or_insert_with(|| {
            assert!(aside.ends_with("-unsaved"), "{aside}");
            PathBuf::from(&aside)
        });
        assert_eq!(fs::read_to_string(kept.join("precious")).unwrap(), "hours of work");
        assert!(container.log().contains(kept.to_str().unwrap()), "{container}");
        fs::write(disk.state().join("note"), &aside).unwrap();
        stop(container);
    }
    let left = asides(&disk.path("home"));
    assert!(left.len() <= 5, "{left:?}");
}

/// It has started without its store, so nobody has committed anything of what it did.
#[test]
fn what_was_done_without_a_store_is_taken_for_no_copy() {
    let disk = Disk::new();
    let (store, away) = (disk.path("store"), disk.path("away"));
    let first = stand_in(&disk, &store);
    first.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "committed").unwrap();
    commit(&first);
    stop(first);
    fs::rename(&store, &away).unwrap();
    fs::write(&store, "in the way").unwrap();
    let command = r#"["sleep", "100000"]"#;
    let second = with_gateway_and(&disk, &store, command, &[("MOLTINIT_STORE_REQUIRED", "false")]);
    second.wait_for("/healthz", PATIENCE);
    eventually(format_args!("a gateway; {second}"), PATIENCE, || {
        second.status()["services"]["gateway"]["pid"].as_i64()
    });
    fs::write(disk.state().join("precious"), "hours of work").unwrap();
    second.kill();
    fs::remove_file(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    let third = stand_in(&disk, &store);
    third.wait_for("/readyz", PATIENCE);
    let aside = of_state(&third.status()["restore"]);
    assert!(aside.ends_with("-unsaved"), "{aside}");
    assert!(Path::new(&aside).join("precious").exists());
}

/// A container in which those directories are volumes: mounts of directories elsewhere, as Docker's are.
fn with_volumes(disk: &Disk, volumes: &[(&Path, &Path)]) -> Container {
    let mount = |(from, to): &(&Path, &Path)| {
        fs::create_dir_all(from).unwrap();
        format!("mkdir -p {1} && mount --bind {0} {1} && ", from.display(), to.display())
    };
    let script = volumes.iter().map(mount).collect::<String>() + "exec \"$0\" \"$@\"";
    let env = gateway(disk, r#"["sleep", "100000"]"#, "");
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let container = Container::start_by(&["sh", "-c", &script], disk, &disk.path("store"), &env, &["run"]);
    container.wait_for("/readyz", PATIENCE);
    container
}

/// Paths in a snapshot.
fn paths(disk: &Disk, id: &str) -> Vec<String> {
    let output = disk.command(&["snapshot", "show", id, "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let files = shown["files"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_state_that_is_a_mount_keeps_few_asides_and_none_in_another() {
    let disk = Disk::new();
    let volume = disk.path("volume");
    for boot in 0..6 {
        let container = with_volumes(&disk, &[(&volume, &disk.state())]);
        let note = fs::read_to_string(volume.join("note")).unwrap_or_default();
        assert_eq!(note, "x".repeat(boot), "{container}");
        fs::write(volume.join("note"), note + "x").unwrap();
        let id = commit(&container);
        let strange = |path: &String| path.contains(".before-restore-") || path.contains(".moltinit-restoring-");
        assert_eq!(paths(&disk, &id).into_iter().find(strange), None);
        stop(container);
    }
    let kept = asides(&volume);
    assert_eq!(kept.len(), 4, "{kept:?}");
    for aside in kept {
        assert_eq!(asides(&aside), Vec::<PathBuf>::new());
        assert!(aside.join("note").exists(), "{aside:?}");
    }
}

/// Both are volumes, or only the workspace, or neither until there is something to be restored into them.
#[test]
fn a_volume_below_the_state_is_restored_in_its_place() {
    for (outer, from) in [(true, 0), (false, 0), (true, 1)] {
        let disk = Disk::new();
        let (state, workspace) = (disk.path("volume"), disk.path("workspace"));
        let inner = disk.state().join("workspace");
        let start = |boot: u32| {
            let all = [(state.as_path(), disk.state()), (workspace.as_path(), inner.clone())];
            let volumes: Vec<(&Path, &Path)> = all.iter().map(|(from, to)| (*from, to.as_path())).collect();
            with_volumes(
                &disk,
                if boot < from {
                    &[]
                } else {
                    &volumes[usize::from(!outer)..]
                },
            )
        };
        // As this side sees them.
        let places = |boot: u32| {
            let state = if outer && boot >= from {
                state.clone()
            } else {
                disk.state()
            };
            let workspace = if boot < from { inner.clone() } else { workspace.clone() };
            (state.join("note"), workspace.join("MEMORY.md"))
        };
        let mut first = String::new();
        for boot in 0..4 {
            let container = start(boot);
            let (note, memory) = places(boot);
            let said = if boot == 0 {
                String::new()
            } else {
                format!("of {}", boot - 1)
            };
            for file in [&note, &memory] {
                assert_eq!(
                    fs::read_to_string(file).unwrap_or_default(),
                    said,
                    "{file:?}; {container}"
                );
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, format!("of {boot}")).unwrap();
            }
            let id = commit(&container);
            if boot == 0 {
                first = id;
            }
            if boot == 3 {
                let restored = disk.command(&["restore", &first, "--live"]).output().unwrap();
                assert!(restored.status.success(), "{restored:?}; {container}");
                for file in [&note, &memory] {
                    assert_eq!(fs::read_to_string(file).unwrap(), "of 0", "{file:?}; {container}");
                }
            }
            if boot >= from {
                let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", container.init)).unwrap();
                assert!(mounts.contains(&format!(" {} ", inner.display())), "{mounts}");
            }
            stop(container);
        }
        let kept = asides(&workspace);
        assert!(!kept.is_empty() && kept.len() <= 4, "{kept:?}");
    }
}
