//! Environment and file into one checked configuration.
