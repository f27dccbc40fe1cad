//! Other users of a database, in processes of their own: POSIX locks do not hold against the process that has them.

use std::{ffi::OsString, path::Path};

use crate::{neighbour::Neighbour, pid1::Spawn};

/// A process of its own that runs Python, as locks of one process do not hold against itself.
pub fn python(script: &str, database: &Path, filler: u32) -> Neighbour {
    let argv: [OsString; 6] = [
        "python3".into(),
        "-u".into(),
        "-c".into(),
        script.into(),
        database.into(),
        filler.to_string().into(),
    ];
    Neighbour::start(Spawn::new(argv))
}

/// As many bytes as it is told in one table; moves amounts between the rows of two tables, whose sum stays 1000, as fast as it can until told to stop.
pub const BANK: &str = r#"
import sqlite3, sys, threading, random
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10 if "delete" in sys.argv[1] else 1)
mode = "delete" if "delete" in sys.argv[1] else "wal"
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("PRAGMA synchronous=OFF")
db.execute("CREATE TABLE a(id INTEGER PRIMARY KEY, v, pad)")
db.execute("CREATE TABLE b(id INTEGER PRIMARY KEY, v, pad)")
db.execute("BEGIN")
for n in range(100):
    db.execute("INSERT INTO a VALUES(?, 10, ?)", (n, "x" * 2000))
    db.execute("INSERT INTO b VALUES(?, 0, ?)", (n, "y" * 2000))
db.execute("COMMIT")
db.execute("CREATE TABLE filler(v)")
db.execute("INSERT INTO filler SELECT randomblob(?)", (int(sys.argv[2]),))
print("ready")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
count = 0
while not stop.is_set():
    db.execute("BEGIN IMMEDIATE")
    n, m, v = random.randrange(100), random.randrange(100), random.randrange(9)
    db.execute("UPDATE a SET v = v - ? WHERE id = ?", (v, n))
    db.execute("UPDATE b SET v = v + ? WHERE id = ?", (v, m))
    db.execute("INSERT INTO b(v, pad) VALUES(0, ?)", ("z" * random.randrange(3000),))
    db.execute("COMMIT")
    count += 1
    if count % 400 == 0: db.execute("DELETE FROM b WHERE id >= 100")
print(count)
print(db.execute("SELECT count(*), total(v) FROM b").fetchone())
sys.stdin.readline()
"#;

pub fn check_bank(database: &Path) -> (u32, f64) {
    let db = rusqlite::Connection::open(database).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let sum = "SELECT (SELECT total(v) FROM a) + (SELECT total(v) FROM b)";
    assert_eq!(db.query_row(sum, [], |row| row.get::<_, f64>(0)).unwrap(), 1000.0);
    db.query_row("SELECT count(*), total(v) FROM b", [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .unwrap()
}
