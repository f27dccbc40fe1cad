//! Captures of databases that are in use, against what they hold.

use std::{cell::RefCell, fs, os::fd::AsFd, path::PathBuf};

use proptest::prelude::*;
use rusqlite::Connection;

use super::*;
use crate::state::{
    head::Head,
    model::{CommitId, Delta, Entry, Kind, Reason, Tree},
    restore::{Progress, restore_into_empty_dir},
    tests::{
        kit::{Kit, meta},
        python::{BANK, Python, check_bank},
    },
    watch::Watch,
};

#[test]
fn a_page_set_is_a_set() {
    let mut set = PageSet::default();
    [1, 64, 5, 200].into_iter().for_each(|page| set.insert(page));
    assert!(set.contains(64) && !set.contains(63));
    assert_eq!(set.len(), 4);
    let mut taken = Vec::new();
    while let Some(page) = set.first() {
        taken.push(page);
        set.remove(page);
        if page == 5 {
            set.insert(2);
            set.truncate(64);
        }
    }
    assert_eq!(taken, [1, 5, 2, 64]);
    assert!(set.words.len() < 4);
}

const SIZE: usize = 512;

/// Pages of an image in the making, each given as one byte that fills it.
struct Slices<'a> {
    work: Work<'a>,
    writer: SegmentWriter<'a>,
    chunks: std::collections::HashMap<Hash, Vec<u8>>,
}

impl<'a> Slices<'a> {
    fn new(kit: &Kit, head: &'a Head, old: &'a [Extent]) -> Slices<'a> {
        let id = CommitId {
            generation: ulid::Ulid::from_parts(1, 1),
            seq: 1,
        };
        Slices {
            work: Work::begin(SIZE as u32, 0, Some((SIZE as u32, old)), None, None),
            writer: SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap(),
            chunks: Default::default(),
        }
    }

    /// A slice that sees a database of these pages, and reads some of them.
    fn see(&mut self, pages: &[u8], from: usize, to: usize) {
        self.work.hashes.resize(pages.len(), 0);
        let bytes: Vec<u8> = pages[from..to].iter().flat_map(|page| [*page; SIZE]).collect();
        for (first, last) in (0..=bytes.len() / SIZE).flat_map(|last| (0..last).map(move |first| (first, last))) {
            let part = &bytes[first * SIZE..last * SIZE];
            self.chunks.insert(Hash::of(part), part.to_vec());
        }
        self.work.put_run(from as u32 + 1, &bytes, &mut self.writer).unwrap();
    }

    /// Ends with the image of a database of so many pages.
    fn finish(self, pages: usize, chunks: &mut std::collections::HashMap<Hash, Vec<u8>>) -> (Vec<Extent>, Vec<u8>) {
        chunks.extend(self.chunks);
        let extents = self.work.finish(pages as u32, None).extents;
        let mut bytes = Vec::new();
        for extent in &extents {
            match extent {
                Extent::Hole { len } => bytes.extend(std::iter::repeat_n(0, *len as usize)),
                Extent::Data { chunk, from, len } => bytes.extend(&chunks[chunk][*from as usize..][..*len as usize]),
            }
        }
        let pages = bytes.chunks(SIZE).map(|page| page[0]).collect();
        (extents, pages)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A database that shrinks, grows and becomes what it was before while it is captured: what counts is what the last
    /// slices have seen.
    #[test]
    fn an_image_is_what_was_seen_last(
        old in proptest::collection::vec(1..4u8, 1..10),
        seen in proptest::collection::vec((proptest::collection::vec(1..4u8, 1..10), 0..10usize, 0..10usize), 0..6),
        last in proptest::collection::vec(1..4u8, 1..10),
        cut in 0..10usize,
    ) {
        let (kit, head, mut chunks) = (Kit::new(), Head::default(), Default::default());
        let mut before = Slices::new(&kit, &head, &[]);
        before.see(&old, 0, old.len());
        let (extents, pages) = before.finish(old.len(), &mut chunks);
        prop_assert_eq!(&pages, &old);
        let mut slices = Slices::new(&kit, &head, &extents);
        for (pages, from, len) in seen {
            let from = from.min(pages.len() - 1);
            slices.see(&pages, from, (from + len.max(1)).min(pages.len()));
        }
        let cut = cut.min(last.len());
        for (from, to) in [(0, cut), (cut, last.len())] {
            if from < to {
                slices.see(&last, from, to);
            }
        }
        let (_, pages) = slices.finish(last.len(), &mut chunks);
        prop_assert_eq!(pages, last);
    }
}

