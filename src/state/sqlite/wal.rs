//! Which pages of a database changed, read off the headers in its write-ahead log.
//!
//! The log's own format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. Whether a page may have changed is
//! taken from it without a look at check sums: a page named by mistake is read and found to be unchanged. A page's content
//! is taken from it only up to a frame that SQLite's own index counts among the committed ones; see [`Frames`].

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use crate::state::walk::is_settled;

/// The first four bytes of a log, but for the last bit, which says how its check sums are made.
const MAGIC: u32 = 0x377f_0682;
const HEADER: u64 = 32;
const FRAME: u64 = 24;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Everything up to and with frame `frames` (counted from 1) of the run of the log that `salt` names. A log is
    /// begun anew from its start, with a new salt, whenever all of it is in the database.
    At { salt: Salt, frames: u32 },
    /// All of the run `salt` is in the database, and the next has not been begun: a checkpoint has seen to that.
    Over { salt: Salt },
    /// The log was empty, and the database's own file was as `main`. While that file does not change, nothing has
    /// been taken over into it, so the log cannot have been begun twice.
    Empty { main: Times },
}

/// What changes with every write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    ino: u64,
    len: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Times {
    /// The times of the file at `path`, unless it was written to so recently that another write might not show.
    pub fn settled(path: &Path) -> Option<Times> {
        Times::of(path).filter(Times::are_settled)
    }

    pub fn of(path: &Path) -> Option<Times> {
        fs::symlink_metadata(path).ok().map(|stat| Times::read(&stat))
    }

    /// Of a file that is open and still the one at `path`.
    pub fn of_open(file: &File, path: &Path) -> Option<Times> {
        let open = Times::read(&file.metadata().ok()?);
        Times::of(path).filter(|times| *times == open)
    }

    pub fn is_of_same_file(self, other: Times) -> bool {
        self.ino == other.ino
    }

    pub fn are_settled(&self) -> bool {
        is_settled(self.ctime_ns) && is_settled(self.mtime_ns)
    }

    fn read(stat: &fs::Metadata) -> Times {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Times {
            ino: stat.ino(),
            len: stat.len(),
            mtime_ns: nanos(stat.mtime(), stat.mtime_nsec()),
            ctime_ns: nanos(stat.ctime(), stat.ctime_nsec()),
        }
    }
}

/// The first half counts up from one run to the next, the second is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(u32, u32);

impl Salt {
    fn follows(self, before: Salt) -> bool {
        self.0 == before.0.wrapping_add(1)
    }
}

fn be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file that begins with these bytes is a log that has been begun.
pub fn is_log(beginning: &[u8]) -> bool {
    beginning.len() >= 4 && be(beginning, 0) & !1 == MAGIC
}

/// The salt of the log's present run and its page size; `None` for a log that has not been begun.
pub fn header(file: &File) -> io::Result<Option<(Salt, u32)>> {
    let header = read::<{ HEADER as usize }>(file, 0)?;
    let page_size = |header: &[u8]| be(header, 8);
    let is_size = |size: u32| size.is_power_of_two() && (512..=65536).contains(&size);
    let header = header.filter(|header| is_log(header) && is_size(page_size(header)));
    Ok(header.map(|header| (Salt(be(&header, 16), be(&header, 20)), page_size(&header))))
}

/// The page that a frame is of, and the salt of the run in which it was written. A frame of no page is none.
fn frame(file: &File, number: u32, page_size: u32) -> io::Result<Option<(u32, Salt)>> {
    let at = HEADER + u64::from(number - 1) * (FRAME + u64::from(page_size));
    let header = read::<16>(file, at)?;
    let frame = header.map(|header| (be(&header, 0), Salt(be(&header, 8), be(&header, 12))));
    Ok(frame.filter(|(page, _)| *page > 0))
}

/// Adds the pages of the frames from `first` on that are of the run `salt`; returns how many frames these are.
fn collect(file: &File, first: u32, salt: Salt, page_size: u32, pages: &mut BTreeSet<u32>) -> io::Result<u32> {
    let mut number = first;
    while let Some((page, found)) = frame(file, number, page_size)?
        && found == salt
    {
        pages.insert(page);
        number += 1;
    }
    Ok(number - first)
}

/// Where the log has the pages that are in it, as of a mark.
///
/// A run of the log only grows. A committed frame is written to again in no other way than by beginning the log anew
/// (section 4.4 of the file format, "WAL Reset": "the WAL header salt-1 value is incremented and the salt-2 value is
/// randomized"), and SQLite writes the new header before the new run's first frame. So whoever has read frames up to a mark
/// and after that still finds the run's salt in the header has read them as they were committed, with no lock. That
/// they were committed is in the mark: frames after it may be of a transaction that is not over.
#[derive(Debug, Default)]
pub struct Frames {
    salt: Option<Salt>,
    page_size: u32,
    /// Frames that have been looked at.
    upto: u32,
    /// The last of them of each page.
    last: HashMap<u32, u32>,
}

