use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use ulid::Ulid;

use super::{
    Outbox, Table,
    carry::{Carrier, absorb},
    table::{BOUND, New, SCHEMA},
};
use crate::report::cost::Costs;

fn new(kind: &'static str, number: u64) -> New {
    New {
        kind,
        time: Timestamp::UNIX_EPOCH,
        data: json!({ "number": number }),
        costs: None,
    }
}

fn boot(number: u64) -> Ulid {
    Ulid::from_parts(number, 0)
}

fn memory(boot: Ulid, bound: u64) -> Table {
    Table::open(Path::new(":memory:"), boot, "test", bound).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<bool>),
    Deliver(usize),
    /// The process ends and is started again, with the same boot id or a new one.
    Reopen {
        same: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(any::<bool>(), 1..12).prop_map(Step::Append),
        2 => (0usize..10).prop_map(Step::Deliver),
        1 => any::<bool>().prop_map(|same| Step::Reopen { same }),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happens, numbers are gapless within a boot, deliveries come in order and once each, the bound
    /// holds, and every event that was not delivered is either there or counted as dropped, the least important
    /// ones first.
    #[test]
    fn nothing_is_lost_unaccounted(steps in steps()) {
        const BOUND: u64 = 20;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("outbox.sqlite");
        let mut boots = 1;
        let mut table = Table::open(&file, boot(boots), "test", BOUND).unwrap();
        let mut appended = 0u64;
        let mut delivered: Vec<(Ulid, u64)> = Vec::new();
        let mut told_dropped = 0;
        let mut told_delivered = 0;
        for step in steps {
            match step {
                Step::Append(minor) => {
                    let batch: Vec<New> = minor
                        .iter()
                        .map(|minor| new(if *minor { "heartbeat" } else { "service.exited" }, appended))
                        .collect();
                    let before = table.counts().last_seq;
                    appended += batch.len() as u64;
                    table.append(&batch).unwrap();
                    let seqs: Vec<u64> = table.after(boot(boots), before, 1000).unwrap().iter().map(|e| e.seq).collect();
                    // What was evicted at once is a gap in what is kept, never in what was numbered.
                    prop_assert!(table.counts().last_seq >= before + batch.len() as u64);
                    prop_assert_eq!(seqs.last().copied(), Some(table.counts().last_seq));
                }
                Step::Deliver(count) => {
                    for _ in 0..count {
                        let Some(event) = table.next().unwrap() else { break };
                        if let Some(last) = delivered.last() {
                            prop_assert!((event.boot, event.seq) > *last, "{event:?} after {last:?}");
                        }
                        if event.kind == "events.dropped" {
                            told_dropped += event.data["count"].as_u64().unwrap();
                        } else {
                            told_delivered += 1;
                        }
                        delivered.push((event.boot, event.seq));
                        table.delivered(event.boot, event.seq).unwrap();
                    }
                }
                Step::Reopen { same } => {
                    if !same {
                        boots += 1;
                    }
                    let last = table.counts().last_seq;
                    drop(table);
                    table = Table::open(&file, boot(boots), "test", BOUND).unwrap();
                    prop_assert!(!same || table.counts().last_seq == last);
                }
            }
            let counts = table.counts();
            prop_assert!(counts.kept <= BOUND + 1, "{counts:?}");
            let mut kept = 0;
            let mut kept_dropped = 0;
            let mut undelivered = 0;
            for number in 1..=boots {
                for event in table.after(boot(number), 0, 1000).unwrap() {
                    kept += 1;
                    if delivered.contains(&(event.boot, event.seq)) {
                        continue;
                    }
                    undelivered += 1;
                    if event.kind == "events.dropped" {
                        kept_dropped += event.data["count"].as_u64().unwrap();
                        undelivered -= 1;
                    }
                }
            }
            prop_assert_eq!(kept, counts.kept);
            prop_assert_eq!(appended, told_delivered + told_dropped + kept_dropped + undelivered);
        }
    }
}

#[test]
fn the_least_important_goes_first() {
    let mut table = memory(boot(1), 10);
    let kinds = ["service.exited", "heartbeat", "snapshot.committed", "service.ready"];
    let batch: Vec<New> = (0..10).map(|number| new(kinds[number as usize % 4], number)).collect();
    table.append(&batch).unwrap();
    table.append(&[new("store.fenced", 10)]).unwrap();
    let mut left = BTreeMap::new();
    for event in table.after(boot(1), 0, 100).unwrap() {
        *left.entry(event.kind.clone()).or_insert(0) += 1;
    }
    // Six had to go: the five heartbeats and snapshots, and then the oldest of the others.
    assert_eq!(left.get("service.exited"), Some(&2));
    assert_eq!(left.get("service.ready"), Some(&2));
    assert_eq!(left.get("events.dropped"), Some(&1));
    assert_eq!(
        left.get("heartbeat").unwrap_or(&0) + left.get("snapshot.committed").unwrap_or(&0),
        0
    );
}