/// A database, its snapshots, and what is remembered from one to the next.
struct Snapped {
    kit: Kit,
    path: PathBuf,
    known: Option<Known>,
    restored: u32,
    /// Pages that the last capture read with a lock held.
    locked: u64,
}

impl Snapped {
    fn new(name: &str) -> Snapped {
        let kit = Kit::new();
        Snapped {
            path: kit.live().join(name),
            kit,
            known: None,
            restored: 0,
            locked: 0,
        }
    }

    /// Captures and commits; returns how many pages were read.
    fn capture(&mut self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            match self.try_capture() {
                Err(CaptureError::Busy(_) | CaptureError::Outrun) if Instant::now() < deadline => {}
                read => return read.unwrap(),
            }
        }
    }

    fn try_capture(&mut self) -> Result<u64, CaptureError> {
        let Kit {
            history,
            generation,
            head,
            ..
        } = &mut self.kit;
        let id = generation.next_id();
        let spool = self.path.parent().unwrap().join("../spool");
        let mut writer = SegmentWriter::new(head, &spool, id, None).unwrap();
        let old = head.tree().get(&b"state/db"[..]).map(|entry| match &entry.kind {
            Kind::Sqlite { page_size, extents, .. } => (*page_size, extents.as_slice()),
            other => panic!("{other:?}"),
        });
        let captured = capture(&self.path, Users::Others, old, self.known.as_ref(), &mut writer)?;
        let entry = |kind| Entry {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            kind,
        };
        let Captured {
            page_size,
            len,
            extents,
            known,
            read,
            locked,
            ..
        } = captured;
        let upsert = vec![
            (b"state".to_vec(), entry(Kind::Dir)),
            (
                b"state/db".to_vec(),
                entry(Kind::Sqlite {
                    len,
                    page_size,
                    extents,
                }),
            ),
        ];
        let segment = writer
            .finish(
                meta(id, None, Reason::Change),
                Delta {
                    upsert,
                    remove: Vec::new(),
                },
            )
            .unwrap();
        history.commit(&segment).unwrap();
        head.advance(segment);
        self.known = Some(known);
        self.locked = locked;
        Ok(read)
    }

    fn restore(&mut self) -> PathBuf {
        self.restored += 1;
        let dir = self.kit.path(&format!("back-{}", self.restored));
        fs::create_dir(&dir).unwrap();
        restore_into_empty_dir(&self.kit.history, &self.kit.head, &dir, &Progress::default()).unwrap();
        dir.join("state/db")
    }

    fn tree(&self) -> &Tree {
        self.kit.head.tree()
    }
}

