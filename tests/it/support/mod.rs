//! What black-box tests share: a container to run moltinit in, a client for its HTTP, and waiting with a deadline.

pub mod browser;
pub mod container;
pub mod docker;
pub mod gateway;
pub mod http;
mod ports;
pub mod process;
pub mod pty;
pub mod receiver;
pub mod s3;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

pub use ports::free_port;

/// The binary under test.
pub const MOLTINIT: &str = env!("CARGO_BIN_EXE_moltinit");

/// Generous: a deadline is there to end a test that hangs, not to measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Compiles `tests/tools/NAME.c` into `dir`.
///
/// # Panics
/// It cannot be.
pub fn compile(name: &str, args: &[&str], dir: &Path) -> PathBuf {
    let made = dir.join(name);
    let source = format!("{}/tests/tools/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let compiled = Command::new("cc").args(args).arg("-o").arg(&made).arg(source).status();
    assert!(compiled.expect("cc").success(), "{name}.c");
    made
}

/// Asks until there is an answer.
///
/// # Panics
/// After `patience`, naming what was waited for.
pub fn eventually<T>(what: impl Display, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
