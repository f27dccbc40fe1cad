//! moltinit: PID 1 for a personal AI agent in a container that may vanish at any moment.
//!
//! Events flow out, commands flow in, and no module reads another's private state:
//!
//! ```text
//! environment + file -> config -> boot -> supervise <-> services
//!                                   |         |
//!                                   |         +-- Event -> report -> probes, status, metrics, callbacks
//!                                   +-- state: restore at boot; watch -> capture -> commit -> store, for ever
//!                                   +-- gateway: onboard, patch, roll back
//!                                   +-- browser: local CDP port -> tunnel -> upstream
//! ```
//!
//! * [`boot`]: the sequence, top to bottom.
//! * [`browser`]: a local CDP port, tunnelled to a browser elsewhere.
//! * [`cli`]: the command line, one file a subcommand.
//! * [`config`]: environment and file into one checked `Config`; secrets that cannot be printed.
//! * [`doctor`]: checks of everything that has to be in place, each with what to do about it.
//! * [`event`]: the one vocabulary every module speaks about what happened.
//! * `fuzz`: entry points for bytes that somebody else wrote.
//! * [`gateway`]: all that is known of OpenClaw.
//! * [`log`]: lines to stderr that never block.
//! * `neighbour`: processes that tests have beside themselves.
//! * `paths`: where a path really leads.
//! * [`pid1`]: reaper, spawner, and `exec`; the only unsafe code.
//! * [`report`]: probes, status, event log, callbacks; the way in for commands.
//! * [`state`]: what is in a snapshot and how it gets there and back.
//! * [`store`]: a directory of immutable objects that may hang or vanish.
//! * [`supervise`]: services started, probed, restarted and ended whole.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

pub mod boot;
pub mod browser;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod log;
#[cfg(test)]
mod neighbour;
mod paths;
pub mod pid1;
pub mod report;
pub mod state;
pub mod store;
pub mod supervise;
