//! Commits that look like a loss.

/// Fewer files than this are too few to tell a loss from tidying up.
const FEW_FILES: u64 = 10;
const FEW_BYTES: u64 = 1 << 20;

/// Why the step from one commit to the next, each with its number of files and bytes, looks like a loss: most of the
/// files or nearly all of the bytes are gone. The commit is made all the same, and the one before it is kept.
pub fn suspicious(before: (u64, u64), after: (u64, u64)) -> Option<String> {
    if before.0 >= FEW_FILES && after.0 < before.0 / 2 {
        return Some(format!("{} of {} files are gone", before.0 - after.0, before.0));
    }
    if before.1 >= FEW_BYTES && after.1 < before.1 / 10 {
        return Some(format!("{} of {} bytes are gone", before.1 - after.1, before.1));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn losing_most_is_suspicious_and_tidying_up_is_not() {
        assert!(suspicious((100, 5000), (49, 5000)).is_some_and(|why| why == "51 of 100 files are gone"));
        assert!(suspicious((100, 5 << 20), (100, 1000)).is_some_and(|why| why.contains("bytes")));
        assert_eq!(suspicious((100, 5 << 20), (60, 1 << 20)), None);
        assert_eq!(suspicious((9, 500_000), (0, 0)), None);
    }

    proptest! {
        #[test]
        fn growing_is_never_suspicious(files in 0u64.., bytes in 0u64.., more in 0u64..1000) {
            prop_assert_eq!(suspicious((files, bytes), (files.saturating_add(more), bytes.saturating_add(more))), None);
        }
    }
}
