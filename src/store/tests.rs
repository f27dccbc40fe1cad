use std::{fs, io::Write};

use super::{
    faulty::{self, Fault},
    *,
};

fn spool(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn plain(dir: &Path) -> Store {
    Store::open(dir, Expect::Directory, Patience::default())
}

#[test]
fn an_object_is_listed_read_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = plain(&dir.path().join("made"));
    assert_eq!(store.list("a").unwrap(), []);
    store.put("a/b/one.seg", &spool(b"0123456789"), 10).unwrap();
    let item = |name: &str, is_dir| Item {
        name: name.into(),
        is_dir,
    };
    assert_eq!(store.list("a").unwrap(), [item("b", true)]);
    assert_eq!(store.list("a/b").unwrap(), [item("one.seg", false)]);
    let object = store.get("a/b/one.seg").unwrap();
    assert_eq!(object.len(), 10);
    assert_eq!(object.read(2..5).unwrap(), b"234");
    assert_eq!(object.read(8..50).unwrap(), b"89");
    store.delete_dir("a/b").unwrap();
    store.delete("a/b/one.seg").unwrap();
    store.delete_dir("a/b").unwrap();
    assert_eq!(store.list("a").unwrap(), []);
    assert!(store.get("a/b/one.seg").err().unwrap().is_not_found());
}

#[test]
fn an_object_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = plain(dir.path());
    store.put("one", &spool(b"first"), 5).unwrap();
    assert!(matches!(
        store.put("one", &spool(b"other"), 5),
        Err(StoreError::Exists { .. })
    ));
    assert_eq!(store.get("one").unwrap().read(0..5).unwrap(), b"first");
}

#[test]
fn nothing_is_written_where_the_mount_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Expect::MountAt(dir.path().to_owned()), Patience::default());
    for result in [
        store.check(),
        store.put("a/one", &spool(b"1"), 1),
        store.list("").map(drop),
    ] {
        assert!(matches!(result, Err(StoreError::NotAMount { .. })), "{result:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_below_the_expected_mount_is_on_it() {
    let store = Store::open(
        Path::new("/proc/self/task"),
        Expect::MountAt("/proc".into()),
        Patience::default(),
    );
    store.check().unwrap();
}

#[test]
fn a_directory_that_is_missing_below_the_expected_mount_is_made_on_it() {
    // A mount that every Linux has, and that anybody may write to.
    let (point, dir) = (Path::new("/dev/shm"), tempfile::tempdir_in("/dev/shm").unwrap());
    let root = dir.path().join("to/store");
    let store = Store::open(&root, Expect::MountAt(point.to_owned()), Patience::default());
    store.check().unwrap();
    assert!(store.list("").unwrap().is_empty());
    assert!(!root.exists(), "a look makes nothing");
    store.put("a/one", &spool(b"1"), 1).unwrap();
    assert_eq!(fs::read(root.join("a/one")).unwrap(), b"1");

    let below = Store::open(&root, Expect::MountAt("/dev".into()), Patience::default());
    below.check().unwrap();
    let elsewhere = Store::open(&root, Expect::MountAt("/proc".into()), Patience::default());
    assert!(matches!(elsewhere.check(), Err(StoreError::NotAMount { .. })));
}

#[test]
fn a_hang_is_an_error_in_time_and_over_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults) = faulty::store(dir.path());
    faults.set(Fault::Hang);
    assert!(matches!(store.list(""), Err(StoreError::TimedOut { .. })));
    assert!(matches!(
        store.put("one", &spool(b"1"), 1),
        Err(StoreError::TimedOut { .. })
    ));
    assert_eq!(store.stuck(), 2);
    faults.set(Fault::None);
    store.put("two", &spool(b"2"), 1).unwrap();
    while store.stuck() > 0 {
        std::thread::yield_now();
    }
    // The put that was given up went through after all, whole.
    assert_eq!(store.get("one").unwrap().read(0..9).unwrap(), b"1");
}

#[test]
fn errors_say_which_kind_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults) = faulty::store(dir.path());
    let with = |errno| {
        faults.set(Fault::Errno(errno));
        store.list("").unwrap_err()
    };
    assert!(matches!(with(nix::libc::ENOTCONN), StoreError::Disconnected { .. }));
    assert!(matches!(with(nix::libc::ENOSPC), StoreError::NoSpace { .. }));
    assert!(matches!(with(nix::libc::EIO), StoreError::Io { .. }));
    assert!(matches!(with(nix::libc::EACCES), StoreError::Denied { .. }));
}

#[test]
fn a_spool_that_is_too_short_leaves_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = plain(dir.path());
    assert!(store.put("one", &spool(b"short"), 50).is_err());
    assert_eq!(store.list("").unwrap(), []);
}

#[test]
fn a_place_that_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (file, missing) = (dir.path().join("file"), dir.path().join("missing"));
    fs::write(&file, "in the way").unwrap();
    let open = |path: &Path, expect| Store::open(path, expect, Patience::default());
    for expect in [Expect::Directory, Expect::Existing] {
        let store = open(&file, expect);
        assert!(matches!(store.list("a"), Err(StoreError::NotADirectory { .. })));
        assert!(matches!(
            store.put("a/one", &spool(b"1"), 1),
            Err(StoreError::NotADirectory { .. } | StoreError::Exists { .. })
        ));
    }
    assert!(matches!(
        open(&missing, Expect::Existing).list("a"),
        Err(StoreError::Missing { .. })
    ));
    assert!(!missing.exists());
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}
