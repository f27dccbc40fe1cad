//! Commits to a real directory and back, whole, damaged and hostile.

pub mod kit;
mod model;
pub mod process;
pub mod python;
mod reader;
mod simulation;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use self::kit::{Kit, meta, picture};
use super::{
    crypt::Key,
    head::Head,
    model::{Delta, Entry, Extent, Hash, Kind, Reason, Tree},
    recover::{RecoverError, Recovered},
    restore::{self, Progress, RestoreError},
    segment::{SegmentError, SegmentWriter, reader::ReadError},
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
fn a_wrong_key_is_no_damage_and_names_show_nowhere() {
    let mut kit = Kit::with_key(Some(Key::derive("right", "default")));
    kit.write("a-name-to-hide", b"a content to hide, and to hide, and to hide");
    let id = kit.commit();
    let stored = fs::read(kit.object_path(id)).unwrap();
    for secret in [&b"a-name-to-hide"[..], b"to hide, and"] {
        assert!(!stored.windows(secret.len()).any(|window| window == secret));
    }
    let right = kit.history.key().cloned();
    for (key, word) in [
        (None, "set MOLTINIT_KEY"),
        (Some(Key::derive("wrong", "default")), "another key"),
    ] {
        let store = kit.history.store().clone();
        kit.history = super::history::History::open(store, "default", key).unwrap();
        let error = kit.recover_to("back").unwrap_err();
        assert!(
            matches!(&error, RecoverError::Key(_)) && error.to_string().contains(word),
            "{error}"
        );
    }
    kit.history = super::history::History::open(kit.history.store().clone(), "default", right).unwrap();
    restored(kit.recover_to("back"));
}

#[test]
fn encryption_may_begin_later_and_from_then_on_nothing_plain_is_taken() {
    let key = Key::derive("right", "default");
    let mut kit = Kit::new();
    kit.write("file", b"from before");
    kit.write("kept", b"from before too");
    let plain = kit.commit();
    let unsealed = kit.history.store().clone();
    let without_key = || super::history::History::open(unsealed.clone(), "default", None).unwrap();
    kit.history = super::history::History::open(unsealed.clone(), "default", Some(key)).unwrap();
    kit.reboot();
    assert_eq!(kit.head.id(), Some(plain));
    kit.write("file", b"sealed");
    let sealed = kit.commit();
    kit.write("file", b"sealed again");
    let delta = kit.commit();
    let (head, _, passed) = restored(kit.recover_to("back"));
    assert_eq!((head.id(), passed), (Some(delta), vec![]));
    assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    // What was there before is, and is restored when it is asked for.
    assert!(kit.reopened().load(plain).is_ok());
    // Somebody without the key adds a generation, which would be the one to follow.
    let mut other = Kit::new();
    other.history = without_key();
    other.generation = other.history.begin(ulid::Ulid::generate(), Some(delta));
    other.write("file", b"not the agent's");
    let forged = other.commit();
    let (head, _, passed) = restored(kit.recover_to("back"));
    assert_eq!(head.id(), Some(delta));
    assert_eq!(passed[0].id, forged);
    assert!(passed[0].why.contains("not encrypted"), "{passed:?}");
    // Or puts a tree of their own below a delta.
    let head = Head::default();
    let mut writer = SegmentWriter::new(&head, &kit.path("spool"), sealed, None).unwrap();
    let tree = kit::scan(&other.live(), &mut writer);
    let segment = writer
        .finish(
            meta(sealed, None, Reason::Change),
            super::diff::delta(&Tree::new(), &tree),
        )
        .unwrap();
    fs::remove_file(kit.object_path(sealed)).unwrap();
    without_key().commit(&segment).unwrap();
    let error = kit.reopened().load(delta).unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
}

/// Makes an object one of a later version of the format, as that version would.
fn make_newer(path: &std::path::Path) {
    use sha2::{Digest, Sha256};
    let mut bytes = fs::read(path).unwrap();
    let trailer = bytes.len() - 152;
    bytes[trailer + 8] = 2;
    let field = |at: usize| u64::from_le_bytes(bytes[trailer + at..][..8].try_into().unwrap()) as usize;
    let info = field(56) + field(64);
    let sum = Sha256::digest(&bytes[info..trailer + 120]);
    bytes[trailer + 120..].copy_from_slice(&sum);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_newer_format_is_no_damage_and_nothing_older_is_taken_or_removed_for_it() {
    let (kit, ids) = three();
    make_newer(&kit.object_path(ids[2]));
    let error = kit.recover_to("back").unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    assert!(
        matches!(error, RecoverError::Key(ReadError::Version { version: 2, .. })),
        "{error:?}"
    );
    assert!(!kit.path("back").exists());
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1000);
    let error = super::prune::Pruner::new(kit.reopened())
        .prune(None, later)
        .unwrap_err();
    assert!(matches!(error, ReadError::Version { .. }), "{error}");
    assert!(ids.iter().all(|id| kit.object_path(*id).exists()));
}

fn dir() -> Entry {
    Entry {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        kind: Kind::Dir,
    }
}

fn entry(kind: Kind) -> Entry {
    Entry { kind, ..dir() }
}

/// Commits a tree as it is, as somebody who can write to the bucket may.
fn commit_unchecked(kit: &mut Kit, tree: Tree, chunks: &[&[u8]]) -> super::model::CommitId {
    let head = Head::default();
    let id = kit.generation.next_id();
    let mut writer = SegmentWriter::new(&head, &kit.path("spool"), id, None).unwrap();
    for chunk in chunks {
        writer.put(chunk).unwrap();
    }
    let first = writer.finish(meta(id, None, Reason::Change), Delta::default()).unwrap();
    let stored: Vec<_> = first.chunks.values().copied().collect();
    kit.history.commit(&first).unwrap();
    let sources = [super::segment::Source {
        commit: id,
        size: first.size(),
    }];
    let head = Head::loaded(id, tree, stored, &sources);
    let id = kit.generation.next_id();
    let writer = SegmentWriter::new(&head, &kit.path("spool"), id, None).unwrap();
    let second = writer.finish(meta(id, None, Reason::Change), Delta::default()).unwrap();
    kit.history.commit(&second).unwrap();
    id
}

#[test]
fn hostile_trees_are_refused_and_touch_nothing() {
    let bytes: &[u8] = b"0123456789";
    let data = |from, len| Extent::Data {
        chunk: Hash::of(bytes),
        from,
        len,
    };
    let file = |len, extents| entry(Kind::File { len, extents });
    let good = || file(10, vec![data(0, 10)]);
    let link = |target: &str| entry(Kind::Symlink { target: target.into() });
    let cases: Vec<(&str, Vec<(&str, Entry)>)> = vec![
        ("absolute", vec![("/etc/passwd", good())]),
        ("parent", vec![("state/../../up", good())]),
        ("parent", vec![("..", dir())]),
        ("dot", vec![("state/./x", good())]),
        ("empty part", vec![("state//x", good())]),
        ("nul", vec![("state/a\0b", good())]),
        (
            "through a link",
            vec![("state/l", link("/etc")), ("state/l/passwd", good())],
        ),
        ("through a file", vec![("state/f", good()), ("state/f/x", good())]),
        ("no parent", vec![("state/none/x", good())]),
        ("root is a link", vec![("other", link("/etc")), ("other/x", good())]),
        ("too long", vec![("state/f", file(11, vec![data(0, 10)]))]),
        ("too short", vec![("state/f", file(9, vec![data(0, 10)]))]),
        ("beyond its chunk", vec![("state/f", file(10, vec![data(1, 10)]))]),
        ("wraps around", vec![("state/f", file(10, vec![data(u32::MAX, 10)]))]),
        (
            "huge",
            vec![("state/f", file(u64::MAX, vec![Extent::Hole { len: u64::MAX }]))],
        ),
        (
            "hard link out",
            vec![(
                "state/h",
                entry(Kind::HardLink {
                    to: b"/etc/passwd".to_vec(),
                }),
            )],
        ),
        (
            "hard link to a link",
            vec![
                ("state/a", link("/etc/passwd")),
                (
                    "state/h",
                    entry(Kind::HardLink {
                        to: b"state/a".to_vec(),
                    }),
                ),
            ],
        ),
        (
            "hard link to itself",
            vec![(
                "state/h",
                entry(Kind::HardLink {
                    to: b"state/h".to_vec(),
                }),
            )],
        ),
        (
            "mode",
            vec![(
                "state/f",
                Entry {
                    mode: 0o100644,
                    ..good()
                },
            )],
        ),
        ("empty link", vec![("state/l", link(""))]),
    ];
    for (name, entries) in cases {
        let mut kit = Kit::new();
        let mut tree = Tree::from([(b"state".to_vec(), dir())]);
        tree.extend(
            entries
                .into_iter()
                .map(|(path, entry)| (path.as_bytes().to_vec(), entry)),
        );
        let id = commit_unchecked(&mut kit, tree, &[bytes]);
        let before = fs::read_dir(kit.path("")).unwrap().count();
        let error = kit.reopened().load(id).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{name}: {error}");
        // The commit before it, which is empty, is taken instead.
        let (_, placed, passed) = restored(kit.recover_to("back"));
        assert_eq!((passed.len(), placed.files), (1, 0), "{name}");
        assert!(fs::read_dir(kit.path("")).unwrap().count() <= before + 1, "{name}");
    }
}

#[test]
fn a_tree_that_could_not_be_restored_is_not_committed() {
    let kit = Kit::new();
    let mut generation = kit.reopened().begin(ulid::Ulid::generate(), None);
    let mut refused = |head: &Head, delta: Delta| {
        let id = generation.next_id();
        let writer = SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap();
        matches!(
            writer.finish(meta(id, None, Reason::Change), delta),
            Err(SegmentError::Tree(_))
        )
    };
    let upsert = |path: &str, entry| (path.as_bytes().to_vec(), entry);
    let empty = || {
        entry(Kind::File {
            len: 0,
            extents: vec![],
        })
    };
    let orphan = Delta {
        upsert: vec![upsert("state/f", empty())],
        remove: vec![],
    };
    assert!(refused(&Head::default(), orphan));
    let tree = Tree::from([
        upsert("state", dir()),
        upsert("state/d", dir()),
        upsert("state/d/f", empty()),
        upsert(
            "state/h",
            entry(Kind::HardLink {
                to: b"state/d/f".to_vec(),
            }),
        ),
    ]);
    let head = Head::loaded(generation_id(), tree, vec![], &[]);
    let removing = |paths: &[&str]| Delta {
        upsert: vec![],
        remove: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
    };
    assert!(refused(&head, removing(&["state/d"])));
    assert!(refused(&head, removing(&["state/d", "state/d/f"])));
    assert!(!refused(&head, removing(&["state/d", "state/d/f", "state/h"])));
    let to_file = Delta {
        upsert: vec![upsert("state/d", empty())],
        remove: vec![],
    };
    assert!(refused(&head, to_file));
}

fn generation_id() -> super::model::CommitId {
    super::model::CommitId {
        generation: ulid::Ulid::generate(),
        seq: 1,
    }
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
fn a_sidecar_is_not_restored_beside_its_database() {
    let mut kit = Kit::new();
    let bytes: &[u8] = b"0123456789";
    let extents = vec![Extent::Data {
        chunk: Hash::of(bytes),
        from: 0,
        len: 10,
    }];
    let tree = Tree::from([
        (b"state".to_vec(), dir()),
        (
            b"state/db".to_vec(),
            entry(Kind::Sqlite {
                len: 10,
                page_size: 512,
                extents: extents.clone(),
            }),
        ),
        (
            b"state/db-wal".to_vec(),
            entry(Kind::File {
                len: 10,
                extents: extents.clone(),
            }),
        ),
        (b"state/other-wal".to_vec(), entry(Kind::File { len: 10, extents })),
        (
            b"state/z".to_vec(),
            entry(Kind::HardLink {
                to: b"state/db-wal".to_vec(),
            }),
        ),
    ]);
    commit_unchecked(&mut kit, tree, &[bytes]);
    restored(kit.recover_to("back"));
    let mut names: Vec<_> = fs::read_dir(kit.path("back"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["db", "other-wal"]);
}
