//! Any sequence of what can be done to files: every commit restores to what was there.

use std::{collections::HashMap, fs, os::unix::fs::OpenOptionsExt, path::Path};

use proptest::prelude::*;

use super::*;
use crate::state::{model::Hash, sqlite};

/// Few names, so that acts meet; one sorts between another and what is inside that.
const NAMES: [&str; 5] = ["a", "a-b", "b", "c\n", "d.sqlite"];

#[derive(Debug, Clone)]
enum Act {
    Write {
        path: String,
        len: usize,
    },
    Append {
        path: String,
    },
    /// A byte in the middle of a file that is mostly a hole.
    Sparse {
        path: String,
        at: u64,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Dir {
        path: String,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Link {
        from: String,
        to: String,
    },
    Mode {
        path: String,
        mode: u32,
    },
    Database {
        path: String,
    },
    Insert {
        path: String,
    },
    Commit,
}

fn path() -> impl Strategy<Value = String> {
    let part = || prop::sample::select(NAMES.to_vec());
    prop::collection::vec(part(), 1..4).prop_map(|parts| parts.join("/"))
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (path(), 0usize..300_000).prop_map(|(path, len)| Act::Write { path, len }),
        2 => path().prop_map(|path| Act::Append { path }),
        1 => (path(), 0u64..3_000_000).prop_map(|(path, at)| Act::Sparse { path, at }),
        1 => (path(), 0u64..500_000).prop_map(|(path, len)| Act::Truncate { path, len }),
        3 => path().prop_map(|path| Act::Dir { path }),
        3 => path().prop_map(|path| Act::Remove { path }),
        4 => (path(), path()).prop_map(|(from, to)| Act::Rename { from, to }),
        1 => (path(), path()).prop_map(|(path, target)| Act::Symlink { path, target }),
        3 => (path(), path()).prop_map(|(from, to)| Act::Link { from, to }),
        1 => (path(), prop::sample::select(vec![0o600, 0o755, 0o4711, 0o1777])).prop_map(|(path, mode)| Act::Mode { path, mode }),
        2 => path().prop_map(|path| Act::Database { path }),
        2 => path().prop_map(|path| Act::Insert { path }),
        5 => Just(Act::Commit),
    ]
}

/// Does it if it can be done; what cannot is no act.
fn run(live: &Path, act: &Act, n: usize) {
    let at = |path: &str| live.join(path);
    let open = |path: &str| {
        fs::OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(at(path))
    };
    // Each its own bytes.
    let bytes = |len: usize| (0..len).map(|at| (at / 7 + n) as u8).collect::<Vec<u8>>();
    let database = |path: &str, sql: &str| {
        // Through a link the database would be elsewhere.
        let plain = at(path).symlink_metadata().is_ok_and(|meta| meta.is_file());
        if plain && let Ok(db) = rusqlite::Connection::open(at(path)) {
            let _ = db.execute_batch(sql);
        }
    };
    let _ = match act {
        Act::Write { path, len } if !at(path).is_symlink() => fs::write(at(path), bytes(*len)),
        Act::Write { .. } => Ok(()),
        Act::Append { path } => open(path).and_then(|file| {
            let end = file.metadata()?.len();
            file.write_all_at(&bytes(100), end)
        }),
        Act::Sparse { path, at } => open(path).and_then(|file| file.write_all_at(b"x", *at)),
        Act::Truncate { path, len } => open(path).and_then(|file| file.set_len(*len)),
        Act::Dir { path } => fs::create_dir_all(at(path)),
        Act::Remove { path } => fs::remove_file(at(path)).or_else(|_| fs::remove_dir_all(at(path))),
        Act::Rename { from, to } => fs::rename(at(from), at(to)),
        Act::Symlink { path, target } => symlink(target, at(path)),
        Act::Link { from, to } => fs::hard_link(at(from), at(to)),
        Act::Mode { path, mode } if !at(path).is_symlink() => {
            fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))
        }
        Act::Mode { .. } | Act::Commit => Ok(()),
        Act::Database { path } => {
            let _ = fs::remove_file(at(path));
            let made = fs::File::create_new(at(path));
            database(path, "CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(9000))");
            made.map(drop)
        }
        Act::Insert { path } => {
            database(path, "INSERT INTO t VALUES(randomblob(5000))");
            Ok(())
        }
    };
}

/// Without the times of directories, which change with what is left out and are no reason for a commit, with each name of a
/// database as a file of its own, which it is in a snapshot, and short enough to be shown.
fn outline(picture: Picture) -> Vec<(String, Entry, Hash)> {
    let databases = picture.iter().filter(|(.., bytes)| bytes.starts_with(sqlite::MAGIC));
    let databases: HashMap<_, _> = databases
        .cloned()
        .map(|(path, entry, bytes)| (path, (entry, bytes)))
        .collect();
    let line = |(path, mut entry, mut bytes): (Vec<u8>, Entry, Vec<u8>)| {
        if let Kind::HardLink { to } = &entry.kind
            && let Some(database) = databases.get(to)
        {
            (entry, bytes) = database.clone();
        }
        if entry.kind == Kind::Dir {
            entry.mtime_ns = 0;
        }
        (String::from_utf8_lossy(&path).into_owned(), entry, Hash::of(&bytes))
    };
    picture.into_iter().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_commit_restores_to_what_was_there(acts in prop::collection::vec(act(), 1..60)) {
        let mut live = Live::start(Kit::new());
        let at = live.kit.live();
        for (n, act) in acts.iter().chain([&Act::Commit]).enumerate() {
            run(&at, act, n);
            if matches!(act, Act::Commit) {
                live.commit();
                let (restored, _) = live.restore();
                prop_assert_eq!(outline(restored), outline(picture(&at)), "after act {}", n);
            }
        }
    }
}
