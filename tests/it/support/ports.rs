//! Ports for servers of tests.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

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
