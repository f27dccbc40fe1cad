//! The engine on real directories, real databases and a store that fails.

mod campaign;
mod damage;
mod databases;
mod limits;
mod model;
mod moves;
mod saved;
mod untold;

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::{runtime::Runtime, sync::mpsc::UnboundedReceiver};

use self::databases::LOCKED;
use super::*;
use crate::{
    state::{
        model::{Entry, Kind},
        recover::Recovered,
        tests::{
            kit::{Kit, picture},
            python::python,
        },
    },
    store::faulty::{self, Fault},
};

const DEADLINE: Duration = Duration::from_secs(30);

type Picture = Vec<(Vec<u8>, Entry, Vec<u8>)>;

/// An engine that keeps the live directory of a kit.
struct Live {
    kit: Kit,
    engine: EngineHandle,
    events: UnboundedReceiver<Event>,
    runtime: Runtime,
    restored: u32,
}

fn roots(state: PathBuf) -> Box<dyn FnMut() -> Vec<Root> + Send> {
    Box::new(move || vec![root("state", &state)])
}

fn root(name: &str, path: &Path) -> Root {
    Root {
        name: name.into(),
        path: path.into(),
    }
}

fn settings(kit: &Kit) -> Settings {
    Settings {
        roots: roots(kit.live()),
        pace: pace::Settings {
            quiet: Duration::from_millis(20),
            max_delay: Duration::from_millis(100),
            min_gap: Duration::from_millis(20),
        },
        spool: kit.path("spool"),
        saved: Saved::in_dir(&kit.path("work")),
        rescan: RESCAN,
        gateway: Box::new(|| Some("2026.9.6".into())),
    }
}

impl Live {
    fn start(kit: Kit) -> Live {
        let settings = settings(&kit);
        Live::start_with(kit, settings)
    }

    fn start_with(mut kit: Kit, settings: Settings) -> Live {
        let (events, receiver) = Events::channel();
        let head = std::mem::take(&mut kit.head);
        let generation = kit.history.begin(ulid::Ulid::generate(), head.id());
        let engine = start(settings, kit.history.clone(), generation, head, events).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        Live {
            kit,
            engine,
            events: receiver,
            runtime,
            restored: 0,
        }
    }

    fn commit(&self) -> Meta {
        self.runtime.block_on(self.engine.commit_now()).unwrap().unwrap()
    }

