//! Environment and file into one checked configuration.

pub mod secret;
pub mod service;
