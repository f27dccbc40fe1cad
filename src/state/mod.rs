//! What is in a snapshot, how it gets into the store, and how it comes back.
//!
//! A commit is one object, a segment ([`segment`]): new chunks, and the tree as a whole or as what changed.
//! [`history`] knows which segments there are and which of them to follow; [`recover`] finds the newest that is
//! sound and [`restore`] puts it in place. [`retain`] says which commits are kept, [`prune`] removes the rest, and
//! [`compact`] keeps what the kept ones need in few objects.

pub mod capture;
pub mod changes;
pub mod check;
pub mod chunk;
pub mod compact;
pub mod crypt;
pub mod diff;
pub mod engine;
pub mod exclude;
pub mod fetch;
pub mod head;
pub mod history;
pub mod legacy;
pub mod lineage;
pub mod model;
mod names;
pub mod pace;
mod parallel;
pub mod prune;
pub mod recover;
pub mod restore;
pub mod retain;
pub mod saved;
pub mod segment;
pub mod sqlite;
mod survey;
pub mod verify;
pub mod walk;
pub mod watch;

#[cfg(test)]
pub(crate) mod tests;
