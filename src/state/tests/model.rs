//! Whatever is done to a directory, what comes back from its last commit is that directory.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    kit::{Kit, picture},
    restored,
};
use crate::state::{restore::Progress, verify::verify};

#[derive(Debug, Clone)]
enum Step {
    Write { at: Place, len: u32, seed: u8 },
    Append { which: Index, len: u32 },
    Patch { which: Index, at: u32 },
    Sparse { at: Place, len: u64, data_at: u64 },
    Mkdir { at: Place },
    Symlink { at: Place, target: Vec<u8> },
    HardLink { which: Index, at: Place },
    Rename { which: Index, at: Place },
    Remove { which: Index },
    Mode { which: Index, mode: u32 },
    Commit,
    Reboot,
    Compact,
}

/// A directory that is there by then, and a name in it.
type Place = (Index, Vec<u8>);

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-c]{1,2}".prop_map(String::into_bytes),
        "\\PC{1,12}".prop_map(String::into_bytes),
        vec(1u8..=255, 1..20),
        Just(vec![b'n'; 255]),
        Just(b"line\nbreak".to_vec()),
    ]
    .prop_filter("a name", |name| {
        !name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b".." && name.len() < 256
    })
}

fn place() -> impl Strategy<Value = Place> {
    (any::<Index>(), name())
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![3 => 0u32..5000, 1 => 200_000u32..1_200_000];
    prop_oneof![
        6 => (place(), len.clone(), any::<u8>()).prop_map(|(at, len, seed)| Step::Write { at, len, seed }),
        3 => (any::<Index>(), len).prop_map(|(which, len)| Step::Append { which, len }),
        3 => (any::<Index>(), any::<u32>()).prop_map(|(which, at)| Step::Patch { which, at }),
        1 => (place(), 0u64..1 << 34, 0u64..1 << 34).prop_map(|(at, len, data_at)| Step::Sparse { at, len: len >> 10, data_at: data_at >> 10 }),
        4 => place().prop_map(|at| Step::Mkdir { at }),
        2 => (place(), vec(1u8..=255, 1..40)).prop_map(|(at, target)| Step::Symlink { at, target }),
        2 => (any::<Index>(), place()).prop_map(|(which, at)| Step::HardLink { which, at }),
        3 => (any::<Index>(), place()).prop_map(|(which, at)| Step::Rename { which, at }),
        3 => any::<Index>().prop_map(|which| Step::Remove { which }),
        2 => (any::<Index>(), 0u32..0o10000).prop_map(|(which, mode)| Step::Mode { which, mode }),
        6 => Just(Step::Commit),
        1 => Just(Step::Reboot),
        1 => Just(Step::Compact),
    ]
}

/// Every path below a directory, itself first.
fn paths(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    let mut children: Vec<_> = fs::read_dir(dir).unwrap().map(|child| child.unwrap().path()).collect();
    children.sort();
    for child in children {
        if fs::symlink_metadata(&child).unwrap().is_dir() {
            paths(&child, found);
        } else {
            found.push(child);
        }
    }
}

fn noise(len: u32, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(u32::from(seed)) >> 13) as u8)
        .collect()
}

