//! How much memory there is and who has it, from the kernel's own books. Nothing here can block.

use std::fs;

use super::status::Memory;
use crate::supervise::memory::{Accounts, Usage};

/// As of now. A figure that the kernel does not give is 0. Without a limit of the container's own, the machine is what
/// there is.
pub fn measure() -> Memory {
    let usage = Accounts::find("/").usage();
    let Usage { used, limit } = usage.unwrap_or(Usage { used: 0, limit: 0 });
    Memory {
        moltinit_bytes: resident(),
        used_bytes: used,
        limit_bytes: limit,
        pressure: None,
    }
}

/// Of moltinit itself.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_something_believable() {
        let memory = super::measure();
        assert!(memory.moltinit_bytes > 100_000, "{memory:?}");
        assert!(memory.limit_bytes > memory.moltinit_bytes, "{memory:?}");
        assert!(memory.used_bytes <= memory.limit_bytes, "{memory:?}");
    }
}
