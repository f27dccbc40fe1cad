//! Others use a database while it is captured: what they notice, and what is captured.

use super::*;
use crate::state::tests::python::{BANK, check_bank, python};

/// The writer of a database with a log fails if it is ever kept waiting for long; one without has to wait for a reader.
#[test]
fn a_large_database_is_whole_although_it_is_written_to_while_it_is_read() {
    for name in ["wal", "delete"] {
        let mut snapped = Snapped::new(name);
        let mut writer = python(BANK, &snapped.path, 8_000_000);
        assert_eq!(writer.line(), "ready");
        for _ in 0..5 {
            snapped.capture();
            check_bank(&snapped.restore());
        }
        writer.tell();
        assert!(writer.line().parse::<u32>().unwrap() > 0);
        let last = writer.line();
        snapped.capture();
        let (count, total) = check_bank(&snapped.restore());
        assert_eq!(last, format!("({count}, {total:?})"));
    }
}

/// Writes a little every now and then, and with a log checkpoints; says how long the longest of each took.
const PATIENT: &str = r#"
import sqlite3, sys, threading, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
wal = "wal" in sys.argv[1]
db.execute(f"PRAGMA journal_mode={'wal' if wal else 'delete'}")
db.execute("PRAGMA synchronous=OFF")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
db.execute("BEGIN")
for n in range(int(sys.argv[2]) // 100000):
    db.execute("INSERT INTO t VALUES(?, randomblob(100000))", (n,))
db.execute("COMMIT")
if wal: db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
took = {"write": [], "checkpoint": []}
def timed(what, statement):
    began = time.monotonic()
    db.execute(statement).fetchall()
    took[what].append(time.monotonic() - began)
print("ready")
while not stop.wait(0.02 if wal else 0.5):
    # Without a log, each write calls for reading all of it again.
    if not wal and len(took["write"]) == 3: continue
    timed("write", f"UPDATE t SET v = randomblob(3000) WHERE id = {len(took['write'])}")
    if wal and len(took["write"]) % 5 == 0:
        timed("checkpoint", "PRAGMA wal_checkpoint(RESTART)")
for what in took.values():
    what.sort()
    print(len(what), *(f"{1000 * what[len(what) * p // 1000]:.1f}" if what else "0" for p in (500, 990)), f"{1000 * max(what, default=0):.1f}")
sys.stdin.readline()
"#;

/// What a user of a database notices of a capture of 200 MB.
#[test]
fn neither_writers_nor_checkpoints_wait_for_a_capture() {
    for name in ["wal", "delete"] {
        let mut snapped = Snapped::new(name);
        let mut user = python(PATIENT, &snapped.path, 200_000_000);
        assert_eq!(user.line(), "ready");
        let began = Instant::now();
        let read = snapped.capture();
        let took = began.elapsed();
        user.tell();
        let locked = snapped.locked;
        println!("{name}: a capture of {read} pages, {locked} of them with a lock, in {took:?}");
        for what in ["write", "checkpoint"] {
            let line = user.line();
            println!("{name}: {what}s, and ms for half, 99 % and all of them: {line}");
            let figures: Vec<f64> = line.split(' ').map(|figure| figure.parse().unwrap()).collect();
            // Generous: other tests run at the same time. It is what a single transaction may last at most, and a bit.
            assert!(figures[3] < 2500.0, "{name} {what}: {line}");
        }
        // Whatever the machine is busy with: nobody can have waited for what was read without a lock.
        assert!(
            locked < read / 20,
            "{name}: {locked} of {read} pages were read with a lock held"
        );
    }
}

const LAST: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(v)")
print("ready"); sys.stdin.readline()
db.close()
print("closed"); sys.stdin.readline()
"#;

/// Whoever is the last to close a database takes its log away.
#[test]
fn a_file_that_is_not_known_to_be_the_databases_costs_it_no_lock() {
    let snapped = Snapped::new("db");
    let mut user = python(LAST, &snapped.path, 0);
    assert_eq!(user.line(), "ready");
    let mut reader = Reader::open_for(&snapped.path, Duration::from_secs(10)).unwrap();
    reader.hold(Some(fs::File::open(&snapped.path).unwrap()), None);
    assert!(reader.file().is_none());
    user.tell();
    assert_eq!(user.line(), "closed");
    assert!(snapped.path.with_file_name("db-wal").exists());
}