#[test]
fn what_is_undelivered_goes_to_the_next_container() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data/outbox.sqlite");
    let mut first = memory(boot(1), 100);
    let costs = Costs::default().spend(5, 7, Timestamp::UNIX_EPOCH);
    first
        .append(&[
            new("boot.started", 1),
            new("service.ready", 2),
            New {
                costs: Some(costs.clone()),
                ..new("heartbeat", 3)
            },
        ])
        .unwrap();
    first.delivered(boot(1), 1).unwrap();
    Carrier::new(&file).carry(&first).unwrap();

    let mut second = memory(boot(2), 100);
    second.append(&[new("boot.started", 4)]).unwrap();
    assert_eq!(absorb(&mut second, &file).unwrap(), Some(costs));
    let mut order = Vec::new();
    while let Some(event) = second.next().unwrap() {
        order.push((event.boot, event.seq));
        second.delivered(event.boot, event.seq).unwrap();
    }
    assert_eq!(order, [(boot(1), 2), (boot(1), 3), (boot(2), 1)]);
    // Nothing is left, so the copy is emptied, or the next container would say it all again.
    Carrier::new(&file).carry(&second).unwrap();
    let mut third = memory(boot(3), 100);
    absorb(&mut third, &file).unwrap();
    assert_eq!(third.next().unwrap(), None);
}

#[test]
fn only_what_matters_is_worth_a_copy() {
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outbox.sqlite");
    let mut table = memory(boot(1), 100);
    let mut carrier = Carrier::new(&file);
    let now = Instant::now();
    let later = now + Duration::from_secs(3);

    table
        .append(&[new("heartbeat", 1), new("snapshot.committed", 2)])
        .unwrap();
    carrier.keep_up(&table, now).unwrap();
    assert_eq!(carrier.due_in(now), None);

    // Delivered before it has settled: no copy.
    table.append(&[new("service.exited", 3)]).unwrap();
    carrier.keep_up(&table, now).unwrap();
    assert!(carrier.due_in(now).is_some() && !file.exists());
    for seq in 1..=3 {
        table.delivered(boot(1), seq).unwrap();
    }
    carrier.keep_up(&table, later).unwrap();
    assert!(carrier.due_in(now).is_none() && !file.exists());

    // Not delivered: a copy, and one only.
    table.append(&[new("service.exited", 4)]).unwrap();
    carrier.keep_up(&table, now).unwrap();
    carrier.keep_up(&table, later).unwrap();
    assert!(file.exists() && carrier.due_in(later).is_none());
    std::fs::remove_file(&file).unwrap();
    carrier.keep_up(&table, later).unwrap();
    assert!(carrier.due_in(later).is_none() && !file.exists());
}

#[tokio::test]
async fn a_damaged_log_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("outbox.sqlite"),
        b"this is no database, and long enough to see",
    )
    .unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(
        data.join("outbox.sqlite"),
        b"nor is this one, and long enough to see that",
    )
    .unwrap();

    both_are_set_aside(dir.path(), &data).await;
}

/// The log of a boot in `dir` and the one that it takes over in `data` are of no use, and it works without them.
async fn both_are_set_aside(dir: &Path, data: &Path) {
    let outbox = Outbox::start(dir, boot(1), "test").unwrap();
    outbox.append(new("boot.started", 1));
    outbox.flush().await;
    assert_eq!(outbox.adopt(data).await.unwrap(), None);
    assert_eq!(outbox.next().await.unwrap().unwrap().seq, 1);
    assert_eq!(outbox.progress().borrow().failing, None);
    assert!(dir.join(format!("outbox.sqlite.damaged-{}", boot(1))).exists());
    assert!(data.join("outbox.sqlite.damaged").exists());
}

/// What a restored state or a tampered run directory may hold: sound for SQLite, and without an end to what is asked of it.
#[tokio::test]
async fn a_log_that_would_never_be_read_to_its_end_is_set_aside() {
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0";
    let view = format!(
        "CREATE VIEW events AS SELECT i AS boot, i AS seq, i AS type, i AS time, i AS instance, i AS data, i AS delivered
             FROM ({ENDLESS});
         CREATE TABLE other (boot, seq, type);
         CREATE INDEX undelivered ON other (boot, seq, type);"
    );
    let costs =
        format!("{SCHEMA} DROP TABLE costs; CREATE VIEW costs AS SELECT i AS month, i AS costs FROM ({ENDLESS});");
    let trigger = format!("{SCHEMA} CREATE TRIGGER t BEFORE INSERT ON events BEGIN {ENDLESS}; END;");
    for hostile in [view, costs, trigger] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for place in [dir.path(), &data] {
            let db = rusqlite::Connection::open(place.join("outbox.sqlite")).unwrap();
            db.execute_batch(&hostile).unwrap();
        }
        let set_aside = both_are_set_aside(dir.path(), &data);
        let deadline = std::time::Duration::from_secs(60);
        tokio::time::timeout(deadline, set_aside).await.expect("an end");
    }
}