    /// The next event that `pick` wants.
    fn event<T>(&mut self, pick: impl Fn(Event) -> Option<T>) -> T {
        let events = &mut self.events;
        let wait = async {
            loop {
                if let Some(found) = pick(events.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        self.runtime
            .block_on(async { tokio::time::timeout(DEADLINE, wait).await })
            .unwrap()
    }

    /// Waits until a commit restores to what is there now.
    fn settles(&mut self) {
        let now = picture(&self.kit.live());
        loop {
            let (restored, _) = self.restore();
            if restored == now {
                return;
            }
            self.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
        }
    }

    /// Restores the newest commit, and looks at it.
    fn restore(&mut self) -> (Picture, PathBuf) {
        self.restored += 1;
        let name = format!("back-{}", self.restored);
        if let Recovered::Empty { .. } = self.kit.recover_to(&name).unwrap() {
            fs::create_dir_all(self.kit.path(&name)).unwrap();
        }
        (picture(&self.kit.path(&name)), self.kit.path(&name))
    }

    fn objects(&self) -> usize {
        self.kit.reopened().restorable().unwrap().len()
    }

    /// Ends the engine and boots again.
    fn reboot(mut self) -> Live {
        self.finish();
        self.kit.reboot();
        Live::start(self.kit)
    }

    fn finish(&self) -> Option<Meta> {
        self.runtime
            .block_on(self.engine.finish(Instant::now() + DEADLINE))
            .unwrap()
    }

    fn head_tree(&self) -> crate::state::model::Tree {
        let history = self.kit.reopened();
        let newest = history.restorable().unwrap()[0];
        history.load(newest).unwrap().tree().clone()
    }
}

fn furnish(kit: &Kit) {
    kit.write("openclaw.json", "{}");
    kit.write("empty", "");
    kit.write("a/b/c/log.jsonl", "line\n".repeat(50_000));
    kit.write("odd/name with\nnewline", "1");
    let live = kit.live();
    symlink("/etc/shadow", live.join("link")).unwrap();
    fs::hard_link(live.join("openclaw.json"), live.join("a/again.json")).unwrap();
    fs::set_permissions(live.join("openclaw.json"), fs::Permissions::from_mode(0o600)).unwrap();
    let sparse = fs::File::create(live.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 3_000_000).unwrap();
    sparse.set_len(9_000_000).unwrap();
    kit.write("tmp/left-out", "");
    fs::remove_file(live.join("tmp/left-out")).unwrap();
    fs::remove_dir(live.join("tmp")).unwrap();
}

#[test]
fn what_is_there_at_boot_is_committed_and_a_boot_without_a_change_commits_nothing() {
    let kit = Kit::new();
    furnish(&kit);
    let live = Live::start(kit);
    let first = live.commit();
    assert_eq!(
        (first.reason, first.gateway.as_deref()),
        (Reason::Boot, Some("2026.9.6"))
    );
    assert_eq!(live.objects(), 1);
    let mut live = live.reboot();
    assert_eq!(live.commit().id, first.id);
    assert_eq!(picture(&live.kit.live()), live.restore().0);
    live.finish();
    live.kit.reboot();
    live.kit.write("new", "1");
    let live = Live::start(live.kit);
    let second = live.commit();
    assert_eq!(
        (second.parent, second.base, second.reason),
        (Some(first.id), Some(first.id), Reason::Boot)
    );
    assert_eq!(live.finish(), Some(second));
    assert_eq!(live.objects(), 2);
}

#[test]
fn changes_are_committed_by_themselves() {
    let kit = Kit::new();
    furnish(&kit);
    let mut live = Live::start(kit);
    live.settles();
    let at = live.kit.live();
    live.kit.write("new/deep/er/file", "1");
    live.settles();
    fs::rename(at.join("a"), at.join("moved")).unwrap();
    live.settles();
    live.kit.write("moved/b/more", "2");
    fs::remove_file(at.join("link")).unwrap();
    live.settles();
    fs::set_permissions(at.join("empty"), fs::Permissions::from_mode(0o4711)).unwrap();
    live.settles();
    fs::remove_dir_all(at.join("moved")).unwrap();
    live.kit.write("moved", "now a file");
    live.settles();
    fs::OpenOptions::new()
        .append(true)
        .open(at.join("openclaw.json"))
        .unwrap()
        .write_all(b"more")
        .unwrap();
    live.settles();
    fs::remove_file(at.join("openclaw.json")).unwrap();
    live.settles();
}

#[test]
fn every_name_of_a_linked_file_follows_its_content() {
    let kit = Kit::new();
    kit.write("m", "1");
    kit.write("other/x", "");
    let mut live = Live::start(kit);
    let at = live.kit.live();
    fs::hard_link(at.join("m"), at.join("z")).unwrap();
    live.settles();
    fs::write(at.join("z"), "written by the later name").unwrap();
    live.settles();
    fs::hard_link(at.join("m"), at.join("a")).unwrap();
    live.settles();
    fs::remove_file(at.join("a")).unwrap();
    live.settles();
    fs::remove_file(at.join("m")).unwrap();
    live.settles();
    assert_eq!(
        fs::read(live.restore().1.join("z")).unwrap(),
        b"written by the later name"
    );
}

#[test]
fn a_root_may_come_late_go_and_come_back() {
    let kit = Kit::new();
    kit.write("a", "1");
    let late = kit.path("workspace");
    let mut settings = settings(&kit);
    let has_workspace = Arc::new(AtomicBool::new(true));
    let (state, workspace, named) = (kit.live(), late.clone(), Arc::clone(&has_workspace));
    settings.roots = Box::new(move || {
        let mut roots = vec![root("state", &state)];
        roots.extend(named.load(Ordering::Relaxed).then(|| root("workspace", &workspace)));
        roots
    });
    let mut live = Live::start_with(kit, settings);
    live.commit();
    let has = |live: &Live, name: &str| live.head_tree().contains_key(name.as_bytes());
    assert!(!has(&live, "workspace"));
    fs::create_dir(&late).unwrap();
    fs::write(late.join("x"), "1").unwrap();
    while !has(&live, "workspace/x") {
        live.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
    }
    fs::remove_dir_all(&late).unwrap();
    live.commit();
    assert!(!has(&live, "workspace") && has(&live, "state/a"));
    fs::create_dir(&late).unwrap();
    fs::write(late.join("y"), "1").unwrap();
    while !has(&live, "workspace/y") {
        live.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
    }
    // No longer named: stays as it was.
    has_workspace.store(false, Ordering::Relaxed);
    fs::remove_dir_all(&late).unwrap();
    live.kit.write("b", "1");
    live.commit();
    assert!(has(&live, "workspace/y") && has(&live, "state/b"));
}

#[test]
fn a_root_that_moves_is_captured_where_it_is_now() {
    let kit = Kit::new();
    kit.write("a", "1");
    let (one, two) = (kit.path("one"), kit.path("two"));
    for dir in [&one, &two] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("in"), dir.to_str().unwrap()).unwrap();
    }
    let mut settings = settings(&kit);
    let (state, named) = (kit.live(), kit.live().join("named"));
    fs::write(&named, one.to_str().unwrap()).unwrap();
    settings.roots = Box::new(move || {
        let workspace = fs::read_to_string(&named).unwrap();
        vec![root("state", &state), root("workspace", Path::new(&workspace))]
    });
    let mut live = Live::start_with(kit, settings);
    live.commit();
    let captured = |live: &Live| match &live.head_tree()[&b"workspace/in"[..]].kind {
        Kind::File { extents, .. } => extents.clone(),
        other => panic!("{other:?}"),
    };
    let first = captured(&live);
    live.kit.write("named", two.to_str().unwrap());
    while captured(&live) == first {
        live.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
    }
    // And it is watched there.
    fs::write(two.join("later"), "1").unwrap();
    while !live.head_tree().contains_key(&b"workspace/later"[..]) {
        live.event(|event| matches!(event, Event::SnapshotCommitted { .. }).then_some(()));
    }
}

#[test]
fn a_store_that_is_away_loses_nothing_and_is_said_once() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let mut live = Live::start(kit);
    let first = live.commit();
    faults.set(Fault::Errno(nix::libc::ENOTCONN));
    live.kit.write("b", "2");
    let why = live.event(|event| match event {
        Event::StoreUnavailable { why } => Some(why),
        _ => None,
    });
    assert!(why.contains("umount"), "{why}");
    live.kit.write("c", "3");
    assert!(live.runtime.block_on(live.engine.commit_now()).is_err());
    faults.set(Fault::CutPut(20));
    assert!(live.runtime.block_on(live.engine.commit_now()).is_err());
    faults.set(Fault::None);
    live.event(|event| matches!(event, Event::StoreRecovered { .. }).then_some(()));
    let now = live.commit();
    assert_eq!(now.parent, Some(first.id));
    assert!(
        now.id.seq > first.id.seq + 1,
        "the number of a failed commit is not used again"
    );
    let history = live.kit.history.clone();
    let tree = history.load(now.id).unwrap();
    assert!(tree.tree().contains_key(&b"state/b"[..]) && tree.tree().contains_key(&b"state/c"[..]));
    let mut said = 0;
    while let Ok(event) = live.events.try_recv() {
        said += u32::from(matches!(event, Event::StoreUnavailable { .. }));
    }
    assert_eq!(said, 0);
}

