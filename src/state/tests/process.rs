//! Tests that run in a process of their own, because it is killed, measured or kept short.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Runs the test `name` of `module` again, in a process of its own that finds `place` in the environment variable
/// `key`. Its complaints go to the file `stderr` in `place`.
pub fn again(module: &str, name: &str, key: &str, place: &Path) -> Child {
    spawn(Command::new(std::env::current_exe().unwrap()), module, name, key, place)
}

/// The same in a user namespace that knows no other user than us.
pub fn again_alone(module: &str, name: &str, key: &str, place: &Path) -> Child {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]);
    command.arg(std::env::current_exe().unwrap());
    spawn(command, module, name, key, place)
}

/// The same in a user namespace that has ten inotify watches.
pub fn again_with_few_watches(module: &str, name: &str, key: &str, place: &Path) -> Child {
    let mut command = Command::new("unshare");
    let limit = r#"echo 10 >/proc/sys/user/max_inotify_watches && exec "$0" "$@""#;
    command.args(["--user", "--map-root-user", "sh", "-c", limit]);
    command.arg(std::env::current_exe().unwrap());
    spawn(command, module, name, key, place)
}

#[expect(clippy::disallowed_methods, reason = "a test's own helper")]
fn spawn(mut command: Command, module: &str, name: &str, key: &str, place: &Path) -> Child {
    let (_, module) = module.split_once("::").expect("a module below the crate");
    let stderr = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(place.join("stderr"))
        .unwrap();
    command
        .args([&format!("{module}::{name}"), "--exact", "--nocapture"])
        .env(key, place)
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap()
}