/// Its schema is the same whoever has written it.
#[tokio::test]
async fn a_log_of_ours_is_known_whatever_happened_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outbox.sqlite");
    for number in 1..=3 {
        let mut table = Table::open(&file, boot(1), "test", BOUND).unwrap();
        assert_eq!(table.counts().last_seq, number - 1);
        table.append(&[new("service.exited", number)]).unwrap();
        table.set_aside().unwrap();
    }
}

#[tokio::test]
async fn without_a_directory_events_are_kept_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let outbox = Outbox::start(&file.join("below"), boot(1), "test").unwrap();
    outbox.append(new("boot.started", 1));
    outbox.flush().await;
    assert_eq!(outbox.next().await.unwrap().unwrap().kind, "boot.started");
    assert!(outbox.progress().borrow().failing.is_some());
}

#[tokio::test]
async fn what_a_full_disk_cost_is_itself_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::start(dir.path(), boot(1), "test").unwrap();
    outbox.append(new("boot.started", 0));
    outbox.flush().await;
    let db = rusqlite::Connection::open(dir.path().join("outbox.sqlite")).unwrap();
    db.execute_batch("ALTER TABLE events RENAME TO away").unwrap();
    outbox.append(new("service.started", 1));
    outbox.flush().await;
    assert!(outbox.progress().borrow().failing.is_some());
    for number in 2..BOUND + 4 {
        outbox.append(new(if number == 100 { "heartbeat" } else { "service.exited" }, number));
    }
    assert_eq!(outbox.progress().borrow().last_seq, 1);
    db.execute_batch("ALTER TABLE away RENAME TO events").unwrap();
    outbox.flush().await;
    let progress = outbox.progress().borrow().clone();
    assert_eq!((progress.failing, progress.dropped >= 2), (None, true));
    // What did not come into the log, and what then had to go from it, are told as one at the end.
    let told = outbox.read(boot(1), progress.last_seq - 500, 500).await.unwrap().events;
    let told = told.iter().find(|event| event.kind == "events.dropped").unwrap();
    assert_eq!(told.data["count"], progress.dropped);
    // The heartbeat before the rest, though others are older.
    assert_eq!(told.data["types"]["heartbeat"], 1, "{told:?}");
}

#[tokio::test]
async fn an_event_that_cannot_be_read_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::start(dir.path(), boot(1), "test").unwrap();
    for number in 1..=4 {
        outbox.append(new("service.exited", number));
    }
    outbox.flush().await;
    let db = rusqlite::Connection::open(dir.path().join("outbox.sqlite")).unwrap();
    db.execute_batch(
        "UPDATE events SET data = '{' WHERE seq = 1; UPDATE events SET time = x'00' WHERE seq = 2;
         UPDATE events SET boot = CAST(x'ff' AS TEXT), type = CAST(x'fe' AS TEXT) WHERE seq = 3",
    )
    .unwrap();
    let next = outbox.next().await.unwrap().unwrap();
    assert_eq!(next.seq, 4);
    outbox.flush().await;
    let page = outbox.read(boot(1), 0, 10).await.unwrap();
    assert_eq!(page.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(page.events[1].kind, "events.dropped");
    assert_eq!(
        page.events[1].data["types"],
        json!({ "service.exited": 2, "unknown": 1 })
    );
    let kept: u64 = db
        .query_row("SELECT count(*) FROM unreadable", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 3);
}

#[test]
fn what_nobody_wants_posted_is_not_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outbox.sqlite");
    let mut first = memory(boot(1), 100);
    first.append(&[new("service.exited", 1)]).unwrap();
    Carrier::new(&file).carry(&first).unwrap();

    // What came from before stays owed while nobody is there to take it.
    let mut second = memory(boot(2), 100);
    second.post(false);
    absorb(&mut second, &file).unwrap();
    second.append(&[new("service.exited", 2)]).unwrap();
    let mut carrier = Carrier::new(&file);
    carrier.carry(&second).unwrap();
    let mut third = memory(boot(3), 100);
    absorb(&mut third, &file).unwrap();
    assert_eq!(third.counts().undelivered, 1);
    // A receiver that is named later gets all there is.
    second.post(true);
    carrier.carry(&second).unwrap();
    let mut third = memory(boot(3), 100);
    absorb(&mut third, &file).unwrap();
    assert_eq!(third.counts().undelivered, 2);
}
