//! Whatever somebody does, before a capture and in the middle of it.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Write {
        id: i64,
        len: usize,
    },
    /// So many rows in one transaction.
    Many {
        from: i64,
        count: i64,
    },
    Delete {
        from: i64,
        count: i64,
    },
    /// Writes more than the page cache holds, so that pages get into the log early, and takes it back.
    Rollback,
    Checkpoint(&'static str),
    LogLimit(u32),
    /// Closes the last connection, which removes the log.
    Reopen,
    Mode(&'static str),
    Vacuum,
    /// The memory of the capturing process is lost.
    Forget,
    Capture,
}

fn act() -> impl Strategy<Value = Act> {
    let mode = prop::sample::select(vec!["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
    prop_oneof![
        8 => (0..200i64, 0..9000usize).prop_map(|(id, len)| Act::Write { id, len }),
        3 => (0..200i64, 1..60i64).prop_map(|(from, count)| Act::Many { from, count }),
        2 => (0..200i64, 1..60i64).prop_map(|(from, count)| Act::Delete { from, count }),
        1 => Just(Act::Rollback),
        4 => mode.prop_map(Act::Checkpoint),
        1 => prop::sample::select(vec![0, 20_000, 200_000]).prop_map(Act::LogLimit),
        1 => Just(Act::Reopen),
        1 => prop::sample::select(vec!["wal", "delete", "persist"]).prop_map(Act::Mode),
        1 => Just(Act::Vacuum),
        1 => Just(Act::Forget),
        8 => Just(Act::Capture),
    ]
}

fn run(db: &mut Connection, snapped: &mut Snapped, act: &Act) {
    let write = "INSERT OR REPLACE INTO t VALUES(?, randomblob(?))";
    match *act {
        Act::Write { id, len } => {
            db.execute(write, (id, len as i64)).unwrap();
        }
        Act::Many { from, count } => {
            let tx = db.transaction().unwrap();
            for id in from..from + count {
                tx.execute(write, (id, 1000 + id * 7)).unwrap();
            }
            tx.commit().unwrap();
        }
        Act::Delete { from, count } => {
            db.execute("DELETE FROM t WHERE id BETWEEN ? AND ?", (from, from + count))
                .unwrap();
        }
        Act::Rollback => {
            let tx = db.transaction().unwrap();
            for id in 0..60 {
                tx.execute(write, (id, 4000)).unwrap();
            }
            tx.rollback().unwrap();
        }
        Act::Checkpoint(mode) => {
            db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
                .unwrap();
        }
        Act::LogLimit(limit) => db.pragma_update(None, "journal_size_limit", limit).unwrap(),
        Act::Reopen => {
            *db = Connection::open_in_memory().unwrap();
            *db = open(snapped);
        }
        Act::Mode(mode) => db.pragma_update(None, "journal_mode", mode).unwrap(),
        Act::Vacuum => db.execute_batch("VACUUM").unwrap(),
        Act::Forget => snapped.known = None,
        Act::Capture => {
            snapped.capture();
            let back = Connection::open(snapped.restore()).unwrap();
            let check: String = back.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
            assert!(dump(&back) == dump(db), "the image is not what the database holds");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn an_image_is_what_the_database_holds(
        page_size in prop::sample::select(vec![512u32, 4096, 65536]),
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let mut snapped = Snapped::new("db");
        let mut db = open(&snapped);
        db.pragma_update(None, "page_size", page_size).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        for act in acts {
            run(&mut db, &mut snapped, &act);
        }
        run(&mut db, &mut snapped, &Act::Capture);
    }
}

/// What somebody does while somebody else captures; what is locked is left.
fn meddle(db: &Connection, act: &Act) {
    let write = "INSERT OR REPLACE INTO t VALUES(?, randomblob(?))";
    let many = |from: i64, count: i64| {
        db.execute_batch("BEGIN")?;
        (from..from + count).try_for_each(|id| db.execute(write, (id, 1000 + id * 7)).map(drop))
    };
    let _ = match *act {
        Act::Write { id, len } => db.execute(write, (id, len as i64)).map(drop),
        Act::Many { from, count } => many(from, count).and_then(|()| db.execute_batch("COMMIT")),
        Act::Delete { from, count } => db
            .execute("DELETE FROM t WHERE id BETWEEN ? AND ?", (from, from + count))
            .map(drop),
        Act::Rollback => many(0, 60).and_then(|()| db.execute_batch("ROLLBACK")),
        Act::Checkpoint(mode) => db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())),
        Act::LogLimit(limit) => db.pragma_update(None, "journal_size_limit", limit),
        Act::Mode(mode) => db.pragma_update(None, "journal_mode", mode),
        Act::Vacuum => db.execute_batch("VACUUM"),
        Act::Reopen | Act::Forget | Act::Capture => Ok(()),
    };
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK").unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]
    /// Whatever others do between any two steps of a capture, the image is the database as it was at its end.
    #[test]
    fn an_image_is_of_one_moment(
        page_size in prop::sample::select(vec![512u32, 4096]),
        mode in prop::sample::select(vec!["wal", "wal", "delete"]),
        rounds in prop::collection::vec(prop::collection::vec(act(), 0..25), 1..5),
    ) {
        let mut snapped = Snapped::new("db");
        let db = std::rc::Rc::new(open(&snapped));
        db.pragma_update(None, "page_size", page_size).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        // More than is read at a time.
        for id in 1000..1200 {
            db.execute("INSERT INTO t VALUES(?, randomblob(9000))", [id]).unwrap();
        }
        for acts in rounds {
            let acts = acts.into_iter().map(|act| {
                let db = db.clone();
                Box::new(move || meddle(&db, &act)) as Box<dyn FnOnce()>
            });
            MEANWHILE.set(acts.collect());
            let captured = snapped.try_capture();
            MEANWHILE.set(Vec::new());
            if captured.is_err() {
                continue;
            }
            let back = Connection::open(snapped.restore()).unwrap();
            let check: String = back.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            prop_assert_eq!(check, "ok");
            prop_assert!(dump(&back) == dump(&db), "the image is not what the database holds");
        }
    }
}
