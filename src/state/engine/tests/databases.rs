//! Databases under the engine: written to, locked, changed at the wrong moment, and large.

use super::*;
use crate::state::tests::python::{BANK, check_bank};

#[test]
fn databases_are_whole_in_every_commit_while_they_are_written_to() {
    for name in ["wal.sqlite", "delete.sqlite"] {
        let kit = Kit::new();
        fs::create_dir_all(kit.live()).unwrap();
        let database = kit.live().join(name);
        let mut writer = python(BANK, &database, 0);
        assert_eq!(writer.line(), "ready");
        let mut live = Live::start(kit);
        for _ in 0..12 {
            live.commit();
            let back = live.restore().1;
            check_bank(&back.join(name));
            assert!(!back.join(format!("{name}-wal")).exists());
        }
        writer.tell();
        assert!(writer.line().parse::<u32>().unwrap() > 0);
        let last = writer.line();
        let meta = live.commit();
        assert_eq!(meta.warnings, Vec::<String>::new());
        let (count, total) = check_bank(&live.restore().1.join(name));
        assert_eq!(last, format!("({count}, {total:?})"));
    }
}

pub const LOCKED: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE t(v)")
db.execute("INSERT INTO t VALUES(1)")
print("ready"); sys.stdin.readline()
db.execute("PRAGMA locking_mode=EXCLUSIVE")
db.execute("INSERT INTO t VALUES(2)")
print("locked"); sys.stdin.readline()
db.execute("PRAGMA locking_mode=NORMAL")
db.execute("INSERT INTO t VALUES(3)")
print("free"); sys.stdin.readline()
"#;

#[test]
fn a_locked_database_is_kept_as_it_was_said_and_taken_when_it_is_free() {
    let kit = Kit::new();
    let mut holder = python(LOCKED, &kit.live().join("db"), 0);
    assert_eq!(holder.line(), "ready");
    let mut live = Live::start(kit);
    live.commit();
    let rows = |back: PathBuf| {
        let db = rusqlite::Connection::open(back.join("db")).unwrap();
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0))
            .unwrap()
    };
    holder.tell();
    assert_eq!(holder.line(), "locked");
    assert_ne!(
        live.commit().warnings,
        Vec::<String>::new(),
        "with nothing else to commit it is said as well"
    );
    live.kit.write("other", "1");
    let meta = live.commit();
    assert!(
        meta.warnings
            .iter()
            .any(|line| line.starts_with("state/db: ") && line.contains("locked")),
        "{:?}",
        meta.warnings
    );
    assert_eq!(rows(live.restore().1), 1);
    holder.tell();
    assert_eq!(holder.line(), "free");
    while rows(live.restore().1) != 3 {
        live.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
    }
    live.kit.write("other", "2");
    assert_eq!(live.commit().warnings, Vec::<String>::new());
}

const BUSY: &str = r#"
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE t(v)")
print("ready"); sys.stdin.readline()
db.execute("BEGIN EXCLUSIVE")
db.execute("INSERT INTO t VALUES(1)")
print("locked")
time.sleep(0.2)
db.execute("COMMIT")
print("free"); sys.stdin.readline()
"#;

#[test]
fn a_commit_that_is_asked_for_has_what_was_locked_for_a_moment() {
    let kit = Kit::new();
    let mut user = python(BUSY, &kit.live().join("db"), 0);
    assert_eq!(user.line(), "ready");
    let mut live = Live::start(kit);
    live.commit();
    user.tell();
    assert_eq!(user.line(), "locked");
    assert_eq!(live.commit().warnings, Vec::<String>::new());
    let db = rusqlite::Connection::open(live.restore().1.join("db")).unwrap();
    let rows: u32 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

const ONE_BY_ONE: &str = r#"
import sqlite3, sys, os, time, random
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE t(v)")
db.execute("BEGIN")
for n in range(400):
    db.execute("INSERT INTO t VALUES(?)", (os.urandom(10000),))
db.execute("COMMIT")
while True:
    print("done"); sys.stdin.readline()
    time.sleep(random.random() * 0.03)
    db.execute("INSERT INTO t VALUES(1)")
"#;

#[test]
fn a_database_that_changes_right_after_its_image_is_captured_again() {
    let kit = Kit::new();
    let mut writer = python(ONE_BY_ONE, &kit.live().join("db"), 0);
    assert_eq!(writer.line(), "done");
    let mut live = Live::start(kit);
    live.commit();
    for round in 1..=40 {
        writer.tell();
        live.commit();
        assert_eq!(writer.line(), "done");
        // Long enough for a file's times to tell what was before from what comes after.
        std::thread::sleep(Duration::from_millis(20));
        live.commit();
        let db = rusqlite::Connection::open(live.restore().1.join("db")).unwrap();
        let rows: u32 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 400 + round);
    }
}

const LARGE: &str = r#"
import sqlite3, sys, os
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=OFF")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
db.execute("BEGIN")
for n in range(10000):
    db.execute("INSERT INTO t VALUES(?, ?)", (n, os.urandom(10000) + bytes(10000)))
db.execute("COMMIT")
while True:
    print("ready")
    if not sys.stdin.readline(): break
    db.execute("UPDATE t SET v = zeroblob(3000) WHERE id = 5000")
"#;

#[test]
fn one_change_in_a_large_database_stores_little() {
    let kit = Kit::new();
    let mut writer = python(LARGE, &kit.live().join("large"), 0);
    assert_eq!(writer.line(), "ready");
    let mut live = Live::start(kit);
    let stored = |live: &mut Live, id: CommitId| {
        live.event(|event| match event {
            Event::SnapshotCommitted {
                commit, stored_bytes, ..
            } if commit == id => Some(stored_bytes),
            _ => None,
        })
    };
    let first = live.commit();
    assert!(first.bytes > 200_000_000 && stored(&mut live, first.id) > 100_000_000);
    writer.tell();
    assert_eq!(writer.line(), "ready");
    let second = live.commit();
    assert_ne!(first.id, second.id);
    let bytes = stored(&mut live, second.id);
    assert!(bytes < 200_000, "{bytes} bytes for a change of a few pages");
    let back = live.restore().1.join("large");
    let db = rusqlite::Connection::open(back).unwrap();
    let len: u32 = db
        .query_row("SELECT length(v) FROM t WHERE id = 5000", [], |row| row.get(0))
        .unwrap();
    assert_eq!(len, 3000);
}
