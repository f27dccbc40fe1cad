//! A consistent image of a database that others are using, through SQLite's own locks.
//!
//! Pages are read with `sqlite_dbpage` inside read transactions that are kept so short that nobody notices: a few
//! milliseconds each, as many as it takes, and after each of them it is known which pages have changed since they
//! were read (from the log's frame headers, or the change counter where there is no log). The image is done when a
//! transaction ends with nothing left to read: then every page is as that one transaction sees it.
//!
//! SQLite's locks are POSIX locks, and closing any descriptor of a file drops all of the process's locks on it. So
//! no database is opened as a plain file while a connection of this process has it open.

mod image;
mod reader;
mod wal;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use image::{Image, Layout};
use reader::{Reader, View};

use crate::state::{
    model::{Extent, Hash},
    segment::{SegmentError, SegmentWriter},
};

// Without the flags in `.cargo/config.toml` SQLite has no `sqlite_dbpage`, and no database could be captured. Where Cargo
// does not see that file (it is not in the directory above a build, or not copied into it), nothing is built.
const _: &str = env!(
    "LIBSQLITE3_FLAGS",
    "SQLite has to be built with the flags in .cargo/config.toml: run cargo inside the repository, and copy .cargo with it"
);

/// The first bytes of every database.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A page, of the smallest size that there is.
pub const SMALLEST: u64 = 512;

/// How long one read transaction lasts. Whenever more has changed than was read the next one lasts twice as long, up to
/// a time that a writer who waits at all still waits for: its writers wait once, rather than it never being captured.
const SLICE: Duration = Duration::from_millis(2);
const LONGEST_SLICE: Duration = Duration::from_secs(2);
/// Times that this may happen before the database is left for later.
const OUTRUN: u32 = 12;
/// Bytes of pages held at a time.
const BUFFER: usize = 1 << 20;
/// Times in a row that a database may be locked between two slices.
const BUSY: u32 = 10;

/// What is known of a database as of its last image, to read only what changed since. Can be lost without harm.
#[derive(Debug, Clone, Default)]
pub struct Known {
    page_size: u32,
    seen: Option<Seen>,
    /// The file itself before the last look, had it been left alone long enough for its times to tell.
    main: Option<wal::Times>,
    /// Of each page the start of its hash; 0 for one that is not known.
    pages: Vec<u64>,
}

/// Up to where changes have been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// In the log.
    Log(wal::Mark),
    /// By the change counter, which counts where there is no log.
    Counter(u32),
}

/// An image, whose chunks have been put.
#[derive(Debug)]
pub struct Captured {
    pub page_size: u32,
    pub len: u64,
    pub extents: Vec<Extent>,
    pub known: Known,
    /// Bytes of the file after its last page, if there are any.
    pub behind: Option<u64>,
    /// Pages that were read for it, counted as often as they were.
    pub read: u64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Somebody holds it. Worth trying again.
    #[error("is locked by its user, and is tried again: {0}")]
    Busy(rusqlite::Error),
    /// Nor will it be readable later.
    #[error("looks like an SQLite database but is not readable as one ({0}), so its bytes are stored as they are")]
    Damaged(String),
    #[error("is written to faster than it can be read, and is tried again")]
    Outrun,
    #[error("cannot be opened as an SQLite database, and is tried again: {0}")]
    Unavailable(String),
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl From<rusqlite::Error> for CaptureError {
    fn from(error: rusqlite::Error) -> CaptureError {
        use rusqlite::ErrorCode as Code;
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::SchemaChanged) => CaptureError::Busy(error),
            Some(Code::NotADatabase | Code::DatabaseCorrupt) => CaptureError::Damaged(error.to_string()),
            _ => CaptureError::Unavailable(error.to_string()),
        }
    }
}

/// Captures the database at `path`. `old` is its last image in the snapshot with its page size, `known` what its
/// last capture found out, if that belongs to the same file.
pub fn capture(
    path: &Path,
    old: Option<(u32, &[Extent])>,
    known: Option<&Known>,
    writer: &mut SegmentWriter,
) -> Result<Captured, CaptureError> {
    let reader = Reader::open(path)?;
    loop {
        let page_size = reader.view()?.page_size;
        let work = Work::begin(page_size, old, known, wal::Times::of(path));
        if let Some(captured) = work.capture(&reader, writer)? {
            return Ok(captured);
        }
    }
}

/// A capture under way.
struct Work<'a> {
    image: Image,
    layout: Layout<'a>,
    seen: Option<Seen>,
    main: Option<wal::Times>,
    hashes: Vec<u64>,
    /// Pages that have been put: the image has them otherwise than `layout`.
    put: PageSet,
    stale: PageSet,
    /// Blocks to be put as a whole, by their first pages.
    rewrite: PageSet,
    /// Pages that were read and not looked at yet, in ascending order.
    buffer: Vec<u8>,
    numbers: Vec<u32>,
    /// Pages read up to now.
    read: u64,
}

