//! Every target is this file: which one, its name says.
#![no_main]

use std::sync::LazyLock;

use moltinit::fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let found = TARGETS.iter().find(|(name, _)| *name == env!("CARGO_BIN_NAME"));
    found.expect("a target of that name").1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