fn dump(db: &Connection) -> Vec<(i64, Vec<u8>)> {
    let mut rows = db.prepare("SELECT id, v FROM t ORDER BY id").unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

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

fn open(snapped: &Snapped) -> Connection {
    let db = Connection::open(&snapped.path).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = 20")
        .unwrap();
    db
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

thread_local! {
    /// What others do in the middle of a capture, one after the other.
    static MEANWHILE: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

pub fn interruption() {
    let next = MEANWHILE.with_borrow_mut(Vec::pop);
    if let Some(act) = next {
        act();
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

#[test]
fn only_what_changed_is_read_also_when_the_log_begins_anew() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        .unwrap();
    db.execute_batch("PRAGMA wal_autocheckpoint = 100").unwrap();
    let rows = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                INSERT INTO t SELECT i, randomblob(3500) FROM n";
    db.execute_batch(rows).unwrap();
    assert!(snapped.capture() > 2000);
    let mut most = 0;
    for n in 1..150 {
        // Several pages a commit: the log begins anew every dozen commits.
        for k in 0..5 {
            db.execute("UPDATE t SET v = randomblob(3500) WHERE id = ?", [n * 7 + k * 97])
                .unwrap();
        }
        most = most.max(snapped.capture());
    }
    assert!(most < 250, "{most} pages were read for a change of about ten");
    assert!(dump(&Connection::open(snapped.restore()).unwrap()) == dump(&db));
}

/// While it is read the log begins anew, and other pages are where those were that are read.
#[test]
fn what_is_read_of_a_log_that_begins_anew_is_read_again() {
    let mut snapped = Snapped::new("db");
    let db = std::rc::Rc::new(open(&snapped));
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
    )
    .unwrap();
    for id in 0..600 {
        db.execute("INSERT INTO t VALUES(?, randomblob(3500))", [id]).unwrap();
    }
    let writer = db.clone();
    let act = move || {
        let done: i64 = writer
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))
            .unwrap();
        assert_eq!(done, 0);
        for id in 500..520 {
            writer
                .execute("UPDATE t SET v = randomblob(3500) WHERE id = ?", [id])
                .unwrap();
        }
    };
    MEANWHILE.set(vec![Box::new(act)]);
    let read = snapped.try_capture().unwrap();
    assert!(MEANWHILE.with_borrow(Vec::is_empty));
    assert!(snapped.locked < read / 10, "{} of {read}", snapped.locked);
    let back = Connection::open(snapped.restore()).unwrap();
    assert!(dump(&back) == dump(&db));
}

#[test]
fn a_restored_database_is_not_stored_again_only_because_its_pages_are_not_known() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        .unwrap();
    db.execute_batch("INSERT INTO t VALUES(1, randomblob(3000000))")
        .unwrap();
    snapped.capture();
    let before = snapped.tree().clone();
    snapped.known = None;
    snapped.capture();
    assert_eq!(*snapped.tree(), before);
}

#[test]
fn a_database_in_pieces_is_put_together_again() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        .unwrap();
    for id in 0..400 {
        db.execute("INSERT INTO t VALUES(?, randomblob(3500))", [id]).unwrap();
    }
    snapped.capture();
    for n in 0..400 {
        db.execute("UPDATE t SET v = randomblob(3500) WHERE id = ?", [n * 37 % 400])
            .unwrap();
        snapped.capture();
    }
    let Kind::Sqlite {
        extents,
        len,
        page_size,
    } = &snapped.tree()[&b"state/db"[..]].kind
    else {
        panic!()
    };
    let pages = len / u64::from(*page_size);
    assert!(
        (extents.len() as u64) < pages * 3 / 4,
        "{} pieces of {pages} pages",
        extents.len()
    );
    assert!(dump(&Connection::open(snapped.restore()).unwrap()) == dump(&db));
}

/// The writer of a database with a log fails if it is ever kept waiting for long; one without has to wait for a reader.
#[test]
fn a_large_database_is_whole_although_it_is_written_to_while_it_is_read() {
    for name in ["wal", "delete"] {
        let mut snapped = Snapped::new(name);
        let mut writer = Python::run(BANK, &snapped.path, 8_000_000);
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

#[test]
fn what_is_no_database_is_told_from_what_is_locked() {
    let snapped = Snapped::new("db");
    fs::write(&snapped.path, [&MAGIC[..], &[9; 2000]].concat()).unwrap();
    let mut writer = SegmentWriter::new(
        &snapped.kit.head,
        &snapped.kit.path("spool"),
        crate::state::model::CommitId {
            generation: snapped.kit.generation.id(),
            seq: 1,
        },
        None,
    )
    .unwrap();
    let failed = capture(&snapped.path, Users::Others, None, None, &mut writer).unwrap_err();
    assert!(matches!(failed, CaptureError::Damaged(_)), "{failed}");
    fs::remove_file(&snapped.path).unwrap();
    let db = open(&snapped);
    db.execute_batch("CREATE TABLE t(v); BEGIN EXCLUSIVE").unwrap();
    let failed = capture(&snapped.path, Users::Others, None, None, &mut writer).unwrap_err();
    assert!(matches!(failed, CaptureError::Busy(_)), "{failed}");
}

#[test]
fn capturing_is_no_change() {
    for mode in ["wal", "delete"] {
        let mut snapped = Snapped::new("db");
        let watch = Watch::start(|| {});
        let db = open(&snapped);
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'x')")
            .unwrap();
        let dir = fs::File::open(snapped.kit.live()).unwrap();
        watch.dir(b"state", dir.as_fd());
        snapped.capture();
        snapped.capture();
        let changes = watch.take();
        assert!(changes.is_empty(), "{mode}: {changes:?}");
    }
}

#[test]
fn what_a_crash_left_half_done_is_undone() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
    for id in 0..100 {
        db.execute("INSERT INTO t VALUES(?, randomblob(3500))", [id]).unwrap();
    }
    let before = dump(&db);
    // Spilled from the cache into the file, and never committed: as after a crash once both files are copied.
    db.execute_batch("BEGIN; UPDATE t SET v = randomblob(3500)").unwrap();
    let crashed = Snapped::new("db");
    for end in ["", "-journal"] {
        let name = |path: &std::path::Path| PathBuf::from(format!("{}{end}", path.display()));
        fs::copy(name(&snapped.path), name(&crashed.path)).unwrap();
    }
    drop(db);
    snapped = crashed;
    snapped.capture();
    assert!(dump(&Connection::open(snapped.restore()).unwrap()) == before);
}

