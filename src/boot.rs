//! The sequence, top to bottom.

pub mod store;
