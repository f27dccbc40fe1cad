//! A capture step by step, with what others do in between.

mod names;
mod places;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use ulid::Ulid;

use super::*;
use crate::state::{
    model::{CommitId, Reason},
    restore::{Progress, restore_into_empty_dir},
    tests::kit::{Kit, meta},
};

fn roots(kit: &Kit) -> [Root; 1] {
    [Root {
        name: "state".into(),
        path: kit.live(),
    }]
}

fn writer<'a>(kit: &Kit, head: &'a Head) -> SegmentWriter<'a> {
    let id = CommitId {
        generation: Ulid::generate(),
        seq: 1,
    };
    SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap()
}

fn all() -> Changes {
    let mut all = Changes::default();
    all.lost("test");
    all
}

/// A tree that is being unpacked: each of its files has changed, in a directory that no snapshot has.
#[test]
fn a_new_directory_is_listed_once_however_many_of_its_files_changed() {
    let kit = Kit::new();
    let mut changes = Changes::default();
    fs::create_dir_all(kit.live().join("new")).unwrap();
    for number in 0..20_000 {
        fs::write(kit.live().join(format!("new/{number}")), "").unwrap();
        changes.add(format!("state/new/{number}").into_bytes(), Depth::Written);
    }
    let (roots, head, watch, memory) = (roots(&kit), Head::default(), Watch::start(|| {}), Memory::default());
    let mut look = Look::new(&roots, head.tree(), &memory, &watch);
    let began = Instant::now();
    look.at(&changes);
    assert_eq!(look.found.len(), 2 + 20_000);
    // It takes a tenth of a second; listed once for each file it would take many minutes.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// Captures of a live directory, each committed.
struct Steps {
    kit: Kit,
    watch: Watch,
    memory: Memory,
    captures: u32,
}

impl Steps {
    fn new() -> Steps {
        Steps {
            kit: Kit::new(),
            watch: Watch::start(|| {}),
            memory: Memory::default(),
            captures: 0,
        }
    }

    fn database(&self, name: &str, mode: &str) -> Connection {
        let path = self.kit.live().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t(v)").unwrap();
        db
    }

    /// Looks at `changes`, and at what the watch has to tell since.
    fn capture(&mut self, mut changes: Changes) -> (bool, Vec<String>) {
        let roots = roots(&self.kit);
        let Kit {
            history,
            generation,
            head,
            ..
        } = &mut self.kit;
        let id = generation.next_id();
        let spool = roots[0].path.with_file_name("spool");
        let mut writer = SegmentWriter::new(head, &spool, id, None).unwrap();
        let captured = capture(&roots, head, &self.memory, &self.watch, &mut changes, &mut writer, None).unwrap();
        let warnings = self.memory.warnings(&captured.update);
        let segment = writer.finish(meta(id, None, Reason::Change), captured.delta).unwrap();
        history.commit(&segment).unwrap();
        head.advance(segment);
        self.memory.apply(captured.update);
        (captured.incomplete, warnings)
    }

    /// Until everything is remembered as it is: what has just been written to is looked at once more.
    fn settle(&mut self) {
        self.capture(all());
        sleep(Duration::from_millis(100));
        self.capture(all());
        self.watch.take();
    }

    fn back(&mut self) -> PathBuf {
        self.captures += 1;
        let dir = self.kit.path(&format!("back-{}", self.captures));
        restore_into_empty_dir(&self.kit.history, &self.kit.head, &dir, &Progress::default()).unwrap();
        dir.join("state")
    }

    fn is_image(&self, path: &str) -> bool {
        matches!(self.kit.head.tree()[path.as_bytes()].kind, Kind::Sqlite { .. })
    }
}

fn rows(path: PathBuf) -> u32 {
    let db = Connection::open(path).unwrap();
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_database_that_is_written_to_while_another_is_captured_is_captured_too() {
    for mode in ["wal", "delete"] {
        let mut steps = Steps::new();
        let (a, b) = (steps.database("a", mode), steps.database("b", mode));
        let moved = steps.database("here/moved", mode);
        steps.settle();
        let insert = "INSERT INTO t VALUES(1)";
        a.execute_batch(insert).unwrap();
        let changes = steps.watch.take();
        // From here on it is during the capture of what has changed up to now.
        b.execute_batch(insert).unwrap();
        moved.execute_batch(insert).unwrap();
        fs::rename(steps.kit.live().join("here"), steps.kit.live().join("there")).unwrap();
        steps.database("new", mode).execute_batch(insert).unwrap();
        assert_eq!(steps.capture(changes), (false, vec![]));
        let back = steps.back();
        for name in ["a", "b", "new", "there/moved"] {
            assert!(
                steps.is_image(&format!("state/{name}")),
                "{mode}: {name} is stored as bytes"
            );
            assert_eq!(rows(back.join(name)), 1, "{mode}: {name}");
        }
        assert!(!back.join("here/moved").exists());
        assert!(steps.watch.take().is_empty(), "{mode}: nothing is left to be looked at");
    }
}

#[test]
fn what_has_become_a_database_since_is_not_read_as_a_file() {
    let mut steps = Steps::new();
    steps.kit.write("db", "none yet");
    steps.settle();
    let (roots, head) = (roots(&steps.kit), Head::default());
    let mut writer = writer(&steps.kit, &head);
    let before = Before {
        tree: steps.kit.head.tree(),
        memory: &steps.memory,
    };
    let mut look = Look::new(&roots, before.tree, &steps.memory, &steps.watch);
    let mut changes = Changes::default();
    changes.add(b"state/db".to_vec(), Depth::Written);
    look.at(&changes);
    let (mut notes, mut databases) = (Notes::default(), Databases::new(before));
    databases.capture(&mut look, &mut notes, &mut writer).unwrap();
    fs::remove_file(steps.kit.live().join("db")).unwrap();
    steps.database("db", "delete");
    let mut entries = Entries::new(before, databases.images, notes);
    entries.make(look, &mut writer).unwrap();
    let (delta, notes) = entries.finish(None, &writer);
    assert!(delta.upsert.is_empty() && delta.remove.is_empty(), "{delta:?}");
    assert!(notes.incomplete && notes.again.paths.contains_key(&b"state/db"[..]));
}

#[test]
fn a_database_that_cannot_be_read_as_one_is_stored_as_it_is_and_said() {
    let mut steps = Steps::new();
    let db = steps.database("db", "wal");
    db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    // As an encrypted one looks: pages of noise, and a log whose header is SQLite's.
    fs::copy(steps.kit.live().join("db-wal"), steps.kit.live().join("secret-wal")).unwrap();
    steps.kit.write("secret", vec![0x5a; 8192]);
    steps.kit.write("plain", vec![0x5a; 8192]);
    let (incomplete, warnings) = steps.capture(all());
    assert!(
        !incomplete && warnings.len() == 1 && warnings[0].starts_with("state/secret: "),
        "{warnings:?}"
    );
    assert_eq!(fs::read(steps.back().join("secret")).unwrap(), vec![0x5a; 8192]);
    assert!(steps.back().join("secret-wal").exists());
    let (_, warnings) = steps.capture(all());
    assert_eq!(warnings.len(), 1, "it stays said");
}

#[test]
fn a_long_file_that_grows_is_read_for_a_small_part_of_the_time_and_whenever_that_is_asked_for() {
    let mut steps = Steps::new();
    steps.kit.write("log", vec![7; 32 << 20]);
    steps.capture(all());
    let mut log = OpenOptions::new()
        .append(true)
        .open(steps.kit.live().join("log"))
        .unwrap();
    let grown = || {
        let mut changes = Changes::default();
        changes.add(b"state/log".to_vec(), Depth::Itself);
        changes
    };
    let captured = |steps: &Steps| match &steps.kit.head.tree()[&b"state/log"[..]].kind {
        Kind::File { len, .. } => *len,
        other => panic!("{other:?}"),
    };
    let mut readings: Vec<(Instant, Duration)> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while readings.len() < 3 {
        log.write_all(b"line\n").unwrap();
        let (began, before) = (Instant::now(), captured(&steps));
        assert_eq!(steps.capture(grown()), (false, vec![]));
        if captured(&steps) != before {
            readings.push((began, began.elapsed()));
        }
        assert!(Instant::now() < deadline, "{readings:?}");
    }
    // As often as it is looked at it would be nearly all of the time.
    let (all, reading) = (readings[2].0 - readings[0].0, readings[0].1 + readings[1].1);
    assert!(3 * reading < all, "{reading:?} of {all:?}");

    log.write_all(b"the last line\n").unwrap();
    steps.memory.forget_readings();
    steps.capture(grown());
    assert_eq!(captured(&steps), log.metadata().unwrap().len());
}
