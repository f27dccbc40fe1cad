//! Letting go of the program's own pages that only its start needed.
//!
//! The kernel maps what lies around each instruction that runs, and what is mapped counts as this process's and is the
//! last that it gives up when memory is short. A boot goes through most of the program; a supervisor that waits needs
//! little of it.

use std::{fs, num::NonZero, ops::Range, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of the program's code. Each comes back when it is needed, from the page cache.
pub fn let_go() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return; // without /proc nobody counts either
    };
    let Some(code) = code(&maps, let_go as *const () as usize) else {
        return;
    };
    let Some(start) = NonZero::new(code.start) else {
        return;
    };
    // SAFETY: `code` is the mapping that this function lies in, which nobody unmaps. It is of a file, private, readable and
    // executable and not writable: none of its pages differs from the file, and the kernel reads each again when it is
    // touched.
    let _ = unsafe {
        madvise(
            NonNull::without_provenance(start),
            code.len(),
            MmapAdvise::MADV_DONTNEED,
        )
    };
}

/// Of `maps`, which are as in proc(5), the one that `address` is in, if it is of a file and nothing but read and executed.
fn code(maps: &str, address: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let code = fields.next()? == "r-xp" && fields.nth(2)? != "0";
        (code && range.contains(&address)).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5571990ff000-557199361000 r--p 00000000 fe:00 1234    /usr/local/bin/moltinit
557199361000-557199ef4000 r-xp 00262000 fe:00 1234    /usr/local/bin/moltinit
557199ef4000-557199f3b000 rw-p 00df4000 fe:00 1234    /usr/local/bin/moltinit
7fb272862000-7fb2729b8000 r-xp 00026000 fe:00 99      /usr/lib/x86_64-linux-gnu/libc.so.6
7fb272b29000-7fb272b2b000 r-xp 00000000 00:00 0 
";

    #[test]
    fn only_code_of_a_file_is_found() {
        assert_eq!(code(MAPS, 0x557199362345), Some(0x557199361000..0x557199ef4000));
        assert_eq!(code(MAPS, 0x557199ef3fff), Some(0x557199361000..0x557199ef4000));
        for address in [0x557199100000, 0x557199ef4000, 0x7fb272b2a000, 0] {
            assert_eq!(code(MAPS, address), None, "{address:x}");
        }
        assert_eq!(code("nonsense\n\n1-2", 1), None);
    }

    /// Resident KiB of the mapping that this program's code is in.
    fn resident() -> u64 {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let code = code(&maps, let_go as *const () as usize).unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-{:x} ", code.start, code.end);
        let mapping = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = mapping
            .map(|line| line.strip_prefix("Rss:"))
            .find_map(|rss| rss)
            .unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Other tests run meanwhile and bring theirs back: it is seen to fall in one of the tries.
    #[test]
    fn what_was_let_go_is_not_resident_and_still_runs() {
        let fell = (0..100).any(|_| {
            let before = resident();
            let_go();
            resident() < before / 2
        });
        assert!(fell, "{} KiB are resident", resident());
    }
}