/// Does a step to the live directory. What cannot be done (a name that is taken, say) is not done.
fn act(kit: &mut Kit, step: Step) {
    let mut all = Vec::new();
    paths(&kit.live(), &mut all);
    let dirs: Vec<&PathBuf> = all
        .iter()
        .filter(|path| fs::symlink_metadata(path).unwrap().is_dir())
        .collect();
    let new = |(dir, name): &Place| dir.get(&dirs).join(OsStr::from_bytes(name));
    let file = |which: &Index| {
        let files: Vec<_> = all
            .iter()
            .filter(|path| fs::symlink_metadata(path).unwrap().is_file())
            .collect();
        (!files.is_empty()).then(|| which.get(&files).to_path_buf())
    };
    // Not the root itself.
    let any = |which: &Index| (all.len() > 1).then(|| which.get(&all[1..]).clone());
    let _ = match step {
        Step::Write { at, len, seed } => fs::write(new(&at), noise(len, seed)),
        Step::Append { which, len } => file(&which).map_or(Ok(()), |path| {
            OpenOptions::new().append(true).open(path)?.write_all(&noise(len, 7))
        }),
        Step::Patch { which, at } => file(&which).map_or(Ok(()), |path| {
            let file = OpenOptions::new().write(true).open(path)?;
            let len = file.metadata()?.len();
            file.write_all_at(b"patched", u64::from(at) % (len + 1))
        }),
        Step::Sparse { at, len, data_at } => fs::File::create(new(&at)).and_then(|file| {
            file.set_len(len)?;
            file.write_all_at(b"data", data_at)
        }),
        Step::Mkdir { at } => fs::create_dir(new(&at)),
        Step::Symlink { at, target } => symlink(OsStr::from_bytes(&target), new(&at)),
        Step::HardLink { which, at } => file(&which).map_or(Ok(()), |path| fs::hard_link(path, new(&at))),
        Step::Rename { which, at } => any(&which).map_or(Ok(()), |path| fs::rename(path, new(&at))),
        Step::Remove { which } => any(&which).map_or(Ok(()), |path| {
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
        }),
        Step::Mode { which, mode } => any(&which).map_or(Ok(()), |path| {
            // The owner's own bits stay, or a test that is not root could not look inside.
            let mode = mode | if path.is_dir() { 0o700 } else { 0o600 };
            if path.is_symlink() {
                Ok(())
            } else {
                fs::set_permissions(path, fs::Permissions::from_mode(mode))
            }
        }),
        Step::Commit => {
            kit.commit();
            Ok(())
        }
        // What was not committed is gone; that is what a reboot is.
        Step::Reboot => {
            kit.commit();
            kit.reboot();
            Ok(())
        }
        Step::Compact => {
            kit.compact();
            Ok(())
        }
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_comes_back_is_what_was_committed(steps in vec(step(), 1..60)) {
        let mut kit = Kit::new();
        for step in steps {
            act(&mut kit, step);
        }
        kit.commit();
        let (head, ..) = restored(kit.recover_to("back"));
        prop_assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
        prop_assert_eq!(head.tree(), kit.head.tree());
        prop_assert_eq!(head.totals(), kit.head.totals());
    }
}

/// One of few contents, so that each comes back often, and shares chunks with the others.
fn version(n: u8) -> Vec<u8> {
    [noise(4000, n % 2), noise(4000, n / 2)].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What a commit does not say it needs, it does not need, though content went away and came back.
    #[test]
    fn a_commit_lacks_nothing_when_all_that_it_does_not_need_is_gone(steps in vec(0u8..14, 1..40)) {
        let mut kit = Kit::new();
        for step in steps {
            match step {
                0..8 => kit.write(["a", "b"][usize::from(step % 2)], version(step / 2)),
                8 => drop(fs::remove_file(kit.live().join("a"))),
                9 => drop(kit.compact()),
                10 => kit.reboot(),
                _ => {}
            }
            kit.commit();
            let needs = kit.head.needs();
            for generation in kit.history.generations().into_keys() {
                for id in kit.history.commits(generation).unwrap().into_iter().filter(|id| !needs.contains(id)) {
                    kit.history.delete(id).unwrap();
                }
            }
            let head = kit.reopened().load(kit.head.id().unwrap()).unwrap();
            prop_assert_eq!(head.tree(), kit.head.tree());
            let flaws = verify(&kit.history, &[kit.head.id().unwrap()], &Progress::default()).unwrap();
            prop_assert_eq!(flaws, []);
        }
        restored(kit.recover_to("back"));
        prop_assert_eq!(picture(&kit.live()), picture(&kit.path("back")));
    }
}
