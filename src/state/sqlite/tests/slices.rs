//! An image in the making, slice by slice.

use proptest::prelude::*;

use super::*;
use crate::state::model::Hash;

const SIZE: usize = 512;

/// Pages of an image in the making, each given as one byte that fills it.
struct Slices<'a> {
    work: Work<'a>,
    writer: SegmentWriter<'a>,
    chunks: std::collections::HashMap<Hash, Vec<u8>>,
}

impl<'a> Slices<'a> {
    fn new(kit: &Kit, head: &'a Head, old: &'a [Extent]) -> Slices<'a> {
        let id = CommitId {
            generation: ulid::Ulid::from_parts(1, 1),
            seq: 1,
        };
        Slices {
            work: Work::begin(SIZE as u32, 0, Some((SIZE as u32, old)), None, None),
            writer: SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap(),
            chunks: Default::default(),
        }
    }

    /// A slice that sees a database of these pages, and reads some of them.
    fn see(&mut self, pages: &[u8], from: usize, to: usize) {
        self.work.prints.resize(pages.len(), 0);
        let bytes: Vec<u8> = pages[from..to].iter().flat_map(|page| [*page; SIZE]).collect();
        for (first, last) in (0..=bytes.len() / SIZE).flat_map(|last| (0..last).map(move |first| (first, last))) {
            let part = &bytes[first * SIZE..last * SIZE];
            self.chunks.insert(Hash::of(part), part.to_vec());
        }
        self.work.put_run(from as u32 + 1, &bytes, &mut self.writer).unwrap();
    }

    /// Ends with the image of a database of so many pages.
    fn finish(self, pages: usize, chunks: &mut std::collections::HashMap<Hash, Vec<u8>>) -> (Vec<Extent>, Vec<u8>) {
        chunks.extend(self.chunks);
        let extents = self.work.finish(pages as u32, None).extents;
        let mut bytes = Vec::new();
        for extent in &extents {
            match extent {
                Extent::Hole { len } => bytes.extend(std::iter::repeat_n(0, *len as usize)),
                Extent::Data { chunk, from, len } => bytes.extend(&chunks[chunk][*from as usize..][..*len as usize]),
            }
        }
        let pages = bytes.chunks(SIZE).map(|page| page[0]).collect();
        (extents, pages)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A database that shrinks, grows and becomes what it was before while it is captured: what counts is what the last
    /// slices have seen.
    #[test]
    fn an_image_is_what_was_seen_last(
        old in proptest::collection::vec(1..4u8, 1..10),
        seen in proptest::collection::vec((proptest::collection::vec(1..4u8, 1..10), 0..10usize, 0..10usize), 0..6),
        last in proptest::collection::vec(1..4u8, 1..10),
        cut in 0..10usize,
    ) {
        let (kit, head, mut chunks) = (Kit::new(), Head::default(), Default::default());
        let mut before = Slices::new(&kit, &head, &[]);
        before.see(&old, 0, old.len());
        let (extents, pages) = before.finish(old.len(), &mut chunks);
        prop_assert_eq!(&pages, &old);
        let mut slices = Slices::new(&kit, &head, &extents);
        for (pages, from, len) in seen {
            let from = from.min(pages.len() - 1);
            slices.see(&pages, from, (from + len.max(1)).min(pages.len()));
        }
        let cut = cut.min(last.len());
        for (from, to) in [(0, cut), (cut, last.len())] {
            if from < to {
                slices.see(&last, from, to);
            }
        }
        let (_, pages) = slices.finish(last.len(), &mut chunks);
        prop_assert_eq!(pages, last);
    }
}
