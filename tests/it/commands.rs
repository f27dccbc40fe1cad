//! The commands, against a running supervisor and without one.

use std::{fs, process::Output};

use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{Disk, stand_in},
};

fn run(disk: &Disk, args: &[&str]) -> Output {
    let output = disk.command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    output
}

fn text(disk: &Disk, args: &[&str]) -> String {
    String::from_utf8(run(disk, args).stdout).unwrap()
}

fn json(disk: &Disk, args: &[&str]) -> Value {
    serde_json::from_slice(&run(disk, &[args, &["--json"]].concat()).stdout).unwrap()
}

#[test]
fn services_are_shown_and_told() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    assert_eq!(json(&disk, &["status"])["ready"], true);
    assert!(text(&disk, &["status"]).contains("gateway"));
    let pid = || json(&disk, &["status"])["services"]["gateway"]["pid"].clone();
    let before = pid();
    run(&disk, &["restart", "gateway", "--wait"]);
    assert_ne!(pid(), before);
    run(&disk, &["stop", "gateway", "--wait"]);
    assert_eq!(json(&disk, &["status"])["services"]["gateway"]["state"], "stopped");
    run(&disk, &["start", "gateway", "--wait"]);
    run(&disk, &["logs", "gateway", "-n", "5"]);
    let unknown = disk.command(&["restart", "gatevay"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("gateway"),
        "the nearest name is offered"
    );
}

#[test]
fn the_history_is_listed_shown_compared_verified_and_restored() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    let note = disk.state().join("note");
    fs::write(&note, "one").unwrap();
    let one = json(&disk, &["snapshot", "now"])["id"].as_str().unwrap().to_owned();
    fs::write(&note, "two").unwrap();
    fs::write(disk.state().join("more"), "").unwrap();
    let two = json(&disk, &["snapshot", "now"])["id"].as_str().unwrap().to_owned();

    let listed = json(&disk, &["snapshot", "list"]);
    let ids: Vec<&str> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|meta| meta["id"].as_str())
        .collect();
    assert!(ids.contains(&one.as_str()) && ids.contains(&two.as_str()));
    assert!(text(&disk, &["snapshot", "list"]).contains(&two));
    assert!(text(&disk, &["snapshot", "show", &one]).contains("state/note"));
    let changes = text(&disk, &["snapshot", "diff", &one, &two]);
    assert!(
        changes.contains("M  state/note") && changes.contains("+  state/more"),
        "{changes}"
    );
    assert!(text(&disk, &["snapshot", "verify", "--all"]).contains(" 0 flaw"));
    run(&disk, &["snapshot", "prune"]);

    let to = disk.path("restored");
    run(&disk, &["restore", &one, "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), "one");
    let again = disk
        .command(&["restore", "--to", to.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));

    run(&disk, &["restore", &one, "--live"]);
    assert_eq!(fs::read_to_string(&note).unwrap(), "one");
    fs::write(&note, "three").unwrap();
    let three = json(&disk, &["snapshot", "now"]);
    assert_ne!(
        three["id"].as_str().unwrap().split('-').next(),
        two.split('-').next(),
        "a branch of its own"
    );
    assert_eq!(json(&disk, &["status"])["ready"], true);
}
