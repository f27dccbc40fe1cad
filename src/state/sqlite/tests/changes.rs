//! What is read and what is stored when something has changed.

use super::*;

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

/// Frames that follow the last committed one, as no SQLite writes them: they name pages that cannot be.
#[test]
fn frames_of_pages_that_cannot_be_are_passed_over() {
    use std::os::unix::fs::FileExt;
    for page in [0, u32::MAX] {
        let mut snapped = Snapped::new("db");
        let db = open(&snapped);
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        )
        .unwrap();
        snapped.capture();
        let log = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(snapped.path.with_file_name("db-wal"))
            .unwrap();
        let mut salt = [0; 8];
        log.read_exact_at(&mut salt, 16).unwrap();
        let frame = [&page.to_be_bytes()[..], &[0; 4], &salt, &[0; 8 + 4096]].concat();
        log.write_all_at(&frame, log.metadata().unwrap().len()).unwrap();
        snapped.try_capture().unwrap();
        db.execute_batch("INSERT INTO t VALUES(1, x'01')").unwrap();
        snapped.try_capture().unwrap();
        assert_eq!(dump(&Connection::open(snapped.restore()).unwrap()), dump(&db));
    }
}

#[test]
fn a_file_of_holes_that_claims_to_be_a_large_database_is_none() {
    let snapped = Snapped::new("db");
    let db = open(&snapped);
    db.execute_batch("PRAGMA page_size = 512; CREATE TABLE t(v)").unwrap();
    drop(db);
    let file = fs::OpenOptions::new().write(true).open(&snapped.path).unwrap();
    file.set_len((u64::from(MOST_PAGES) + 1) * 512).unwrap();
    // Without a count of its own a database has as many pages as its file.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4], 28).unwrap();
    let id = CommitId {
        generation: snapped.kit.generation.id(),
        seq: 1,
    };
    let mut writer = SegmentWriter::new(&snapped.kit.head, &snapped.kit.path("spool"), id, None).unwrap();
    let failed = capture(&snapped.path, Users::Others, None, None, &mut writer).unwrap_err();
    assert!(matches!(failed, CaptureError::Damaged(_)), "{failed}");
}
