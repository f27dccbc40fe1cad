//! What is in a snapshot, how it gets into the store, and how it comes back.

pub mod model;
