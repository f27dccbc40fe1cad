//! What is in a snapshot, how it gets into the store, and how it comes back.
//!
//! A commit is one object, a segment ([`segment`]): new chunks, and the tree as a whole or as what changed.
//! [`history`] knows which segments there are and which of them to follow; [`recover`] finds the newest that is
//! sound and [`restore`] puts it in place.

pub mod check;
pub mod chunk;
pub mod crypt;
pub mod diff;
pub mod head;
pub mod history;
pub mod lineage;
pub mod model;
pub mod recover;
pub mod restore;
pub mod segment;

#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
