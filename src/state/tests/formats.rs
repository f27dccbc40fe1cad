//! Objects that are encrypted, or of a later version of the format.

use std::{fs, path::Path};

use super::{
    kit::{self, Kit, meta, picture},
    restored, three,
};
use crate::state::{
    crypt::Key,
    diff,
    head::Head,
    history::History,
    model::{Reason, Tree},
    prune::Pruner,
    recover::RecoverError,
    segment::{SegmentWriter, reader::ReadError},
};

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
        kit.history = History::open(store, "default", key).unwrap();
        let error = kit.recover_to("back").unwrap_err();
        assert!(
            matches!(&error, RecoverError::Key(_)) && error.to_string().contains(word),
            "{error}"
        );
    }
    kit.history = History::open(kit.history.store().clone(), "default", right).unwrap();
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
    let without_key = || History::open(unsealed.clone(), "default", None).unwrap();
    kit.history = History::open(unsealed.clone(), "default", Some(key)).unwrap();
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
        .finish(meta(sealed, None, Reason::Change), diff::delta(&Tree::new(), &tree))
        .unwrap();
    fs::remove_file(kit.object_path(sealed)).unwrap();
    without_key().commit(&segment).unwrap();
    let error = kit.reopened().load(delta).unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
}

/// Makes an object one of a later version of the format, as that version would.
fn make_newer(path: &Path) {
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
    let error = Pruner::new(kit.reopened()).prune(None, later).unwrap_err();
    assert!(matches!(error, ReadError::Version { .. }), "{error}");
    assert!(ids.iter().all(|id| kit.object_path(*id).exists()));
}