impl<'a> Work<'a> {
    /// `main` is what the file itself is like now.
    fn begin(
        page_size: u32,
        old: Option<(u32, &'a [Extent])>,
        known: Option<&Known>,
        main: Option<wal::Times>,
    ) -> Work<'a> {
        let extents = old
            .filter(|(size, _)| *size == page_size)
            .map_or(&[][..], |(_, extents)| extents);
        let known = known.filter(|known| known.page_size == page_size && !extents.is_empty());
        Work {
            image: Image::new(page_size, extents),
            layout: Layout::new(page_size, extents),
            // A counter says what happened to one file; another may have been copied over it.
            seen: known
                .filter(|known| matches!(known.seen, Some(Seen::Log(_))) || main.is_some() && known.main == main)
                .and_then(|known| known.seen),
            main: None,
            hashes: known.map(|known| known.pages.clone()).unwrap_or_default(),
            put: PageSet::default(),
            stale: PageSet::default(),
            rewrite: PageSet::default(),
            buffer: Vec::new(),
            numbers: Vec::new(),
            read: 0,
        }
    }

    /// Reads slice by slice until all that was read is of one moment. `None` if the page size changes meanwhile.
    fn capture(mut self, reader: &Reader, writer: &mut SegmentWriter) -> Result<Option<Captured>, CaptureError> {
        let (mut left, mut outrun, mut busy) = (None, 0, 0);
        loop {
            let before = reader.mark(self.seen)?;
            self.main = reader.settled();
            let held = Instant::now();
            let view = match reader.view() {
                // It was free a moment ago, so it is not held for good.
                Err(CaptureError::Busy(_)) if left.is_some() && busy < BUSY => {
                    busy += 1;
                    continue;
                }
                view => view?,
            };
            busy = 0;
            if view.page_size != self.image.page_size() {
                return Ok(None);
            }
            self.note(reader, &view)?;
            let stale = self.stale.len();
            outrun += u32::from(left.is_some_and(|left| left <= stale));
            left = Some(stale);
            if outrun > OUTRUN {
                return Err(CaptureError::Outrun);
            }
            let slice = SLICE.saturating_mul(1 << outrun).min(LONGEST_SLICE);
            let done = self.read(&view, slice, writer)?;
            let behind = done.and_then(|_| reader.behind(&view));
            self.seen = view.seen(before);
            drop(view);
            let held = held.elapsed();
            let free = Instant::now();
            self.put(writer)?;
            if let Some(pages) = done {
                return Ok(Some(self.finish(pages, behind)));
            }
            // As long as it was held: a checkpoint does not queue, but looks now and then, ever more seldom, whether
            // it may begin.
            std::thread::sleep(held.min(SLICE).saturating_sub(free.elapsed()));
        }
    }

    /// Takes note of what may have changed up to `view`: everything, if nobody knows.
    fn note(&mut self, reader: &Reader, view: &View) -> Result<(), CaptureError> {
        let changed = match (self.seen, view.counter) {
            (Some(Seen::Log(mark)), None) => reader.changed(mark)?,
            (Some(Seen::Counter(seen)), Some(now)) if seen == now => Some(Default::default()),
            _ => None,
        };
        match &changed {
            Some(pages) => pages.iter().for_each(|page| self.stale.insert(*page)),
            None => (1..=view.pages).for_each(|page| self.stale.insert(page)),
        }
        // Pages that the image did not have up to now are changed whether a log names them or not.
        let had = u32::try_from(self.hashes.len()).unwrap_or(u32::MAX);
        (had + 1..=view.pages).for_each(|page| self.stale.insert(page));
        self.hashes.resize(view.pages as usize, 0);
        self.stale.truncate(view.pages);
        let block = self.image.block();
        let scattered: Vec<u32> = match &changed {
            Some(pages) => pages
                .iter()
                .copied()
                .filter(|page| self.layout.scattered(*page))
                .collect(),
            None => (1..=view.pages)
                .step_by(block as usize)
                .filter(|page| self.layout.scattered(*page))
                .collect(),
        };
        for page in scattered {
            let first = (page - 1) / block * block + 1;
            self.rewrite.insert(first);
            (first..=view.pages.min(first + block - 1)).for_each(|page| self.stale.insert(page));
        }
        Ok(())
    }

