//! Cutting files into chunks, and editing a file's list of extents.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;

use super::model::Extent;

const MIN: usize = 16 << 10;
const AVERAGE: usize = 64 << 10;
const MAX: usize = 256 << 10;

/// Cuts what `reader` yields at places that its content decides (FastCDC, 2020), so that an insertion moves the
/// cuts around it and no others. `each` gets the chunks in order; 16 KiB to 256 KiB, the last may be shorter.
pub fn split<E: From<io::Error>>(mut reader: impl Read, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut window = Vec::new();
    loop {
        let missing = MAX - window.len();
        let read = reader.by_ref().take(missing as u64).read_to_end(&mut window)?;
        let Some(first) = FastCDC::new(&window, MIN, AVERAGE, MAX).next() else {
            return Ok(());
        };
        if read == missing {
            // Only the first cut is sure: a later one may depend on bytes that are not in the window yet.
            each(&window[..first.length])?;
            window.drain(..first.length);
        } else {
            for chunk in FastCDC::new(&window, MIN, AVERAGE, MAX) {
                each(&window[chunk.offset..chunk.offset + chunk.length])?;
            }
            return Ok(());
        }
    }
}

/// Length of the bytes an extent stands for.
pub fn len(extent: &Extent) -> u64 {
    match *extent {
        Extent::Data { len, .. } => u64::from(len),
        Extent::Hole { len } => len,
    }
}

/// Replaces the bytes from `at` to `at + len` by `with`. Beyond the end the file grows, with a hole up to `at`.
pub fn splice(extents: &mut Vec<Extent>, at: u64, len: u64, with: Extent) {
    let mut spliced = cut(extents, 0, at);
    let before: u64 = spliced.iter().map(self::len).sum();
    if before < at {
        push(&mut spliced, Extent::Hole { len: at - before });
    }
    push(&mut spliced, with);
    for extent in cut(extents, at.saturating_add(len), u64::MAX) {
        push(&mut spliced, extent);
    }
    *extents = spliced;
}

/// Cuts the file off at `len`, or makes it that long with a hole.
pub fn resize(extents: &mut Vec<Extent>, len: u64) {
    *extents = cut(extents, 0, len);
    let now: u64 = extents.iter().map(self::len).sum();
    if now < len {
        push(extents, Extent::Hole { len: len - now });
    }
}

/// Appends an extent, made one with the last where their bytes follow each other.
pub fn push(extents: &mut Vec<Extent>, next: Extent) {
    if self::len(&next) == 0 {
        return;
    }
    match (extents.last_mut(), next) {
        (Some(Extent::Hole { len }), Extent::Hole { len: more }) => *len += more,
        (
            Some(Extent::Data { chunk, from, len }),
            Extent::Data {
                chunk: same,
                from: start,
                len: more,
            },
        ) if *chunk == same && *from + *len == start => *len += more,
        _ => extents.push(next),
    }
}

/// The extents of the bytes from `from` to `to`.
fn cut(extents: &[Extent], from: u64, to: u64) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut start = 0;
    for extent in extents {
        let end = start + len(extent);
        let (low, high) = (start.max(from), end.min(to));
        if low < high {
            // Both differences are within one extent, whose length fits its own type.
            let skip = u32::try_from(low - start).unwrap_or(u32::MAX);
            push(
                &mut found,
                match *extent {
                    Extent::Data { chunk, from, len } => Extent::Data {
                        chunk,
                        from: from + skip,
                        len: u32::try_from(high - low).unwrap_or(len),
                    },
                    Extent::Hole { .. } => Extent::Hole { len: high - low },
                },
            );
        }
        start = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::model::Hash;

    fn chunks(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        split(bytes, |chunk| {
            found.push(chunk.to_vec());
            Ok::<_, io::Error>(())
        })
        .unwrap();
        found
    }

    /// Bytes without a period, the same each time.
    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn chunks_make_up_the_file_and_keep_to_their_sizes() {
        for len in [0, 1, MIN, MAX, MAX + 1, 3_000_000] {
            let bytes = noise(len, 7);
            let found = chunks(&bytes);
            assert_eq!(found.concat(), bytes);
            assert!(found.iter().all(|c| c.len() <= MAX));
            assert!(found.iter().rev().skip(1).all(|c| c.len() >= MIN));
        }
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let before = noise(4_000_000, 3);
        let mut after = before.clone();
        after.splice(1_000_000..1_000_000, *b"inserted");
        let known: std::collections::HashSet<_> = chunks(&before).into_iter().collect();
        let changed = chunks(&after).into_iter().filter(|c| !known.contains(c)).count();
        assert!(changed <= 3, "{changed} chunks changed");
    }

    /// A file by its extents, each byte told apart by its chunk and its place there.
    fn bytes(extents: &[Extent]) -> Vec<Option<(Hash, u32)>> {
        extents
            .iter()
            .flat_map(|extent| match *extent {
                Extent::Hole { len } => vec![None; len as usize],
                Extent::Data { chunk, from, len } => (from..from + len).map(|at| Some((chunk, at))).collect(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn splicing_extents_is_splicing_bytes(edits in proptest::collection::vec((0u64..200, 0u64..40, 1u32..60, any::<bool>()), 1..20)) {
            let mut extents = Vec::new();
            let mut model: Vec<Option<(Hash, u32)>> = Vec::new();
            for (n, (at, len, new, hole)) in edits.into_iter().enumerate() {
                let with = if hole {
                    Extent::Hole { len: u64::from(new) }
                } else {
                    Extent::Data { chunk: Hash::of(&n.to_le_bytes()), from: 3, len: new }
                };
                splice(&mut extents, at, len, with);
                let at = at as usize;
                if model.len() < at {
                    model.resize(at, None);
                }
                let end = model.len().min(at + len as usize);
                model.splice(at..end, bytes(&[with]));
                prop_assert_eq!(&bytes(&extents), &model);
            }
            let half = model.len() / 2;
            resize(&mut extents, half as u64);
            prop_assert_eq!(&bytes(&extents)[..], &model[..half]);
        }
    }
}
