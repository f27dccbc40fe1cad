//! A store that loses what it was given.

use super::*;
use crate::state::{
    model::{Chunk, Extent},
    restore::Progress,
    verify::verify,
};

/// Changes a byte of the chunk that a file or database begins with, in the object that it is in.
fn damage(live: &Live, path: &str) {
    let chunk = first_chunk(live, path);
    let object = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(live.kit.object_path(chunk.at.commit))
        .unwrap();
    let (at, mut byte) = (chunk.at.offset + u64::from(chunk.at.len) / 2, [0]);
    object.read_exact_at(&mut byte, at).unwrap();
    object.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn first_chunk(live: &Live, path: &str) -> Chunk {
    let history = live.kit.reopened();
    let head = history.load(history.restorable().unwrap()[0]).unwrap();
    let (Kind::File { extents, .. } | Kind::Sqlite { extents, .. }) = &head.tree()[path.as_bytes()].kind else {
        panic!("{path} has no content")
    };
    let Extent::Data { chunk, .. } = extents[0] else {
        panic!("{path} begins with a hole")
    };
    *head.chunk(&chunk).unwrap()
}

/// Commits, one after the other, what is to be gathered once it is quiet.
fn scatter(live: &Live) {
    for n in 0..40 {
        live.kit.write(&format!("many/{n}"), format!("content {n}"));
        live.commit();
    }
}

/// The next commit that is wanted, of those whose objects are there.
fn committed(live: &mut Live, is_wanted: impl Fn(&Meta) -> bool) -> Meta {
    let history = live.kit.history.clone();
    live.event(|event| match event {
        Event::SnapshotCommitted { commit, .. } => {
            let info = history.info(commit).ok();
            info.map(|(info, _)| info.meta).filter(&is_wanted)
        }
        _ => None,
    })
}

fn says_lost(meta: &Meta) -> bool {
    says(&meta.warnings)
}

fn says(warnings: &[String]) -> bool {
    warnings.iter().any(|line| line.starts_with("the store has lost"))
}

/// That nothing that the newest commit needs is damaged.
fn is_sound(live: &Live) {
    let newest = live.kit.reopened().restorable().unwrap()[0];
    let flaws = verify(&live.kit.reopened(), &[newest], &Progress::default());
    assert_eq!(flaws.unwrap(), []);
}

/// And that a boot restores what is there now.
fn comes_back(live: &mut Live) {
    is_sound(live);
    assert_eq!(live.restore().0, picture(&live.kit.live()));
}

/// That it is said, put again, and then of no more account.
fn heals(live: &mut Live) {
    live.event(|event| match event {
        Event::SnapshotPending { warnings, .. } => says(&warnings).then_some(()),
        _ => None,
    });
    let healed = committed(live, says_lost);
    assert_eq!(healed.reason, Reason::Change);
    comes_back(live);
    committed(live, |meta| meta.reason == Reason::Compact);
    comes_back(live);
    assert_eq!(live.commit().warnings, Vec::<String>::new());
}

#[test]
fn what_a_damaged_object_held_is_put_again() {
    let kit = Kit::new();
    kit.write("kept", "unchanged ".repeat(300));
    rusqlite::Connection::open(kit.live().join("db"))
        .and_then(|db| db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(50000))"))
        .unwrap();
    let mut live = Live::start(kit);
    live.commit();
    damage(&live, "state/kept");
    damage(&live, "state/db");
    scatter(&live);
    heals(&mut live);
}

#[test]
fn what_an_object_held_that_is_gone_is_put_again() {
    let kit = Kit::new();
    kit.write("kept", "unchanged");
    let mut live = Live::start(kit);
    let first = live.commit().id;
    scatter(&live);
    fs::remove_file(live.kit.object_path(first)).unwrap();
    heals(&mut live);
}

#[test]
fn a_lost_checkpoint_without_content_is_followed_by_another() {
    let kit = Kit::new();
    kit.write("a", "1");
    let mut live = Live::start(kit);
    let checkpoint = live.commit().id;
    live.kit.write("a", "2");
    live.commit();
    fs::remove_file(live.kit.object_path(checkpoint)).unwrap();
    let told = live.engine.0.commands.send(Command::Broken(vec![checkpoint]));
    told.unwrap();
    committed(&mut live, says_lost);
    comes_back(&mut live);
}

#[test]
fn what_the_disk_does_not_have_either_is_named_and_holds_up_nothing() {
    let kit = Kit::new();
    let workspace = kit.path("workspace");
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("kept"), "unchanged").unwrap();
    fs::write(workspace.join("lost"), "nowhere else").unwrap();
    fs::hard_link(workspace.join("lost"), workspace.join("name")).unwrap();
    let mut settings = settings(&kit);
    let has_workspace = Arc::new(AtomicBool::new(true));
    let (state, place, named) = (kit.live(), workspace.clone(), Arc::clone(&has_workspace));
    settings.roots = Box::new(move || {
        let mut roots = vec![root("state", &state)];
        roots.extend(named.load(Ordering::Relaxed).then(|| root("workspace", &place)));
        roots
    });
    let mut live = Live::start_with(kit, settings);
    live.commit();
    damage(&live, "workspace/lost");
    // No longer named: stays in the snapshot as it was.
    has_workspace.store(false, Ordering::Relaxed);
    fs::remove_dir_all(&workspace).unwrap();
    scatter(&live);
    let left_out = |meta: &Meta| {
        let is_named = |name| meta.warnings.iter().any(|line| line.starts_with(name));
        ["workspace/kept: ", "workspace/lost: ", "workspace/name: "].map(is_named)
    };
    let is_there = |live: &Live| {
        let tree = live.head_tree();
        ["workspace/kept", "workspace/lost", "workspace/name"].map(|name| tree.contains_key(name.as_bytes()))
    };
    let healed = committed(&mut live, says_lost);
    assert_eq!(left_out(&healed), [false, true, true], "{:?}", healed.warnings);
    is_sound(&live);
    committed(&mut live, |meta| meta.reason == Reason::Compact);
    is_sound(&live);
    live.kit.write("more", "1");
    let later = live.commit();
    assert_eq!(left_out(&later), [false, true, true], "it goes on being said");
    assert_eq!(is_there(&live), [true, false, false]);
}
