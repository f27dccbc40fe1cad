//! Captures of databases that are in use, against what they hold.

mod changes;
mod generated;
mod slices;
mod users;

use std::{cell::RefCell, fs, os::fd::AsFd, path::PathBuf};

use rusqlite::Connection;

use super::*;
use crate::state::{
    head::Head,
    model::{CommitId, Delta, Entry, Kind, Reason, Tree},
    restore::{Progress, restore_into_empty_dir},
    tests::kit::{Kit, meta},
    watch::Watch,
};

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

fn open(snapped: &Snapped) -> Connection {
    let db = Connection::open(&snapped.path).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = 20")
        .unwrap();
    db
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
