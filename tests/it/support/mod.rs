//! What black-box tests share: a container to run moltinit in, a client for its HTTP, and waiting with a deadline.

pub mod browser;
pub mod container;
pub mod docker;
pub mod gateway;
pub mod http;
pub mod process;
pub mod pty;
pub mod receiver;
pub mod s3;

use std::{
    fmt::Display,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The binary under test.
pub const MOLTINIT: &str = env!("CARGO_BIN_EXE_moltinit");

/// Generous: a deadline is there to end a test that hangs, not to measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A loopback port that nobody listens on, given once. It is below those that the kernel gives to whoever asks for any, so
/// nobody is given it before it is used.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Other processes of tests look from elsewhere on.
    let from = std::process::id().wrapping_mul(389);
    loop {
        let at = from.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + at).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

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