#[test]
fn the_last_commit_is_tried_until_its_deadline() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let live = Live::start(kit);
    live.commit();
    faults.set(Fault::Hang);
    live.kit.write("b", "2");
    let engine = live.engine.clone();
    let soon = || Instant::now() + Duration::from_millis(500);
    let finish = live.runtime.block_on(async { engine.finish(soon()).await });
    let Err(NotCommitted::TooLate(_)) = &finish else {
        panic!("{finish:?}")
    };
    assert!(finish.unwrap_err().is_for_want_of_the_store());
    assert!(live.engine.pending() >= 1, "what is not in a commit is counted");
    faults.set(Fault::None);
}

#[test]
fn what_a_store_that_hangs_is_given_is_held_once() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let live = Live::start(kit);
    live.commit();
    let spool = live.kit.path("spool");
    let held = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let files = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        files.filter(|file| file.starts_with(&spool)).count()
    };
    faults.set(Fault::Hang);
    live.kit.write("large", vec![7; 1 << 20]);
    for _ in 0..10 {
        assert!(live.runtime.block_on(live.engine.commit_now()).is_err());
        // One may be in the making by itself.
        assert!(held() <= 2, "{}", held());
    }
    faults.set(Fault::None);
    let after = live.commit();
    assert!(live.head_tree().contains_key(&b"state/large"[..]));
    assert_eq!(live.finish(), Some(after));
    while live.kit.history.store().stuck() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(held(), 0);
}

