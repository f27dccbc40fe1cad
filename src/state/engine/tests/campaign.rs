//! A supervisor that is killed again and again, at any moment: what it said was committed is there at the next boot.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    neighbour::Neighbour,
    pid1::Exit,
    state::{
        recover::{Recovered, recover},
        restore::{self, Progress},
        tests::{process::again, python::check_bank},
    },
    store::{Expect, Patience, Store},
};

/// Where the victim lives; only set for the process that is to be killed.
const PLACE: &str = "MOLTINIT_CAMPAIGN";
/// Kills, unless the environment says otherwise.
const KILLS: u32 = 25;

pub fn settings(place: &Path) -> Settings {
    Settings {
        roots: roots(place.join("live")),
        pace: pace::Settings {
            quiet: Duration::from_millis(5),
            max_delay: Duration::from_millis(20),
            min_gap: Duration::from_millis(5),
        },
        spool: place.join("spool"),
        saved: Saved::in_dir(&place.join("work")),
        rescan: RESCAN,
        gateway: Box::new(|| None),
    }
}

pub fn history(place: &Path) -> History {
    let store = Store::open(&place.join("store"), Expect::Directory, Patience::default());
    History::open(store, "default", None).unwrap()
}

fn restored(place: &Path, to: &str) -> Option<Head> {
    let targets = [("state".to_owned(), place.join(to))];
    let targets = |_: &Head| Ok(targets.to_vec());
    match recover(&history(place), &targets, &place.join("work"), &Progress::default()).unwrap() {
        Recovered::Restored { head, passed, .. } => {
            // A commit that was cut off has never been reported; a whole one is never passed over.
            assert!(passed.iter().all(|passed| !passed.why.is_empty()));
            Some(*head)
        }
        Recovered::Empty { .. } => None,
    }
}

/// What a supervisor does: restores, watches, commits; and what an agent does: changes files and two tables whose sum
/// stays the same. Says each number that a commit was reported with. Killed from outside.
#[test]
fn victim() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let place = PathBuf::from(place);
    restore::resume(&place.join("work")).unwrap();
    let live = place.join("live");
    let head = restored(&place, "live").unwrap_or_default();
    fs::create_dir_all(&live).unwrap();
    let history = history(&place);
    let generation = history.begin(ulid::Ulid::generate(), head.id());
    let settings = settings(&place);
    let (events, _kept) = Events::channel();
    let engine = start(settings, history, generation, head, events).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut db = rusqlite::Connection::open(live.join("db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY KEY, v); CREATE TABLE IF NOT EXISTS b(id INTEGER PRIMARY KEY, v, pad);
         INSERT OR IGNORE INTO a VALUES(1, 1000);",
    )
    .unwrap();
    let count = fs::read_to_string(live.join("count")).map_or(0, |text| text.parse().unwrap());
    for n in count + 1.. {
        let transfer = db.transaction().unwrap();
        transfer.execute("UPDATE a SET v = v - 1", []).unwrap();
        transfer
            .execute("INSERT INTO b(v, pad) VALUES(1, zeroblob(?))", [n % 7000])
            .unwrap();
        transfer.commit().unwrap();
        let dir = live.join(format!("dir-{}", n % 5));
        if n % 11 == 0 {
            let _ = fs::remove_dir_all(&dir);
        } else {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{}", n % 13)), vec![b'x'; (n * 997 % 60_000) as usize]).unwrap();
        }
        fs::write(live.join("count.new"), n.to_string()).unwrap();
        fs::rename(live.join("count.new"), live.join("count")).unwrap();
        if n % 3 == 0 && runtime.block_on(engine.commit_now()).is_ok() {
            println!("committed {n}");
        }
    }
}

/// Has a victim live so long; returns the last number that it said, which is little for what its pipe holds.
fn lived(place: &Path, life: Duration) -> u64 {
    let mut victim = Neighbour::start(again(module_path!(), "victim", PLACE, place));
    std::thread::sleep(life);
    assert_eq!(victim.kill(), Exit::Signal(9), "it ended by itself");
    let said = victim.lines.by_ref().map_while(Result::ok);
    let numbers = said.filter_map(|line| line.strip_prefix("committed ")?.parse().ok());
    numbers.last().unwrap_or(0)
}

#[test]
fn what_was_reported_committed_is_never_missing() {
    let kills = std::env::var("MOLTINIT_CAMPAIGN_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = std::env::var("MOLTINIT_CAMPAIGN_SEED").map_or(7, |seed| seed.parse().unwrap());
    let mut random = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let (mut reported, mut longest) = (0u64, Duration::ZERO);
    for kill in 0..kills {
        // Now and then so soon that it has not restored yet.
        let life = Duration::from_millis(random.random_range(10..1200));
        reported = reported.max(lived(place, life));
        longest = longest.max(life);
        if kill % 3 == 0 {
            continue;
        }
        let began = Instant::now();
        let Some(head) = restored(place, "check") else {
            assert_eq!(reported, 0, "kill {kill}, seed {seed}: nothing to restore");
            continue;
        };
        let check = place.join("check");
        let count: u64 = fs::read_to_string(check.join("count")).map_or(0, |text| text.parse().unwrap());
        assert!(
            count >= reported,
            "kill {kill}, seed {seed}: {} holds {count}, but {reported} was reported; restored in {:?}",
            head.id().unwrap(),
            began.elapsed()
        );
        if check.join("db").exists() && head.tree().contains_key(&b"state/count"[..]) {
            check_bank(&check.join("db"));
        }
        fs::remove_dir_all(&check).unwrap();
    }
    assert!(reported > 0, "nothing was ever committed in {longest:?}");
}
