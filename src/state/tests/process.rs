//! Tests that run in a process of their own, because it is killed, measured or kept short.

use std::{ffi::OsString, path::Path};

use crate::{neighbour::with_env, pid1::Spawn};

/// Runs the test `name` of `module` again, in a process of its own that finds `place` in the environment variable
/// `key`.
pub fn again(module: &str, name: &str, key: &str, place: &Path) -> Spawn {
    within(&[], module, name, key, place)
}

/// The same in a user namespace that knows no other user than us.
pub fn again_alone(module: &str, name: &str, key: &str, place: &Path) -> Spawn {
    within(&["unshare", "--user", "--map-root-user"], module, name, key, place)
}

/// The same with mounts of its own, which it may make.
pub fn again_with_mounts(module: &str, name: &str, key: &str, place: &Path) -> Spawn {
    let outer = ["unshare", "--user", "--map-root-user", "--mount"];
    within(&outer, module, name, key, place)
}

/// The same in a user namespace that has ten inotify watches.
pub fn again_with_few_watches(module: &str, name: &str, key: &str, place: &Path) -> Spawn {
    let limit = r#"echo 10 >/proc/sys/user/max_inotify_watches && exec "$0" "$@""#;
    let outer = ["unshare", "--user", "--map-root-user", "sh", "-c", limit];
    within(&outer, module, name, key, place)
}

fn within(outer: &[&str], module: &str, name: &str, key: &str, place: &Path) -> Spawn {
    let (_, module) = module.split_once("::").expect("a module below the crate");
    let test = format!("{module}::{name}");
    let inner = [
        std::env::current_exe().unwrap().into(),
        test.into(),
        "--exact".into(),
        "--nocapture".into(),
    ];
    let argv = outer.iter().map(OsString::from).chain(inner);
    with_env(Spawn::new(argv), key, place)
}
