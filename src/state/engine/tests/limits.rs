//! What a machine does not have: memory without end, watches for every directory, and descriptors.

use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    campaign::{history, settings},
    *,
};
use crate::{
    neighbour::run,
    state::{
        model::Delta,
        recover::recover,
        restore::Progress,
        segment::SegmentWriter,
        tests::{
            kit::{dir, meta},
            process::{again, again_with_few_watches},
        },
        verify::verify,
    },
};

/// Where much state lies; only set for the process whose memory is measured.
const MUCH: &str = "MOLTINIT_MUCH_STATE";

fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Commits all there is and then a change, and says by how many bytes its memory grew at most.
#[test]
fn glutton() {
    let Ok(place) = std::env::var(MUCH) else { return };
    let place = PathBuf::from(place);
    let history = history(&place);
    let generation = history.begin(ulid::Ulid::generate(), None);
    let settings = settings(&place);
    let (events, _kept) = Events::channel();
    let before = memory("VmRSS");
    let engine = start(settings, history, generation, Head::default(), events).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(engine.commit_now()).unwrap();
    fs::write(place.join("live/files/0"), "changed").unwrap();
    runtime.block_on(engine.commit_now()).unwrap();
    println!("grew {}", memory("VmHWM") - before);
}

/// Where much state was committed; only set for the process that restores it.
const MUCH_STORED: &str = "MOLTINIT_MUCH_STORED";

/// Restores all there is, and says by how many bytes its memory grew at most.
#[test]
fn restorer() {
    let Ok(place) = std::env::var(MUCH_STORED) else { return };
    let place = PathBuf::from(place);
    let before = memory("VmRSS");
    let history = history(&place);
    let targets = [("state".to_owned(), place.join("back"))];
    recover(
        &history,
        &|_| Ok(targets.to_vec()),
        &place.join("work"),
        &Progress::default(),
    )
    .unwrap();
    println!("grew {}", memory("VmHWM") - before);
}

#[test]
fn memory_is_bounded_whatever_the_size_of_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    fs::create_dir_all(live.join("files")).unwrap();
    for n in 0..10_000 {
        fs::write(live.join(format!("files/{n}")), n.to_string()).unwrap();
    }
    let large = fs::File::create(live.join("large")).unwrap();
    let mut random = SmallRng::seed_from_u64(1);
    let mut bytes = vec![0; 1 << 20];
    for n in 0..150 {
        random.fill(&mut bytes[..]);
        large.write_all_at(&bytes, n << 20).unwrap();
    }
    let db = rusqlite::Connection::open(live.join("db")).unwrap();
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t(v)")
        .unwrap();
    for _ in 0..100 {
        db.execute("INSERT INTO t VALUES(randomblob(1 << 20))", []).unwrap();
    }
    for (name, place) in [("glutton", MUCH), ("restorer", MUCH_STORED)] {
        let grew = grew(name, place, dir.path());
        assert!(grew < 64 << 20, "the {name} grew by {} MiB", grew >> 20);
    }
    assert_eq!(fs::metadata(dir.path().join("back/large")).unwrap().len(), 150 << 20);
}

