//! A database image as extents, page by page.

use std::collections::BTreeMap;

use crate::state::{
    chunk,
    model::{Extent, Hash},
};

/// Plain bytes of pages that are put into a chunk together, where they lie and change together.
const BLOCK: u32 = 64 << 10;
/// A block in more pieces than this is put as a whole when one of its pages changes.
const MOST_PIECES: usize = 8;
/// Pages changed before they are merged into the extents: bounds memory while a large database is first read.
const MOST_CHANGED: usize = 4096;

/// The extents of an image under construction. Pages are counted from 1.
#[derive(Debug)]
pub struct Image {
    page_size: u32,
    extents: Vec<Extent>,
    changed: BTreeMap<u32, Extent>,
}

impl Image {
    pub fn new(page_size: u32, extents: &[Extent]) -> Image {
        Image {
            page_size,
            extents: extents.to_vec(),
            changed: BTreeMap::new(),
        }
    }

    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Pages in a block; blocks begin with page 1.
    pub fn block(&self) -> u32 {
        block(self.page_size)
    }

    /// The pages from `first` on become the bytes of `chunk` from its beginning.
    pub fn set(&mut self, first: u32, count: u32, chunk: Hash) {
        for n in 0..count {
            let from = n * self.page_size;
            self.changed.insert(
                first + n,
                Extent::Data {
                    chunk,
                    from,
                    len: self.page_size,
                },
            );
        }
        if self.changed.len() >= MOST_CHANGED {
            self.merge();
        }
    }

    /// The extents of an image of `pages` pages.
    pub fn finish(mut self, pages: u32) -> Vec<Extent> {
        self.merge();
        chunk::resize(&mut self.extents, u64::from(pages) * u64::from(self.page_size));
        self.extents
    }

    fn merge(&mut self) {
        let size = u64::from(self.page_size);
        let mut old = Cursor {
            rest: std::mem::take(&mut self.extents).into_iter(),
            part: None,
        };
        let mut merged = Vec::new();
        let mut at = 0;
        for (page, extent) in std::mem::take(&mut self.changed) {
            let start = u64::from(page - 1) * size;
            let missing = old.take(start - at, |kept| chunk::push(&mut merged, kept));
            chunk::push(&mut merged, Extent::Hole { len: missing });
            old.take(size, |_| {});
            chunk::push(&mut merged, extent);
            at = start + size;
        }
        old.take(u64::MAX, |kept| chunk::push(&mut merged, kept));
        self.extents = merged;
    }
}

pub fn block(page_size: u32) -> u32 {
    (BLOCK / page_size).max(1)
}

struct Cursor {
    rest: std::vec::IntoIter<Extent>,
    part: Option<Extent>,
}

impl Cursor {
    /// Passes on the next `len` bytes; returns how many of them are missing.
    fn take(&mut self, len: u64, mut each: impl FnMut(Extent)) -> u64 {
        let mut missing = len;
        while missing > 0 {
            let Some(extent) = self.part.take().or_else(|| self.rest.next()) else {
                return missing;
            };
            let whole = chunk::len(&extent);
            if whole > missing {
                let (head, tail) = cut(extent, missing);
                each(head);
                self.part = Some(tail);
                return 0;
            }
            each(extent);
            missing -= whole;
        }
        0
    }
}

/// Cuts an extent in two after `at` bytes, which are fewer than it has.
fn cut(extent: Extent, at: u64) -> (Extent, Extent) {
    match extent {
        Extent::Hole { len } => (Extent::Hole { len: at }, Extent::Hole { len: len - at }),
        Extent::Data { chunk, from, len } => {
            let at = u32::try_from(at).map_or(len, |at| at.min(len));
            (
                Extent::Data { chunk, from, len: at },
                Extent::Data {
                    chunk,
                    from: from + at,
                    len: len - at,
                },
            )
        }
    }
}

/// Where the extents of an image are.
#[derive(Debug)]
pub struct Layout<'a> {
    page_size: u32,
    extents: &'a [Extent],
    /// Where each extent begins.
    starts: Vec<u64>,
}

