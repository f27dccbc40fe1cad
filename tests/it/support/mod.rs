//! What black-box tests share: a container to run moltinit in, a client for its HTTP, and waiting with a deadline.

pub mod browser;
pub mod container;
pub mod docker;
pub mod gateway;
pub mod http;
pub mod process;
pub mod pty;
pub mod s3;

use std::{
    fmt::Display,
    net::TcpListener,
    time::{Duration, Instant},
};

/// The binary under test.
pub const MOLTINIT: &str = env!("CARGO_BIN_EXE_moltinit");

/// Generous: a deadline is there to end a test that hangs, not to measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A loopback port that nobody listens on. The listener that found it is gone, so use it soon.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