#[test]
fn reading_for_long_is_not_reading_one_page_for_long() {
    let snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, randomblob(100000))")
        .unwrap();
    let longest = Duration::from_millis(200);
    let reader = Reader::open_for(&snapped.path, longest).unwrap();
    let view = reader.view().unwrap();
    let started = Instant::now();
    let mut bytes = Vec::new();
    // Enough steps of the one statement for SQLite to ask at least once whether it is to go on.
    for _ in 0..20_000 {
        view.read(2, &mut bytes).unwrap();
        bytes.clear();
    }
    while started.elapsed() <= longest {
        view.read(2, &mut bytes).unwrap();
    }
    for _ in 0..20_000 {
        view.read(2, &mut bytes).unwrap();
        bytes.clear();
    }
}

#[test]
fn only_what_is_damaged_is_called_damaged() {
    let error = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into();
    use rusqlite::ffi;
    for code in [ffi::SQLITE_NOTADB, ffi::SQLITE_CORRUPT] {
        assert!(matches!(error(code), CaptureError::Damaged(_)));
    }
    for code in [
        ffi::SQLITE_INTERRUPT,
        ffi::SQLITE_ERROR,
        ffi::SQLITE_IOERR,
        ffi::SQLITE_CANTOPEN,
    ] {
        assert!(matches!(error(code), CaptureError::Unavailable(_)));
    }
}

#[test]
fn an_unchanged_database_without_a_log_is_not_read_again() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, randomblob(500000))")
        .unwrap();
    // Until the file has been left alone for long enough for its times to tell.
    while snapped.capture() > 0 {}
    let copy = fs::read(&snapped.path).unwrap();
    db.execute_batch("UPDATE t SET v = randomblob(500000)").unwrap();
    assert!(snapped.capture() > 0);
    while snapped.capture() > 0 {}
    // The same counter in the same file, and yet another database.
    db.execute_batch("UPDATE t SET v = zeroblob(500000)").unwrap();
    let counter = |bytes: &[u8]| bytes[24..28].to_vec();
    let now = fs::read(&snapped.path).unwrap();
    drop(db);
    fs::write(
        &snapped.path,
        [&copy[..24], &counter(&now), &copy[28..92], &counter(&now), &copy[96..]].concat(),
    )
    .unwrap();
    snapped.known.as_mut().unwrap().seen = Some(Seen::Counter(u32::from_be_bytes(counter(&now).try_into().unwrap())));
    assert!(snapped.capture() > 0);
    assert_eq!(fs::read(snapped.restore()).unwrap()[96..], copy[96..]);
}

#[test]
fn room_made_in_advance_is_no_damage() {
    let mut snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, x'01')")
        .unwrap();
    let pages = fs::metadata(&snapped.path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&snapped.path).unwrap();
    file.set_len(pages + 60_000).unwrap();
    snapped.capture();
    assert_eq!(fs::metadata(snapped.restore()).unwrap().len(), pages);
    let mut writer = SegmentWriter::new(
        &snapped.kit.head,
        &snapped.kit.path("spool"),
        snapped.kit.generation.next_id(),
        None,
    )
    .unwrap();
    assert_eq!(
        capture(&snapped.path, Users::Others, None, None, &mut writer)
            .unwrap()
            .behind,
        Some(60_000)
    );
    assert!(dump(&Connection::open(snapped.restore()).unwrap()) == dump(&db));
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
        let mut user = Python::run(PATIENT, &snapped.path, 200_000_000);
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
