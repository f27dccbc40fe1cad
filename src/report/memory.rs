//! How much memory there is and who has it, from the kernel's own books. Nothing here can block.

use std::fs;

use super::status::Memory;

/// As of now. A figure that the kernel does not give is 0.
pub fn measure() -> Memory {
    let (used, limit) = cgroup().or_else(machine).unwrap_or_default();
    Memory {
        moltinit_bytes: field(&read("/proc/self/status"), "VmRSS:"),
        used_bytes: used,
        limit_bytes: limit,
        pressure: None,
    }
}

/// Of the container's own control group, where it has a limit; without the file cache that can be dropped.
fn cgroup() -> Option<(u64, u64)> {
    let number = |name: &str| read(&format!("/sys/fs/cgroup/{name}")).trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let current = number("memory.current")?;
    let droppable = read("/sys/fs/cgroup/memory.stat")
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok())
        .unwrap_or(0);
    Some((current.saturating_sub(droppable), limit))
}

/// Of the whole machine: on Cloudflare the container is a machine of its own.
fn machine() -> Option<(u64, u64)> {
    let text = read("/proc/meminfo");
    let total = field(&text, "MemTotal:");
    Some((total.saturating_sub(field(&text, "MemAvailable:")), total))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Bytes of a `Name:   1234 kB` line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
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