#[test]
fn the_last_commit_but_one_is_tried_as_long_and_is_not_the_end() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let mut live = Live::start(kit);
    live.commit();
    faults.set(Fault::Errno(nix::libc::ENOTCONN));
    live.kit.write("b", "2");
    let engine = live.engine.clone();
    let (told, asked) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        told.send(()).unwrap();
        runtime.unwrap().block_on(engine.commit_by(Instant::now() + DEADLINE))
    });
    asked.recv().unwrap();
    for _ in 0..2 {
        live.event(|event| matches!(event, Event::SnapshotFailed { .. }).then_some(()));
    }
    faults.set(Fault::None);
    let stopped = asking.join().unwrap().unwrap().unwrap();
    assert_eq!((stopped.reason, live.engine.pending()), (Reason::Final, 0));
    live.kit.write("c", "3");
    let last = live.finish().unwrap();
    assert_eq!((last.parent, last.reason), (Some(stopped.id), Reason::Final));
    for name in [&b"state/b"[..], b"state/c"] {
        assert!(live.head_tree().contains_key(name));
    }
}

#[test]
fn the_last_commit_is_tried_again_soon_however_long_the_store_was_away() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let mut live = Live::start(kit);
    live.commit();
    faults.set(Fault::Errno(nix::libc::ENOTCONN));
    live.kit.write("b", "2");
    for _ in 0..8 {
        assert!(live.runtime.block_on(live.engine.commit_now()).is_err());
    }
    let engine = live.engine.clone();
    let finish = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap().block_on(engine.finish(Instant::now() + DEADLINE))
    });
    // As the first two were, and no other would be without a stop.
    for _ in 0..5 {
        let is_soon = |event| matches!(event, Event::SnapshotFailed { retry_in_ms, .. } if retry_in_ms <= 1000);
        live.event(|event| is_soon(event).then_some(()));
    }
    faults.set(Fault::None);
    let last = finish.join().unwrap().unwrap().unwrap();
    assert_eq!(last.reason, Reason::Final);
    assert!(live.head_tree().contains_key(&b"state/b"[..]));
}

/// It is not the store that is in want of anything.
#[test]
fn a_fault_of_our_own_is_not_taken_for_a_missing_store() {
    let kit = Kit::new();
    kit.write("a", "1");
    let settings = Settings {
        gateway: Box::new(|| panic!("at every commit")),
        ..settings(&kit)
    };
    let mut live = Live::start_with(kit, settings);
    live.event(|event| matches!(event, Event::SnapshotFailed { .. }).then_some(()));
    let soon = Instant::now() + Duration::from_secs(1);
    let finish = live.runtime.block_on(live.engine.finish(soon)).unwrap_err();
    assert!(!finish.is_for_want_of_the_store(), "{finish:?}");
}

#[test]
fn a_pause_commits_nothing_and_forgets_nothing() {
    let kit = Kit::new();
    kit.write("a", "1");
    let live = Live::start(kit);
    live.commit();
    live.runtime.block_on(live.engine.pause()).unwrap();
    live.kit.write("b", "1");
    let asked = live.runtime.block_on(live.engine.commit_now());
    assert_eq!(asked, Err(NotCommitted::Paused), "nobody is left waiting");
    assert_eq!(live.objects(), 1);
    live.engine.resume(None);
    live.commit();
    assert!(live.head_tree().contains_key(&b"state/b"[..]));
}

#[test]
fn a_live_restore_is_committed_even_where_nothing_differs() {
    let kit = Kit::new();
    kit.write("a", "1");
    let live = Live::start(kit);
    let before = live.commit().id;
    live.runtime.block_on(live.engine.pause()).unwrap();
    let history = live.kit.history.clone();
    let generation = history.begin(ulid::Ulid::generate(), Some(before));
    let began = generation.id();
    live.engine.resume(Some((generation, history.load(before).unwrap())));
    let branch = live.commit().id;
    assert_eq!(branch.generation, began);
    assert_eq!(live.kit.reopened().restorable().unwrap(), [branch, before]);
    assert_eq!(live.commit().id, branch, "once is enough");
}