    /// Reads stale pages for about a `slice`, whole blocks of them. With none left, the number of pages there are.
    fn read(&mut self, view: &View, slice: Duration, writer: &mut SegmentWriter) -> Result<Option<u32>, CaptureError> {
        let started = Instant::now();
        let block = self.image.block();
        while let Some(page) = self.stale.first() {
            let at_block = (page - 1) % block == 0 || self.numbers.last().is_some_and(|last| last + 1 != page);
            if at_block && !self.numbers.is_empty() && started.elapsed() >= slice {
                return Ok(None);
            }
            if at_block && self.buffer.len() >= BUFFER {
                // What is to be put is compressed, which no writer waits for unless there is no other way.
                if slice == SLICE {
                    return Ok(None);
                }
                self.put(writer)?;
            }
            view.read(page, &mut self.buffer)?;
            self.numbers.push(page);
            self.read += 1;
            self.stale.remove(page);
        }
        Ok(Some(view.pages))
    }

    /// Puts what has changed of the pages that were read.
    fn put(&mut self, writer: &mut SegmentWriter) -> Result<(), CaptureError> {
        let size = self.image.page_size() as usize;
        let (numbers, bytes) = (std::mem::take(&mut self.numbers), std::mem::take(&mut self.buffer));
        let block = self.image.block();
        let same_run = |a: &u32, b: &u32| a + 1 == *b && (a - 1) / block == (b - 1) / block;
        let mut at = 0;
        for run in numbers.chunk_by(same_run) {
            let part = &bytes[at * size..(at + run.len()) * size];
            at += run.len();
            self.put_run(run[0], part, writer)?;
        }
        // Kept for the next slice, so that it need not grow again.
        self.buffer = bytes;
        self.buffer.clear();
        Ok(())
    }

    /// Puts what has changed of consecutive pages of one block.
    fn put_run(&mut self, first: u32, bytes: &[u8], writer: &mut SegmentWriter) -> Result<(), CaptureError> {
        let size = self.image.page_size() as usize;
        let block = self.image.block();
        let whole = self.rewrite.contains((first - 1) / block * block + 1);
        let known = &mut self.hashes[first as usize - 1..][..bytes.len() / size];
        let same = if known.contains(&0) && !whole {
            self.layout.unchanged(first, bytes)
        } else {
            vec![false; known.len()]
        };
        let mut changed: Vec<bool> = Vec::with_capacity(known.len());
        for (((number, old), page), same) in (first..).zip(known).zip(bytes.chunks(size)).zip(same) {
            let now = short(page);
            // What the old image says counts for pages that are in this one as they were there, and for no others: a
            // page may be what it was before it was something else, in slices of one capture.
            let as_it_was = *old == 0 && same && !self.put.contains(number);
            changed.push(whole || *old != now && !as_it_was);
            *old = now;
        }
        let mut page = 0;
        for run in changed.chunk_by(|a, b| a == b) {
            if run[0] {
                let chunk = writer.put(&bytes[page * size..(page + run.len()) * size])?;
                let (first, count) = (first + page as u32, run.len() as u32);
                self.image.set(first, count, chunk);
                (first..first + count).for_each(|page| self.put.insert(page));
            }
            page += run.len();
        }
        Ok(())
    }

    fn finish(self, pages: u32, behind: Option<u64>) -> Captured {
        let page_size = self.image.page_size();
        Captured {
            page_size,
            len: u64::from(pages) * u64::from(page_size),
            extents: self.image.finish(pages),
            known: Known {
                page_size,
                seen: self.seen,
                main: self.main,
                pages: self.hashes,
            },
            behind,
            read: self.read,
        }
    }
}

/// Enough of a page's hash to tell that it changed. Never 0.
fn short(page: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *Hash::of(page).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// Page numbers, a bit each.
#[derive(Debug, Default)]
struct PageSet {
    words: Vec<u64>,
    /// No word before this one has a bit.
    low: usize,
}

impl PageSet {
    fn insert(&mut self, page: u32) {
        let word = page as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (page % 64);
        self.low = self.low.min(word);
    }

    fn remove(&mut self, page: u32) {
        if let Some(word) = self.words.get_mut(page as usize / 64) {
            *word &= !(1 << (page % 64));
        }
    }

    fn len(&self) -> u32 {
        let words = self.words.get(self.low..).unwrap_or_default();
        words.iter().map(|word| word.count_ones()).sum()
    }

    fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    fn first(&mut self) -> Option<u32> {
        while *self.words.get(self.low)? == 0 {
            self.low += 1;
        }
        Some(self.low as u32 * 64 + self.words[self.low].trailing_zeros())
    }

    /// Removes the pages after `last`.
    fn truncate(&mut self, last: u32) {
        self.words.truncate(last as usize / 64 + 1);
        if let Some(word) = self.words.get_mut(last as usize / 64) {
            *word &= u64::MAX >> (63 - last % 64);
        }
        self.low = self.low.min(self.words.len());
    }
}

#[cfg(test)]
mod tests;
