//! What a container finds that another left or still writes: a plain backup, a workspace that only the gateway's
//! configuration names, the history of one that is not over yet.

use std::{fs, process::Command};

use crate::support::{
    MOLTINIT, PATIENCE,
    container::{Disk, commit, event, stand_in, with_gateway_and},
};

fn write(path: &std::path::Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_plain_backup_in_the_store_is_taken_over_at_the_first_boot() {
    let (disk, store) = (Disk::new(), tempfile::tempdir().unwrap());
    let workspace = disk.path("clawd");
    let config = format!(
        r#"{{ "agents": {{ "defaults": {{ "workspace": "{}" }} }} }}"#,
        workspace.display()
    );
    write(&store.path().join("clawdbot/clawdbot.json"), &config);
    write(&store.path().join("clawdbot/credentials/token"), "kept");
    write(&store.path().join("workspace/MEMORY.md"), "remembered");
    write(&store.path().join("skills/mine/SKILL.md"), "a skill");
    let container = stand_in(&disk, store.path());
    assert_eq!(event(&container, "state.restored")["files"], 4);
    commit(&container);
    let check = |disk: &Disk| {
        assert_eq!(
            fs::read_to_string(disk.state().join("credentials/token")).unwrap(),
            "kept"
        );
        assert!(disk.state().join("openclaw.json").exists());
        assert_eq!(fs::read_to_string(workspace.join("MEMORY.md")).unwrap(), "remembered");
        assert_eq!(
            fs::read_to_string(workspace.join("skills/mine/SKILL.md")).unwrap(),
            "a skill"
        );
    };
    check(&disk);
    // The next container has it from the history; the backup is as it was.
    write(&workspace.join("new.md"), "of today");
    commit(&container);
    drop(container);
    assert_eq!(
        fs::read_to_string(store.path().join("clawdbot/clawdbot.json")).unwrap(),
        config
    );
    let disk = disk.wiped();
    let container = stand_in(&disk, store.path());
    assert!(event(&container, "state.restored")["files"].as_u64().unwrap() > 4);
    check(&disk);
    assert_eq!(fs::read_to_string(workspace.join("new.md")).unwrap(), "of today");
}

#[test]
fn a_backup_is_imported_by_hand_once() {
    let disk = Disk::new();
    write(&disk.path("backup/openclaw/openclaw.json"), "{}");
    write(&disk.path("backup/openclaw/notes"), "kept");
    let moltinit = |args: &[&str]| {
        Command::new(MOLTINIT)
            .args(args)
            .env_clear()
            .env("HOME", disk.path("home"))
            .env("MOLTINIT_STORE", disk.path("store"))
            .env("MOLTINIT_DATA_DIR", disk.path("data"))
            .output()
            .unwrap()
    };
    let (from, to) = (disk.path("backup"), disk.path("to"));
    let import = ["import", "--from", from.to_str().unwrap()];
    let done = moltinit(&import);
    assert!(done.status.success(), "{done:?}");
    assert!(moltinit(&["restore", "--to", to.to_str().unwrap()]).status.success());
    assert_eq!(fs::read_to_string(to.join("state/notes")).unwrap(), "kept");
    let again = moltinit(&import);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("history"), "{again:?}");
    for nothing in [to, disk.path("nowhere")] {
        let nothing = moltinit(&["import", "--from", nothing.to_str().unwrap()]);
        assert_eq!(nothing.status.code(), Some(1));
        let said = String::from_utf8_lossy(&nothing.stderr);
        assert!(said.contains("no backup"), "{said}");
    }
}

#[test]
fn two_containers_at_once_keep_both_histories_and_the_later_is_followed() {
    let store = tempfile::tempdir().unwrap();
    let (old, new) = (Disk::new(), Disk::new());
    let note = |disk: &Disk, text: &str| write(&disk.state().join("note"), text);
    let first = stand_in(&old, store.path());
    first.wait_for("/readyz", PATIENCE);
    note(&old, "before");
    let before = commit(&first);
    // A rollout starts the next before the last is gone, and both go on.
    let second = stand_in(&new, store.path());
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(second.status()["restore"]["commit"], before.as_str());
    let mut last = Vec::new();
    for round in 0..3 {
        note(&old, &format!("old {round}"));
        note(&new, &format!("new {round}"));
        last = vec![commit(&first), commit(&second)];
    }
    first.kill();
    second.kill();

    let third = Disk::new();
    let container = stand_in(&third, store.path());
    container.wait_for("/readyz", PATIENCE);
    assert_eq!(container.status()["restore"]["commit"], last[1].as_str());
    assert_eq!(fs::read_to_string(third.state().join("note")).unwrap(), "new 2");
    let run = |args: &[&str]| {
        let output = third.command(args).arg("--store").arg(store.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = run(&["snapshot", "list"]);
    let branch = listed.lines().find(|line| line.starts_with(&last[0])).unwrap();
    assert!(branch.contains("branch"), "{listed}");
    assert!(run(&["snapshot", "verify", "--all"]).contains(" 0 flaw"));
    let to = third.path("to");
    run(&["restore", &last[0], "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), "old 2");
}

#[test]
fn who_had_to_go_without_the_history_that_there_is_says_so_and_is_a_branch() {
    let dir = tempfile::tempdir().unwrap();
    let (store, away) = (dir.path().join("store"), dir.path().join("away"));
    let disk = Disk::new();
    let container = stand_in(&disk, &store);
    container.wait_for("/readyz", PATIENCE);
    write(&disk.state().join("note"), "of the history");
    let history = commit(&container);
    container.kill();

    fs::rename(&store, &away).unwrap();
    fs::write(&store, "in its way").unwrap();
    let disk = disk.wiped();
    let env = [("MOLTINIT_STORE_REQUIRED", "false")];
    let container = with_gateway_and(&disk, &store, r#"["sleep", "100000"]"#, &env);
    event(&container, "service.started");
    write(&disk.state().join("note"), "of the one without");
    fs::remove_file(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    // Seconds after the history began, and before anything is committed over it.
    let fenced = event(&container, "store.fenced");
    assert!(history.starts_with(fenced["by"].as_str().unwrap()), "{fenced}");
    assert!(fenced["why"].as_str().unwrap().contains(&history), "{fenced}");
    let branch = commit(&container);
    assert_eq!(container.status()["store"]["state"], "fenced");
    container.kill();

    let disk = disk.wiped();
    let container = stand_in(&disk, &store);
    container.wait_for("/readyz", PATIENCE);
    assert_eq!(container.status()["restore"]["commit"], history.as_str());
    assert_eq!(fs::read_to_string(disk.state().join("note")).unwrap(), "of the history");
    let to = disk.path("to");
    let mut restore = disk.command(&["restore", &branch, "--to", to.to_str().unwrap(), "--store"]);
    let restored = restore.arg(&store).output().unwrap();
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), "of the one without");
}