#[test]
fn what_changes_after_a_live_restore_is_committed_by_itself() {
    let kit = Kit::new();
    kit.write("deep/a", "1");
    let mut live = Live::start(kit);
    let before = live.commit().id;
    live.runtime.block_on(live.engine.pause()).unwrap();
    // As a restore does it: what was watched is somewhere else now.
    fs::rename(live.kit.live(), live.kit.path("live.before-restore-1")).unwrap();
    live.kit.write("deep/a", "1");
    let history = live.kit.history.clone();
    let generation = history.begin(ulid::Ulid::generate(), Some(before));
    live.engine.resume(Some((generation, history.load(before).unwrap())));
    live.settles();
    for n in 0..3 {
        live.kit.write(&format!("deep/{n}/b"), "2");
        live.settles();
    }
}

#[test]
fn what_cannot_be_captured_is_named_and_stops_nothing() {
    let kit = Kit::new();
    kit.write("good", "1");
    nix::unistd::mkfifo(&kit.live().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::net::UnixListener::bind(kit.live().join("socket")).unwrap();
    kit.write("broken.sqlite", [&b"SQLite format 3\0"[..], &[7; 5000]].concat());
    let deep = vec!["d"; 140].join("/");
    kit.write(&deep, "1");
    let mut live = Live::start(kit);
    let meta = live.commit();
    assert_eq!(meta.warnings.len(), 2, "{:?}", meta.warnings);
    assert!(
        meta.warnings
            .iter()
            .any(|line| line.starts_with("state/broken.sqlite: ") && line.contains("as they are"))
    );
    assert!(meta.warnings.iter().any(|line| line.contains("too deep")));
    let tree = live.head_tree();
    assert!(tree.contains_key(&b"state/good"[..]) && !tree.contains_key(&b"state/pipe"[..]));
    assert!(matches!(
        tree[&b"state/broken.sqlite"[..]].kind,
        Kind::File { len: 5016, .. }
    ));
    let back = live.restore().1;
    assert_eq!(
        fs::read(back.join("broken.sqlite")).unwrap(),
        fs::read(live.kit.live().join("broken.sqlite")).unwrap()
    );
}

#[test]
fn losing_most_of_the_state_is_committed_and_said() {
    let kit = Kit::new();
    (0..30).for_each(|n| kit.write(&format!("many/{n}"), "1"));
    kit.write("few", "1");
    let mut live = Live::start(kit);
    live.commit();
    fs::remove_dir_all(live.kit.live().join("many")).unwrap();
    live.commit();
    let why = live.event(|event| match event {
        Event::SnapshotSuspicious { why, .. } => Some(why),
        _ => None,
    });
    assert!(why.contains("files are gone"));
}

#[test]
fn what_is_given_another_name_during_a_commit_is_in_it_under_one_of_them() {
    let kit = Kit::new();
    let (one, two) = (kit.live().join("one"), kit.live().join("two"));
    kit.write("one", "kept");
    let mut live = Live::start(kit);
    live.commit();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = StopOnDrop(&done);
        scope.spawn(|| {
            while !done.0.load(Ordering::Relaxed) {
                for (from, to) in [(&one, &two), (&two, &one)] {
                    fs::rename(from, to).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        for round in 0..100 {
            live.kit.write("other", round.to_string());
            live.commit();
            let back = live.restore().1;
            assert!(
                back.join("one").exists() || back.join("two").exists(),
                "commit {round} has it under neither name"
            );
        }
        drop(done);
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_many_commits_scattered_is_gathered_when_it_is_quiet() {
    let kit = Kit::new();
    let mut live = Live::start(kit);
    for n in 0..40 {
        live.kit.write(&format!("{n}"), format!("content {n}"));
        live.commit();
    }
    let scattered = live.kit.reopened().load(live.commit().id).unwrap().objects().len();
    assert!(scattered >= 40, "{scattered}");
    loop {
        let commit = live.event(|event| match event {
            Event::SnapshotCommitted { commit, .. } => Some(commit),
            _ => None,
        });
        let history = live.kit.reopened();
        if history.info(commit).unwrap().0.meta.reason == Reason::Compact {
            assert!(history.load(commit).unwrap().objects().len() < 10);
            break;
        }
    }
    live.kit.write("more", "1");
    live.commit();
    live.settles();
}

const MAPPED: &str = r#"
import mmap, sys
file = open(sys.argv[1], "r+b")
map = mmap.mmap(file.fileno(), 0)
file.close()
map[0:1] = b"1"
print("once"); sys.stdin.readline()
map[0:1] = b"2"
map.close()
print("twice"); sys.stdin.readline()
"#;

#[test]
fn what_is_written_through_a_memory_map_is_captured_when_the_map_is_closed() {
    let kit = Kit::new();
    kit.write("mapped", vec![b'0'; 9000]);
    let mut writer = python(MAPPED, &kit.live().join("mapped"), 0);
    assert_eq!(writer.line(), "once");
    // Long enough for a file's times to tell what was before from what comes after.
    std::thread::sleep(Duration::from_millis(100));
    let mut live = Live::start(kit);
    live.commit();
    assert_eq!(fs::read(live.restore().1.join("mapped")).unwrap()[0], b'1');
    // The page is dirty already, so this write leaves no trace in the file's times.
    writer.tell();
    assert_eq!(writer.line(), "twice");
    live.commit();
    assert_eq!(fs::read(live.restore().1.join("mapped")).unwrap()[0], b'2');
}

#[test]
fn an_engine_that_fails_says_so_and_begins_anew() {
    let kit = Kit::new();
    kit.write("a", "1");
    let failed = Arc::new(AtomicBool::new(false));
    let mut settings = settings(&kit);
    let once = Arc::clone(&failed);
    settings.gateway = Box::new(move || {
        assert!(once.swap(true, Ordering::Relaxed), "a fault for the test");
        None
    });
    let mut live = Live::start_with(kit, settings);
    let why = live.event(|event| match event {
        Event::SnapshotFailed { why, .. } => Some(why),
        _ => None,
    });
    assert!(why.contains("a fault for the test"), "{why}");
    live.settles();
    live.kit.write("b", "2");
    live.settles();
}

#[test]
fn what_is_asked_for_has_the_end_of_a_log_that_grows() {
    let mut live = Live::start(Kit::new());
    live.kit.write("log", vec![7; 32 << 20]);
    live.commit();
    let path = live.kit.live().join("log");
    let mut log = fs::OpenOptions::new().append(true).open(path).unwrap();
    let in_snapshot = |live: &Live| match live.head_tree()[&b"state/log"[..]].kind {
        Kind::File { len, .. } => len,
        _ => 0,
    };
    for _ in 0..3 {
        log.write_all(b"line\n").unwrap();
        live.commit();
        assert_eq!(in_snapshot(&live), log.metadata().unwrap().len());
    }
    // Nobody has to ask, if there is time.
    log.write_all(b"line\n").unwrap();
    live.settles();
    log.write_all(b"the last line\n").unwrap();
    live.finish();
    assert_eq!(in_snapshot(&live), log.metadata().unwrap().len());
}

/// What is said of what is not durable: how many paths, since when in milliseconds, how many warnings.
fn pending(event: Event) -> Option<(u64, u64, usize)> {
    match event {
        Event::SnapshotPending {
            paths,
            oldest_ms,
            warnings,
        } => Some((paths, oldest_ms, warnings.len())),
        _ => None,
    }
}

#[test]
fn nothing_is_pending_only_when_every_change_is_durable() {
    let mut kit = Kit::new();
    let mut holder = python(LOCKED, &kit.live().join("db"), 0);
    assert_eq!(holder.line(), "ready");
    let (store, faults) = faulty::store(&kit.path("faulty"));
    kit.history = History::open(store, "default", None).unwrap();
    let mut live = Live::start(kit);
    live.commit();
    let is_durable = |event| pending(event).filter(|(paths, ..)| *paths == 0);
    live.event(is_durable);
    // A hung store: said before it is waited for, and from then on until it is durable.
    faults.set(Fault::Hang);
    live.kit.write("a", "1");
    live.event(|event| pending(event).filter(|(paths, ..)| *paths > 0));
    let mut last = 0;
    while last < 300 {
        last = live.event(|event| {
            let (paths, oldest, _) = pending(event)?;
            assert!(paths > 0, "while nothing is durable");
            Some(oldest)
        });
    }
    faults.set(Fault::None);
    live.event(is_durable);
    // What cannot be captured is committed by no commit, whatever else is.
    holder.tell();
    assert_eq!(holder.line(), "locked");
    assert_eq!(live.commit().warnings.len(), 1);
    live.kit.write("b", "1");
    live.commit();
    while let Ok(event) = live.events.try_recv() {
        if let Some(said) = pending(event) {
            last = said.0 * said.2 as u64;
        }
    }
    assert!(last > 0, "a locked database that is not in the last commit");
    holder.tell();
    assert_eq!(holder.line(), "free");
    live.event(|event| pending(event).filter(|said| (said.0, said.2) == (0, 0)));
}
