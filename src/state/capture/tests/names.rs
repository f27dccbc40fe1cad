//! Databases by several names. Their users are processes of their own, as SQLite knows a file of its process by any name.

use super::*;
use crate::{neighbour::Neighbour, state::tests::python::python};

/// Names that a database `state/db.sqlite` is copied under, before and after its own.
const COPIES: [&str; 2] = ["a-copy", "z-copy"];

impl Steps {
    /// What `cp -al state copy` does.
    fn link_all(&self, copy: &str) {
        let (from, to) = (self.kit.live().join("state"), self.kit.live().join(copy));
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::hard_link(file.path(), to.join(file.file_name())).unwrap();
        }
    }

    fn user(&self, script: &str) -> Neighbour {
        fs::create_dir(self.kit.live().join("state")).unwrap();
        let mut user = python(script, &self.kit.live().join("state/db.sqlite"), 0);
        assert_eq!(user.line(), "ready");
        user
    }
}

fn go_on(user: &mut Neighbour) {
    user.tell();
    assert_eq!(user.line(), "done");
}

const IN_THE_LOG: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(v)")
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
print("ready")
while sys.stdin.readline():
    for n in range(50): db.execute("INSERT INTO t VALUES(?)", (n,))
    print("done")
"#;

#[test]
fn a_database_with_a_second_name_is_captured_with_its_own_log() {
    for copy in COPIES {
        let mut steps = Steps::new();
        let mut user = steps.user(IN_THE_LOG);
        steps.settle();
        let [live, copy] = ["state/db.sqlite".into(), format!("{copy}.sqlite")].map(|name| steps.kit.live().join(name));
        fs::hard_link(live, copy).unwrap();
        for rounds in 1..=2 {
            go_on(&mut user);
            steps.capture(all());
            assert_eq!(rows(steps.back().join("state/db.sqlite")), rounds * 50);
        }
    }
}

const BEGINS_ANEW: &str = r#"
import sqlite3, sys, os
def user():
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    return db
def insert(numbers):
    db.execute("BEGIN")
    for n in numbers: db.execute("INSERT INTO t VALUES(?, ?)", (n, os.urandom(200)))
    db.execute("COMMIT")
db = user()
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
insert(range(300))
print("ready"); sys.stdin.readline()
db.close()
db = user()
db.execute("DELETE FROM t WHERE id % 2")
insert(range(1000, 1600))
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
print("done"); sys.stdin.readline()
"#;

#[test]
fn a_database_is_not_what_an_old_log_beside_another_name_makes_of_it() {
    for copy in COPIES {
        let mut steps = Steps::new();
        let mut user = steps.user(BEGINS_ANEW);
        steps.settle();
        steps.link_all(copy);
        steps.settle();
        go_on(&mut user);
        steps.capture(all());
        let back = steps.back().join("state/db.sqlite");
        assert_eq!(rows(back.clone()), 750);
        let db = Connection::open(back).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

const IN_A_TRANSACTION: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=5")
db.execute("CREATE TABLE t(v)")
db.execute("BEGIN")
for n in range(300): db.execute("INSERT INTO t VALUES(?)", ("a" * 500,))
db.execute("COMMIT")
db.execute("BEGIN")
db.execute("DELETE FROM t WHERE rowid % 2")
print("ready"); sys.stdin.readline()
db.execute("COMMIT")
print("done"); sys.stdin.readline()
"#;

/// To SQLite it looks like what a crash has left half-done, which whoever opens it by that name has to undo.
#[test]
fn a_journal_that_is_left_beside_another_name_undoes_nothing() {
    for copy in COPIES {
        let mut steps = Steps::new();
        let mut user = steps.user(IN_A_TRANSACTION);
        steps.link_all(copy);
        assert!(steps.kit.live().join(copy).join("db.sqlite-journal").exists());
        go_on(&mut user);
        let (_, warnings) = steps.capture(all());
        assert!(
            warnings.len() == 1 && warnings[0].starts_with(&format!("state/{copy}/")),
            "{warnings:?}"
        );
        steps.capture(all());
        assert_eq!(rows(steps.kit.live().join("state/db.sqlite")), 150);
        assert_eq!(rows(steps.back().join("state/db.sqlite")), 150);
        assert!(
            steps.back().join(copy).join("db.sqlite-journal").exists(),
            "bytes go with their journal"
        );
    }
}