impl<'a> Layout<'a> {
    pub fn new(page_size: u32, extents: &'a [Extent]) -> Layout<'a> {
        let starts = extents.iter().scan(0, |at, extent| {
            let start = *at;
            *at += chunk::len(extent);
            Some(start)
        });
        Layout {
            page_size,
            extents,
            starts: starts.collect(),
        }
    }

    /// Whether the block of `page` lies in too many pieces.
    pub fn scattered(&self, page: u32) -> bool {
        let pages = block(self.page_size);
        let first = (page - 1) / pages * pages + 1;
        self.pieces(first, pages).count() > MOST_PIECES
    }

    /// The extents that lie in the `count` pages from `first` on, at least in part, each with where it begins.
    fn pieces(&self, first: u32, count: u32) -> impl Iterator<Item = (u64, &'a Extent)> {
        let size = u64::from(self.page_size);
        let (start, end) = (
            u64::from(first - 1) * size,
            (u64::from(first - 1) + u64::from(count)) * size,
        );
        let from = self.starts.partition_point(|at| *at <= start).saturating_sub(1);
        let all = self.starts[from..].iter().copied().zip(&self.extents[from..]);
        all.take_while(move |(at, _)| *at < end)
            .filter(move |(at, extent)| at + chunk::len(extent) > start)
    }

    /// Which of the pages from `first` on, whose bytes these are, are as in the image, as far as whole chunks show.
    pub fn unchanged(&self, first: u32, bytes: &[u8]) -> Vec<bool> {
        let size = u64::from(self.page_size);
        let count = bytes.len() as u64 / size;
        let start = u64::from(first - 1) * size;
        let mut same = vec![false; count as usize];
        for (at, extent) in self.pieces(first, count as u32) {
            let Extent::Data { chunk, from: 0, len } = extent else {
                continue;
            };
            let (Some(low), high) = (at.checked_sub(start), at + u64::from(*len)) else {
                continue;
            };
            let high = high - start;
            let inside = bytes.get(low as usize..high as usize);
            if low % size == 0 && high % size == 0 && inside.is_some_and(|inside| Hash::of(inside) == *chunk) {
                same[(low / size) as usize..(high / size) as usize].fill(true);
            }
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 512;

    fn pages(extents: &[Extent]) -> Vec<Option<(Hash, u32)>> {
        let mut found = Vec::new();
        for extent in extents {
            match *extent {
                Extent::Hole { len } => found.extend(vec![None; (len / u64::from(SIZE)) as usize]),
                Extent::Data { chunk, from, len } => {
                    found.extend((0..len / SIZE).map(|n| Some((chunk, from / SIZE + n))));
                }
            }
        }
        found
    }

    proptest! {
        #[test]
        fn setting_pages_of_an_image_is_setting_them_in_a_list(
            rounds in prop::collection::vec((prop::collection::vec((1u32..60, 1u32..9), 0..12), 1u32..70), 1..6)
        ) {
            let mut extents = Vec::new();
            let mut model: Vec<Option<(Hash, u32)>> = Vec::new();
            let mut n = 0u64;
            for (sets, len) in rounds {
                let mut image = Image::new(SIZE, &extents);
                for (first, count) in sets {
                    n += 1;
                    let chunk = Hash::of(&n.to_le_bytes());
                    image.set(first, count, chunk);
                    let end = (first - 1 + count) as usize;
                    model.resize(model.len().max(end), None);
                    for page in 0..count {
                        model[(first - 1 + page) as usize] = Some((chunk, page));
                    }
                }
                extents = image.finish(len);
                model.resize(len as usize, None);
                prop_assert_eq!(&pages(&extents), &model);
            }
        }
    }

    #[test]
    fn whole_chunks_show_what_is_unchanged() {
        let bytes: Vec<u8> = (0..8 * SIZE).map(|n| (n / SIZE) as u8).collect();
        let part = |from: u32, to: u32| &bytes[(from * SIZE) as usize..(to * SIZE) as usize];
        let data = |from: u32, to: u32| Extent::Data {
            chunk: Hash::of(part(from, to)),
            from: 0,
            len: (to - from) * SIZE,
        };
        let mut cut = data(3, 6);
        if let Extent::Data { len, .. } = &mut cut {
            *len -= SIZE;
        }
        let extents = [data(0, 2), data(2, 3), cut, data(6, 7), data(7, 8)];
        let layout = Layout::new(SIZE, &extents);
        assert_eq!(
            layout.unchanged(1, part(0, 8)),
            [true, true, true, false, false, false, false, false]
        );
        assert_eq!(layout.unchanged(2, part(1, 3)), [false, true]);
        assert_eq!(layout.unchanged(1, part(0, 1)), [false]);
        assert!(!layout.scattered(1));
        let many: Vec<Extent> = (0..20).map(|n| data(n % 8, n % 8 + 1)).collect();
        assert!(Layout::new(SIZE, &many).scattered(3) && !Layout::new(SIZE, &many).scattered(129));
    }
}
