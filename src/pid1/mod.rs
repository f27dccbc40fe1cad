//! What only PID 1 has to do: reap every orphan, start processes in a way that loses no exit status, and, for
//! `moltinit exec`, stand between a caller and one command as tini and dumb-init do.
//!
//! There is one spawner and one reaper in a process. The reaper takes the status of *every* child, so nothing else
//! may wait for one: `std::process` and `tokio::process` are banned by `clippy.toml`.
//!
//! This is the only module with unsafe code; every use gives its reason.

#![allow(unsafe_code)]

pub mod code;
pub mod exec;
pub mod heap;
mod launch;
mod lookup;
mod reaper;
mod role;
pub mod signals;
mod spawner;
mod terminal;
mod wait;

pub use launch::Stdio;
pub use lookup::NotFound;
pub use reaper::Child;
pub use role::{Role, take_role};
pub use spawner::{Output, RunError, Spawn, SpawnError, Spawner, pipe};
pub use wait::Exit;
