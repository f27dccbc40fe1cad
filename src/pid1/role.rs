//! PID 1, or as near to it as can be had.

use nix::{
    sys::prctl,
    unistd::{Pid, getpid},
};

/// What this process is to the orphans below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// PID 1 of its namespace: every orphan comes here.
    Init,
    /// Not PID 1: orphans come here because it asked the kernel for them.
    Subreaper,
    /// Not PID 1, and the kernel refused: orphans go past it.
    Bystander,
}

/// Finds out whether this is PID 1, and becomes a child subreaper if not.
pub fn take_role() -> Role {
    if getpid() == Pid::from_raw(1) {
        Role::Init
    } else if prctl::set_child_subreaper(true).is_ok() {
        Role::Subreaper
    } else {
        Role::Bystander
    }
}
