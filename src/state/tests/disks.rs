//! Disks that are full, and targets with mounts in them, each in a mount namespace of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use super::{kit::Kit, process::again_with_mounts};
use crate::{
    neighbour::run,
    pid1::Exit,
    state::{
        recover::{RecoverError, Recovered},
        restore::RestoreError,
        saved::Saved,
    },
    store::mounts,
};

/// Only set for the process that may mount.
const ALONE: &str = "MOLTINIT_TEST_MOUNTS";

/// Whether this is that process; the other waits for it.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let done = run(again_with_mounts(module_path!(), name, ALONE, Path::new("/")));
    let said = String::from_utf8_lossy(&done.stderr) + String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.exit, Exit::Code(0), "{said}");
    false
}

fn tmpfs(at: &Path, flags: MsFlags, options: &str) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).unwrap();
}

fn aside(recovered: Result<Recovered, RecoverError>) -> Vec<PathBuf> {
    match recovered.unwrap() {
        Recovered::Restored { placed, .. } => placed.aside,
        Recovered::Empty { .. } => panic!("there is a commit"),
    }
}

#[test]
fn where_there_is_no_room_copies_make_way_and_nothing_else() {
    if !is_alone("where_there_is_no_room_copies_make_way_and_nothing_else") {
        return;
    }
    let mut kit = Kit::new();
    kit.write("big", vec![b'x'; 2 << 20]);
    kit.commit();
    tmpfs(&kit.path("small"), MsFlags::empty(), "size=9m");
    let restore = || kit.recover_to("small/live");
    let saved = Saved::in_dir(&kit.path("work"));
    for _ in 0..8 {
        aside(restore());
    }
    let error = (0..8).find_map(|_| {
        saved.set(None);
        restore().err()
    });
    let error = error.expect("a full disk");
    let RecoverError::Local(RestoreError::NoRoom { asides, .. }) = &error else {
        panic!("{error}")
    };
    let is_unsaved = |aside: &&PathBuf| aside.to_str().unwrap().ends_with("-unsaved");
    assert!(asides.iter().filter(is_unsaved).count() >= 2, "{asides:?}");
    for aside in asides {
        assert!(aside.join("big").exists() && error.to_string().contains(aside.to_str().unwrap()));
    }
}

#[test]
fn mounts_in_a_target_stay_and_are_restored_where_they_can_be() {
    if !is_alone("mounts_in_a_target_stay_and_are_restored_where_they_can_be") {
        return;
    }
    let mut kit = Kit::new();
    let files = ["file", "fixed/file", "deep/volume/dir/file", "deep/file"];
    files.iter().for_each(|file| kit.write(file, "restored"));
    kit.commit();
    let back = kit.path("back");
    let (file, fixed, volume) = (back.join("file"), back.join("fixed"), back.join("deep/volume"));
    tmpfs(&fixed, MsFlags::empty(), "");
    tmpfs(&volume, MsFlags::empty(), "");
    for name in ["file", "theirs", "fixed/file", "deep/volume/dir/file", "deep/file"] {
        let path = back.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "before").unwrap();
    }
    fs::write(kit.path("theirs"), "theirs").unwrap();
    let bind = Some(kit.path("theirs"));
    mount(bind.as_deref(), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    write_protect(&fixed);

    let read = |path: &Path| fs::read_to_string(path).unwrap();
    for _ in 0..3 {
        let asides = aside(kit.recover_to("back"));
        assert_eq!(read(&file), "theirs");
        assert_eq!(read(&fixed.join("file")), "before");
        assert_eq!(read(&volume.join("dir/file")), "restored");
        assert_eq!(read(&back.join("deep/file")), "restored");
        let points = mounts::below(&back).unwrap().into_iter().map(|mount| mount.point);
        assert_eq!(
            points.collect::<Vec<_>>(),
            [volume.clone(), file.clone(), fixed.clone()]
        );
        assert!(asides.iter().any(|aside| aside.parent() == Some(&volume)), "{asides:?}");
        assert!(asides.iter().any(|aside| aside.parent() == back.parent()), "{asides:?}");
        for aside in asides {
            let inside = aside.parent() == Some(&volume);
            let word = read(&aside.join(if inside { "dir/file" } else { "deep/file" }));
            assert!(word == "before" || word == "restored");
        }
        fs::write(volume.join("dir/file"), "before").unwrap();
    }

    // What cannot be put there is refused before anything is touched.
    fs::hard_link(kit.live().join("deep/file"), kit.live().join("deep/volume/again")).unwrap();
    kit.commit();
    let error = kit.recover_to("back").unwrap_err();
    assert!(matches!(error, RecoverError::Local(RestoreError::Apart(..))), "{error}");
    fs::remove_dir_all(kit.live().join("deep/volume")).unwrap();
    kit.write("deep/volume", "a file");
    kit.commit();
    let error = kit.recover_to("back").unwrap_err();
    assert!(
        matches!(&error, RecoverError::Local(RestoreError::Mount(at)) if *at == volume),
        "{error}"
    );
    assert_eq!(read(&volume.join("dir/file")), "before");
    assert_eq!(read(&back.join("deep/file")), "restored");
}

fn write_protect(volume: &Path) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, volume, None::<&str>, flags, None::<&str>).unwrap();
}