/// By how many bytes the memory of a test in a process of its own has grown, as that says itself.
fn grew(name: &str, key: &str, place: &Path) -> u64 {
    let output = run(again(module_path!(), name, key, place));
    let said = String::from_utf8(output.stdout).unwrap();
    let grew = said
        .lines()
        .find_map(|line| line.strip_prefix("grew ")?.parse::<u64>().ok());
    grew.unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Where many snapshots lie; only set for the process that verifies them.
const MANY: &str = "MOLTINIT_MANY_SNAPSHOTS";
const SNAPSHOTS: usize = 40;

/// Verifies one, then all there is, and says by how many bytes its memory grew at most in between.
#[test]
fn verifier() {
    let Ok(place) = std::env::var(MANY) else { return };
    let history = history(Path::new(&place));
    let ids = history.restorable().unwrap();
    assert_eq!(ids.len(), SNAPSHOTS);
    let [one, all] = [&ids[..1], &ids].map(|ids| {
        assert_eq!(verify(&history, ids, &Progress::default()).unwrap(), []);
        memory("VmHWM")
    });
    println!("grew {}", all - one);
}

#[test]
fn the_memory_of_a_verification_does_not_grow_with_the_number_of_snapshots() {
    let mut kit = Kit::new();
    for n in 0..10_000 {
        kit.write(&format!("files/{n}"), n.to_string());
    }
    kit.commit();
    for mtime_ns in 1..SNAPSHOTS as i64 {
        let id = kit.generation.next_id();
        let writer = SegmentWriter::new(&kit.head, &kit.path("spool"), id, None).unwrap();
        let delta = Delta {
            upsert: vec![(b"state".to_vec(), Entry { mtime_ns, ..dir() })],
            remove: Vec::new(),
        };
        let segment = writer.finish(meta(id, None, Reason::Change), delta).unwrap();
        kit.history.commit(&segment).unwrap();
        kit.head.advance(segment);
    }
    let grew = grew("verifier", MANY, &kit.path(""));
    assert!(grew < 8 << 20, "it grew by {} MiB", grew >> 20);
}

/// Where more directories lie than can be watched; only set for the process that is to cope.
const BLIND: &str = "MOLTINIT_FEW_WATCHES";

#[test]
fn blind() {
    let Ok(place) = std::env::var(BLIND) else { return };
    let place = PathBuf::from(place);
    let history = history(&place);
    let generation = history.begin(ulid::Ulid::generate(), None);
    let settings = settings(&place);
    let (events, mut said) = Events::channel();
    let engine = start(settings, history.clone(), generation, Head::default(), events).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut committed = || loop {
        let event = runtime.block_on(async { tokio::time::timeout(DEADLINE, said.recv()).await });
        if let Event::SnapshotCommitted { commit, .. } = event.unwrap().unwrap() {
            return history.load(commit).unwrap().tree().clone();
        }
    };
    committed();
    // In a directory that is surely not watched, as none of these was made before the limit was reached.
    for n in 0..20 {
        fs::write(place.join(format!("live/{n}/new")), "1").unwrap();
    }
    let all = |tree: crate::state::model::Tree| (0..20).all(|n| tree.contains_key(format!("state/{n}/new").as_bytes()));
    while !all(committed()) {}
    // What is asked for has what was written right before.
    for n in 0..20 {
        fs::write(place.join(format!("live/{n}/asked")), "1").unwrap();
        let meta = runtime.block_on(engine.commit_now()).unwrap().unwrap();
        let tree = history.load(meta.id).unwrap().tree().clone();
        assert!(tree.contains_key(format!("state/{n}/asked").as_bytes()), "{n}");
    }
    // What goes where nothing is watched is in every commit, under one name or the other.
    for n in 0..20 {
        let name = format!("state/moved-{n}");
        fs::rename(
            place.join(format!("live/moved-{n}")),
            place.join(format!("live/{n}/moved")),
        )
        .unwrap();
        loop {
            let tree = committed();
            if !tree.contains_key(name.as_bytes()) {
                assert!(tree.contains_key(format!("state/{n}/moved").as_bytes()), "{n}");
                break;
            }
        }
    }
    println!("found all");
}

#[test]
fn directories_that_cannot_be_watched_are_scanned() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20 {
        fs::create_dir_all(dir.path().join(format!("live/{n}"))).unwrap();
        fs::write(dir.path().join(format!("live/moved-{n}")), "1").unwrap();
    }
    let output = run(again_with_few_watches(module_path!(), "blind", BLIND, dir.path()));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("found all"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where a process lives that runs out of descriptors; only set for that one.
const STARVED: &str = "MOLTINIT_FEW_DESCRIPTORS";

/// Has a snapshot made that may open so many descriptors at a time and no more, from none on until there are enough.
#[test]
fn starved() {
    if std::env::var(STARVED).is_err() {
        return;
    }
    let kit = Kit::new();
    furnish(&kit);
    kit.write("a/changes", "0");
    kit.write("d/e/f/g", "deep");
    let names = ["a/one.db", "two.db"];
    let databases = names.map(|name| {
        let db = rusqlite::Connection::open(kit.live().join(name)).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(v)")
            .unwrap();
        db
    });
    // All but the databases, whose files are in use; and of these what was written last.
    let files = |mut picture: Picture| {
        picture.retain(|(path, ..)| !path.windows(3).any(|part| part == b".db"));
        picture
    };
    let newest = |dir: PathBuf| {
        names.map(|name| {
            let db = rusqlite::Connection::open(dir.join(name)).unwrap();
            db.query_row("SELECT max(v) FROM t", [], |row| row.get::<_, u64>(0))
                .unwrap()
        })
    };
    let mut live = Live::start(kit);
    live.commit();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let (mut room, mut enough) = (0, 0);
    while enough < 3 {
        let before = live.head_tree();
        live.kit.write("a/changes", room.to_string());
        live.kit.write(&format!("new-{room}/below/file"), "new");
        for db in &databases {
            db.execute("INSERT INTO t VALUES(?)", [room]).unwrap();
        }
        let now = files(picture(&live.kit.live()));
        let has_all = |(picture, dir)| files(picture) == now && newest(dir) == [room; 2];
        let free = fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
        setrlimit(Resource::RLIMIT_NOFILE, free + room, hard).unwrap();
        let tried = live.runtime.block_on(live.engine.commit_now());
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let whole = matches!(&tried, Ok(Some(meta)) if meta.warnings.is_empty());
        let after = live.head_tree();
        for path in before.keys() {
            let path_text = String::from_utf8_lossy(path);
            assert!(
                after.contains_key(path),
                "with room for {room}, {path_text} is gone: {tried:?}"
            );
        }
        if whole {
            assert!(has_all(live.restore()), "with room for {room} it was said to be whole");
        }
        enough = if whole { enough + 1 } else { 0 };
        live.commit();
        assert!(has_all(live.restore()), "after there was room for {room}");
        room += 1;
    }
    println!("enough from {}", room - enough);
}

#[test]
fn descriptors_that_run_out_at_any_moment_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(again(module_path!(), "starved", STARVED, dir.path()));
    let said = String::from_utf8(output.stdout).unwrap();
    let enough = said
        .lines()
        .find_map(|line| line.strip_prefix("enough from ")?.parse::<u32>().ok());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(enough.is_some_and(|enough| enough > 2), "{said}\n{stderr}");
}