impl Frames {
    /// Moves on to `mark`. False if the log is not any more as the mark has it.
    pub fn advance(&mut self, log: Option<&File>, mark: Mark) -> io::Result<bool> {
        let Mark::At { salt, frames } = mark else {
            // All of the log is in the database.
            *self = Frames::default();
            return Ok(true);
        };
        let Some((log, (now, page_size))) = (match log {
            Some(log) => header(log)?.map(|header| (log, header)),
            None => None,
        }) else {
            return Ok(false);
        };
        if now != salt {
            return Ok(false);
        }
        if self.salt != Some(salt) || self.page_size != page_size || frames < self.upto {
            *self = Frames {
                salt: Some(salt),
                page_size,
                ..Frames::default()
            };
        }
        while self.upto < frames {
            match frame(log, self.upto + 1, page_size)? {
                Some((page, found)) if found == salt => self.last.insert(page, self.upto + 1),
                _ => return Ok(false),
            };
            self.upto += 1;
        }
        Ok(true)
    }

    pub fn contains(&self, page: u32) -> bool {
        self.last.contains_key(&page)
    }

    /// Appends the page as the log has it, if the log has it.
    pub fn read(&self, log: &File, page: u32, to: &mut Vec<u8>) -> io::Result<()> {
        let number = self.last.get(&page).ok_or(io::ErrorKind::NotFound)?;
        let at = HEADER + u64::from(number - 1) * (FRAME + u64::from(self.page_size)) + FRAME;
        let end = to.len();
        to.resize(end + self.page_size as usize, 0);
        log.read_exact_at(&mut to[end..], at)
    }

    /// Whether what was read is what had been committed: the run has not ended.
    pub fn held(&self, log: &File) -> io::Result<bool> {
        Ok(self.salt.is_none() || header(log)?.map(|(salt, _)| salt) == self.salt)
    }
}

/// Every page that may have changed since `mark` in the database at `main`, or `None` when that cannot be told.
pub fn changed(log: Option<&File>, main: &Path, since: Mark) -> io::Result<Option<BTreeSet<u32>>> {
    let run = match log {
        Some(log) => header(log)?.map(|(salt, page_size)| (log, salt, page_size)),
        None => None,
    };
    let mut pages = BTreeSet::new();
    match (run, since) {
        (run, Mark::Empty { main: then }) => {
            if let Some((log, salt, page_size)) = run {
                collect(log, 1, salt, page_size, &mut pages)?;
            }
            Ok((Times::of(main) == Some(then)).then_some(pages))
        }
        (Some((log, salt, page_size)), Mark::At { salt: before, frames }) if salt == before => {
            collect(log, frames + 1, salt, page_size, &mut pages)?;
            Ok(Some(pages))
        }
        (Some((_, salt, _)), Mark::Over { salt: before }) if salt == before => Ok(Some(pages)),
        (Some((log, salt, page_size)), Mark::Over { salt: before }) if salt.follows(before) => {
            collect(log, 1, salt, page_size, &mut pages)?;
            let once = header(log)?.is_some_and(|(now, _)| now == salt);
            Ok(once.then_some(pages))
        }
        // Begun anew once: what was appended before that is still there, unless the new run has come as far or the
        // file has been cut, which leaves a part of a frame at its end.
        (Some((log, salt, page_size)), Mark::At { salt: before, frames }) if salt.follows(before) && frames > 0 => {
            collect(log, 1, salt, page_size, &mut pages)?;
            collect(log, frames + 1, before, page_size, &mut pages)?;
            let whole = log.metadata()?.len().saturating_sub(HEADER) % (FRAME + u64::from(page_size)) == 0;
            let there = frame(log, frames, page_size)?.is_some_and(|(_, found)| found == before);
            let once = header(log)?.is_some_and(|(now, _)| now == salt);
            Ok((whole && there && once).then_some(pages))
        }
        _ => Ok(None),
    }
}

/// A log that may be anything, held against marks of its own run and of the one before.
#[cfg(any(test, fuzzing))]
pub fn fuzz(path: &Path) {
    let log = File::open(path).expect("the log");
    let Ok(Some((salt, _))) = header(&log) else { return };
    let before = Salt(salt.0.wrapping_sub(1), 0);
    let frames = |salt| [0, 1, 1000].map(|frames| Mark::At { salt, frames });
    let marks = frames(salt).into_iter().chain(frames(before));
    for mark in marks.chain([Mark::Over { salt }, Mark::Over { salt: before }]) {
        let pages = changed(Some(&log), path, mark).expect("a file that can be read");
        // No page is made up: each has a frame.
        let most = log.metadata().expect("its length").len() / FRAME;
        assert!(pages.is_none_or(|pages| pages.len() as u64 <= most));
    }
}
