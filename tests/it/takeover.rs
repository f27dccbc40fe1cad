//! What a container finds that another kind of container left: a plain backup, a workspace that only the gateway's
//! configuration names.

use std::{fs, process::Command};

use crate::support::{
    MOLTINIT,
    container::{Disk, commit, event, stand_in},
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
