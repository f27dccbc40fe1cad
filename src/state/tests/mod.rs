//! Commits to a real directory and back, whole and damaged.

mod disks;
mod formats;
mod hostile;
pub mod kit;
mod model;
pub mod process;
pub mod python;
mod reader;
mod simulation;

use std::{
    cell::RefCell,
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use self::kit::{Kit, meta, picture, scan};
use super::{
    crypt::Key,
    diff,
    head::Head,
    model::Reason,
    recover::{RecoverError, Recovered},
    restore::{self, Progress, RestoreError},
    segment::SegmentWriter,
};
use crate::store::faulty::{self, Fault};

/// A live directory with one of everything.
fn furnish(kit: &Kit) {
    kit.write("openclaw.json", b"{}");
    kit.write("empty", b"");
    kit.write("agents/main/sessions/a.jsonl", "line\n".repeat(40_000));
    kit.write("odd/name with\nnewline", b"1");
    let big: Vec<u8> = (0..1_500_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    kit.write("big", big);
    let deep = vec!["d".repeat(50); 30].join("/");
    kit.write(&deep, b"deep");
    let live = kit.live();
    use std::os::unix::ffi::OsStrExt;
    fs::write(live.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"raw").unwrap();
    symlink("../elsewhere", live.join("link")).unwrap();
    fs::hard_link(live.join("big"), live.join("big-too")).unwrap();
    fs::set_permissions(live.join("openclaw.json"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(live.join("closed")).unwrap();
    fs::write(live.join("closed/in"), b"x").unwrap();
    fs::set_permissions(live.join("closed/in"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(live.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let sparse = fs::File::create(live.join("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", 3_000_000).unwrap();
    sparse.set_len(9_000_000).unwrap();
    let old = SystemTime::UNIX_EPOCH - Duration::new(5, 123_456_789);
    fs::File::open(live.join("empty")).unwrap().set_modified(old).unwrap();
}

fn restored(recovered: Result<Recovered, RecoverError>) -> (Head, restore::Placed, Vec<super::recover::Passed>) {
    match recovered.unwrap() {
        Recovered::Restored { head, placed, passed } => (*head, placed, passed),
        empty => panic!("{empty:?}"),
    }
}

#[test]
fn everything_comes_back_as_it_was() {
    for key in [None, Some(Key::derive("correct horse", "default"))] {
        let mut kit = Kit::with_key(key);
        furnish(&kit);
        let id = kit.commit();
        let (head, placed, passed) = restored(kit.recover_to("back"));
        assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
        assert_eq!((head.id(), placed.commit, passed), (Some(id), Some(id), vec![]));
        assert_eq!((placed.files, placed.bytes), kit.head.totals());
        assert_eq!(placed.aside, Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn a_delta_comes_back_and_costs_little() {
    let mut kit = Kit::new();
    furnish(&kit);
    kit.commit();
    let file = OpenOptions::new().write(true).open(kit.live().join("big")).unwrap();
    file.write_all_at(b"changed", 3_000_000).unwrap();
    fs::remove_file(kit.live().join("link")).unwrap();
    fs::rename(kit.live().join("agents"), kit.live().join("moved")).unwrap();
    let segment = kit.segment(Reason::Change).unwrap();
    assert!(!segment.is_checkpoint());
    assert!(segment.size() < 400_000, "{} bytes", segment.size());
    kit.history.commit(&segment).unwrap();
    kit.head.advance(segment);
    let (head, ..) = restored(kit.recover_to("back"));
    assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    assert_eq!(head.tree(), kit.head.tree());
    assert_eq!(head.totals(), kit.head.totals());
}

#[test]
fn deltas_make_way_for_a_checkpoint_in_time() {
    let mut kit = Kit::new();
    let mut since = 0;
    for n in 0..600 {
        kit.write(&format!("{}", n % 7), format!("{n}"));
        let segment = kit.segment(Reason::Change).unwrap();
        since = if segment.is_checkpoint() { 0 } else { since + 1 };
        assert!(since <= 256);
        kit.history.commit(&segment).unwrap();
        kit.head.advance(segment);
    }
    let (head, ..) = restored(kit.recover_to("back"));
    assert_eq!(head.tree(), kit.head.tree());
    assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
}

#[test]
fn present_state_moves_aside_and_nothing_is_lost() {
    let mut kit = Kit::new();
    kit.write("file", b"committed");
    kit.commit();
    kit.write("file", b"newer");
    kit.write("other", b"not in the snapshot");
    let (_, placed, _) = restored(kit.recover_to("live"));
    assert_eq!(fs::read(kit.live().join("file")).unwrap(), b"committed");
    assert!(!kit.live().join("other").exists());
    let [aside] = &placed.aside[..] else {
        panic!("{placed:?}")
    };
    assert_eq!(fs::read(aside.join("file")).unwrap(), b"newer");
    assert_eq!(fs::read(aside.join("other")).unwrap(), b"not in the snapshot");
    // An empty directory in the way is nothing to keep.
    fs::create_dir(kit.path("back")).unwrap();
    assert!(restored(kit.recover_to("back")).1.aside.is_empty());
}

/// Three commits, each with its own content of `file`.
fn three() -> (Kit, [super::model::CommitId; 3]) {
    let mut kit = Kit::new();
    let ids = ["one", "two", "three"].map(|content| {
        kit.write("file", content);
        kit.commit()
    });
    (kit, ids)
}

#[test]
fn a_damaged_commit_is_passed_over_and_named() {
    let (kit, ids) = three();
    let path = kit.object_path(ids[2]);
    let len = fs::metadata(&path).unwrap().len();
    let object = OpenOptions::new().write(true).open(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    // Every byte counts, wherever it is: magic, chunk, tree, info, trailer.
    for at in (8..len).step_by(7) {
        let byte = whole[at as usize];
        object.write_all_at(&[byte ^ 0x20], at).unwrap();
        let (head, _, passed) = restored(kit.recover_to("back"));
        assert_eq!(head.id(), Some(ids[1]), "a changed byte at {at} of {len} was not seen");
        assert_eq!((passed.len(), passed[0].id), (1, ids[2]));
        assert_eq!(fs::read(kit.path("back/file")).unwrap(), b"two");
        object.write_all_at(&[byte], at).unwrap();
        fs::remove_dir_all(kit.path("back")).unwrap();
    }
    for cut in [0, 1, 100, len - 1] {
        fs::write(&path, &whole[..cut as usize]).unwrap();
        assert_eq!(restored(kit.recover_to("back")).0.id(), Some(ids[1]));
    }
    fs::write(&path, b"something else altogether".repeat(100)).unwrap();
    assert_eq!(restored(kit.recover_to("back")).0.id(), Some(ids[1]));
    // A whole segment under another's name is not that other one.
    fs::copy(kit.object_path(ids[0]), &path).unwrap();
    let (head, _, passed) = restored(kit.recover_to("back"));
    assert_eq!(head.id(), Some(ids[1]));
    assert!(passed[0].why.contains("says it is commit"), "{passed:?}");
}

/// A kit of which the store fails on demand.
fn failing() -> (Kit, faulty::Faults, [super::model::CommitId; 3]) {
    let (mut kit, ids) = three();
    let (store, faults) = faulty::store(&kit.path("store"));
    kit.history = super::history::History::open(store, "default", None).unwrap();
    (kit, faults, ids)
}

#[test]
fn while_the_store_fails_nothing_is_taken_for_damaged() {
    let (kit, faults, ids) = failing();
    let targets = [("state".to_owned(), kit.path("back"))];
    let recover = || {
        super::recover::recover(
            &kit.history,
            &|_| Ok(targets.to_vec()),
            &kit.path("work"),
            &restore::Progress::default(),
        )
    };
    // Every read fails, though every listing works; then everything does.
    for fault in [Fault::Unreadable(".seg".into()), Fault::Errno(nix::libc::EIO)] {
        faults.set(fault);
        let tried = recover();
        assert!(matches!(tried, Err(RecoverError::Unknown(_))), "{tried:?}");
        assert!(!kit.path("back").exists());
    }
    faults.set(Fault::None);
    let (head, _, passed) = restored(recover());
    assert_eq!((head.id(), passed.len()), (Some(ids[2]), 0));
    // One object fails for good and the others do not.
    faults.set(Fault::Unreadable(format!("{:08}.seg", ids[2].seq)));
    let (head, _, passed) = restored(recover());
    assert_eq!((head.id(), passed[0].id), (Some(ids[1]), ids[2]));
    assert!(passed[0].why.contains("others can be read"), "{passed:?}");
}

#[test]
fn a_chunk_missing_with_its_object_is_damage_to_all_who_need_it() {
    let mut kit = Kit::new();
    kit.write("first", b"1");
    let first = kit.commit();
    kit.write("second", b"2");
    kit.commit();
    fs::remove_file(kit.object_path(first)).unwrap();
    let error = kit.recover_to("back").unwrap_err();
    assert!(
        matches!(&error, RecoverError::Exhausted { passed } if passed.len() == 1),
        "{error}"
    );
    assert!(!kit.path("back").exists());
}

#[test]
fn what_is_thinned_while_it_is_restored_is_not_damage_but_out_of_date() {
    // Found when it is read, and when all of it has been.
    for content in ["in its own object", ""] {
        let (mut kit, _) = three();
        kit.write("file", content);
        let newest = kit.commit();
        let (history, back, work) = (kit.reopened(), kit.path("back"), kit.path("work"));
        let (kit, tried) = (RefCell::new(kit), RefCell::new(Vec::new()));
        let targets = |head: &Head| {
            tried.borrow_mut().extend(head.id());
            if head.id() == Some(newest) {
                let mut kit = kit.borrow_mut();
                kit.write("file", "since then");
                kit.commit();
                fs::remove_file(kit.object_path(newest)).unwrap();
            }
            Ok(vec![("state".to_owned(), back.clone())])
        };
        let (head, _, passed) = restored(super::recover::recover(&history, &targets, &work, &Progress::default()));
        assert_eq!((head.id(), passed), (kit.borrow().head.id(), vec![]));
        assert_eq!(tried.borrow()[..], [newest, head.id().unwrap()]);
        assert_eq!(fs::read(back.join("file")).unwrap(), b"since then");
        let staged = fs::read_dir(back.parent().unwrap()).unwrap();
        let mut names = staged.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.any(|name| name.starts_with(restore::STAGED)));
    }
}

#[test]
fn a_store_where_nothing_was_ever_finished_is_empty_and_one_with_damage_is_not() {
    let kit = Kit::new();
    assert!(matches!(kit.recover_to("back"), Ok(Recovered::Empty { passed }) if passed.is_empty()));
    let mut kit = kit;
    kit.write("file", b"1");
    let id = kit.commit();
    let whole = fs::read(kit.object_path(id)).unwrap();
    fs::write(kit.object_path(id), &whole[..20]).unwrap();
    assert!(matches!(kit.recover_to("back"), Ok(Recovered::Empty { passed }) if passed.len() == 1));
    let mut damaged = whole.clone();
    let at = damaged.len() - 160;
    damaged[at] ^= 1;
    fs::write(kit.object_path(id), damaged).unwrap();
    assert!(matches!(kit.recover_to("back"), Err(RecoverError::Exhausted { .. })));
}

#[test]
fn the_commits_until_a_time_are_told_by_their_descriptions() {
    let mut kit = Kit::new();
    kit.write("file", "");
    let second = |n: i64| Timestamp::from_second(1_800_000_000 + n).unwrap();
    let mut ids: Vec<_> = (0..100)
        .map(|n| {
            let id = kit.generation.next_id();
            let mut writer = SegmentWriter::new(&kit.head, &kit.path("spool"), id, None).unwrap();
            let delta = diff::delta(kit.head.tree(), &scan(&kit.live(), &mut writer));
            let mut meta = meta(id, None, Reason::Change);
            meta.time = second(n);
            let segment = writer.finish(meta, delta).unwrap();
            kit.history.commit(&segment).unwrap();
            kit.head.advance(segment);
            id
        })
        .collect();
    ids.reverse();
    let until = |n| kit.history.until(&ids, second(n)).unwrap().first().map(|id| id.seq - 1);
    assert_eq!(
        [200, 99, 98, 52, 51, 3, 0].map(until),
        [99, 99, 98, 52, 51, 3, 0].map(Some)
    );
    assert_eq!(until(-1), None);
    // One that does not say when it was made may be the one that is looked for.
    fs::write(kit.object_path(ids[99 - 40]), b"cut").unwrap();
    assert_eq!([41, 40, 39, 38].map(until), [41, 40, 40, 38].map(Some));
    assert_eq!(kit.history.until(&ids, second(40)).unwrap().len(), 41);
}

#[test]
fn a_boot_that_never_finished_a_commit_does_not_hide_one_that_did() {
    let (mut kit, ids) = three();
    // Two boots from the same commit at one time; the newer dies over its first commit.
    let later = kit.reopened().begin(ulid::Ulid::generate(), Some(ids[0]));
    kit.reboot();
    kit.write("file", b"four");
    let four = kit.commit();
    let dead = kit.reopened().begin(
        ulid::Ulid::from_parts(later.id().timestamp_ms() + 60_000, 0),
        Some(ids[0]),
    );
    let dir = kit.path(&format!("store/default/v1/{}.from.{}/000000", dead.id(), ids[0]));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("00000001.seg"), b"").unwrap();
    let (head, _, passed) = restored(kit.recover_to("back"));
    assert_eq!(head.id(), Some(four));
    assert_eq!(passed.len(), 1);
}

#[test]
fn two_at_once_both_keep_their_history_and_the_later_is_followed() {
    let (mut old, _) = three();
    let mut new = Kit::new();
    new.history = old.reopened();
    let (head, ..) = restored(old.recover_to("new"));
    let base = head.id();
    new.generation = new.history.begin(ulid::Ulid::generate(), base);
    new.head = head;
    new.write("file", b"of the new one");
    let of_new = new.commit();
    old.write("file", b"of the old one");
    let of_old = old.commit();
    let (head, ..) = restored(old.recover_to("back"));
    assert_eq!(head.id(), Some(of_new));
    let history = old.reopened();
    let (listed, problems) = history.list().unwrap();
    assert!(problems.is_empty());
    let on_line = |id| listed.iter().find(|listed| listed.meta.id == id).unwrap().on_line;
    assert!(on_line(of_new) && on_line(base.unwrap()) && !on_line(of_old));
    // The branch is there by its id.
    let head = history.load(of_old).unwrap();
    let to = old.path("branch");
    restore::restore_into_empty_dir(&history, &head, &to, &Progress::default()).unwrap();
    assert_eq!(fs::read(to.join("state/file")).unwrap(), b"of the old one");
}

#[test]
fn reboots_make_one_line() {
    let (mut kit, _) = three();
    for n in 0..5 {
        kit.reboot();
        kit.write("file", format!("boot {n}"));
        kit.commit();
    }
    let (head, ..) = restored(kit.recover_to("back"));
    assert_eq!(head.id(), kit.head.id());
    let (listed, _) = kit.reopened().list().unwrap();
    assert_eq!(listed.len(), 8);
    assert!(listed.iter().all(|listed| listed.on_line));
    assert_eq!(kit.reopened().restorable().unwrap().len(), 8);
}

#[test]
fn a_restore_into_a_directory_wants_it_empty() {
    let (kit, ids) = three();
    let head = kit.history.load(ids[1]).unwrap();
    let to = kit.path("to");
    let restore = || restore::restore_into_empty_dir(&kit.history, &head, &to, &Progress::default());
    restore().unwrap();
    assert_eq!(fs::read(to.join("state/file")).unwrap(), b"two");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    assert!(matches!(restore(), Err(RestoreError::NotEmpty(_))));
}

#[test]
fn stray_and_empty_directories_in_a_store_hide_no_commit() {
    let mut kit = Kit::new();
    kit.write("a", "1");
    let id = kit.commit();
    let generation = kit.object_path(id).ancestors().nth(2).unwrap().to_owned();
    fs::create_dir(generation.join("000001")).unwrap();
    fs::create_dir(generation.join("stray")).unwrap();
    let name = generation.file_name().unwrap().to_str().unwrap();
    fs::create_dir(generation.with_file_name(format!("{}.from.{id}", name.to_lowercase()))).unwrap();
    let history = kit.reopened();
    assert_eq!(history.newest(id.generation).unwrap(), Some(id));
    assert_eq!(history.restorable().unwrap(), [id]);
}

#[test]
fn a_stray_directory_of_a_time_to_come_is_no_generation_unless_something_is_in_it() {
    let kit = Kit::new();
    let stray = kit.path(&format!("store/default/v1/{}", ulid::Ulid::max()));
    fs::create_dir_all(&stray).unwrap();
    let history = kit.reopened();
    assert_eq!(history.generations().len(), 0);
    let proposed = ulid::Ulid::generate();
    assert_eq!(history.begin(proposed, None).id(), proposed);
    fs::write(stray.join("begun"), "").unwrap();
    assert_eq!(kit.reopened().generations().len(), 1);
}
