//! Callbacks across what may happen to their receiver and to the container, at once.

use std::{fs, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit, with_gateway_and},
    eventually,
    receiver::{CALLBACK_SECRET, Mood, Receiver},
};

/// An attempt that is not answered is given up after 30 s.
const GIVEN_UP: Duration = Duration::from_secs(180);

fn start(disk: &Disk, store: &Path, receiver: &Receiver) -> Container {
    let env = [
        ("MOLTINIT_CALLBACK_URL", receiver.url.as_str()),
        ("MOLTINIT_CALLBACK_SECRET", CALLBACK_SECRET),
    ];
    let container = with_gateway_and(disk, store, r#"["sleep", "100000"]"#, &env);
    container.wait_for("/readyz", PATIENCE);
    container
}

fn boot(container: &Container) -> String {
    container.status()["boot"]["id"].as_str().unwrap().to_owned()
}

/// The last event that is worth a commit of its own.
fn last_that_matters(container: &Container) -> u64 {
    let log = container.get("/events?after=0").unwrap().json();
    let events = log["events"].as_array().unwrap().iter();
    let matter = events.filter(|event| !matches!(event["type"].as_str(), Some("heartbeat" | "snapshot.committed")));
    matter.map(|event| event["seq"].as_u64().unwrap()).max().unwrap()
}

/// The last event of a boot in the copy that goes into the snapshots.
fn last_carried(disk: &Disk, boot: &str) -> Option<u64> {
    let copy = Connection::open_with_flags(disk.path("data/outbox.sqlite"), OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let last = "SELECT max(seq) FROM events WHERE boot = ? AND delivered = 0";
    copy.query_row(last, [boot], |row| row.get(0)).ok()?
}

/// The receiver hangs, everything piles up, the container is killed and its disk is gone. The next one delivers it all.
#[test]
fn what_a_hanging_receiver_did_not_take_survives_the_loss_of_the_disk() {
    let receiver = Receiver::start(Mood::Hang);
    let store = tempfile::tempdir().unwrap();
    let disk = Disk::new();
    let container = start(&disk, store.path(), &receiver);
    let first = boot(&container);
    for _ in 0..3 {
        let restarted = disk.command(&["restart", "gateway", "--wait"]).status().unwrap();
        assert!(restarted.success());
    }
    let callbacks = || container.status()["callbacks"].clone();
    eventually(
        format_args!("the end of an attempt; log: {container}"),
        GIVEN_UP,
        || (callbacks()["state"] == "retrying").then_some(()),
    );
    assert_eq!(callbacks()["delivered"], 0);
    let last = last_that_matters(&container);
    assert!(last > 9, "{last}");
    eventually("the copy", PATIENCE, || {
        last_carried(&disk, &first).filter(|seq| *seq >= last)
    });
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "with it").unwrap();
    commit(&container);
    container.kill();

    receiver.becomes(Mood::Busy(3));
    let disk = disk.wiped();
    let container = start(&disk, store.path(), &receiver);
    let second = boot(&container);
    let put_off = eventually("an attempt that is put off", PATIENCE, || {
        receiver.got().into_iter().find(|got| got.mood == Mood::Busy(3))
    });
    let last_of_second = last_that_matters(&container);
    receiver.becomes(Mood::Take);
    eventually(
        format_args!("the delivery of it all; log: {container}"),
        PATIENCE,
        || {
            let events = container.status()["events"].clone();
            (events["undelivered"] == 0).then_some(())
        },
    );
    // By itself it would try again within a second.
    let got = receiver.got();
    let next = got.iter().find(|got| got.mood == Mood::Take).unwrap();
    assert!(next.at - put_off.at >= Duration::from_secs(3), "{got:?}");
    for (boot, at_least) in [(first, last), (second, last_of_second)] {
        let taken = receiver.taken(&boot);
        assert!(taken.len() as u64 >= at_least, "{boot}: {taken:?}, {at_least}");
        let in_order: Vec<u64> = (1..=taken.len() as u64).collect();
        assert_eq!(taken, in_order, "{boot}: from 1, without a gap, in order");
    }
}
