//! Which pages of a database changed, read off the headers in its write-ahead log.
//!
//! The log's own format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. Only whether a page may have
//! changed is taken from it, never a page's content, so no check sum is looked at: a page named by mistake is read
//! through SQLite and found to be unchanged.

use std::{
    collections::BTreeSet,
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
        Times::of(path).filter(|times| is_settled(times.ctime_ns) && is_settled(times.mtime_ns))
    }

    pub fn of(path: &Path) -> Option<Times> {
        let stat = fs::symlink_metadata(path).ok()?;
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Some(Times {
            ino: stat.ino(),
            len: stat.len(),
            mtime_ns: nanos(stat.mtime(), stat.mtime_nsec()),
            ctime_ns: nanos(stat.ctime(), stat.ctime_nsec()),
        })
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
    let header = header.filter(|header| is_log(header));
    Ok(header.map(|header| (Salt(be(&header, 16), be(&header, 20)), be(&header, 8))))
}

/// The page that a frame is of, and the salt of the run in which it was written.
fn frame(file: &File, number: u32, page_size: u32) -> io::Result<Option<(u32, Salt)>> {
    let at = HEADER + u64::from(number - 1) * (FRAME + u64::from(page_size));
    let header = read::<16>(file, at)?;
    Ok(header.map(|header| (be(&header, 0), Salt(be(&header, 8), be(&header, 12)))))
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

/// Every page that the log's present run has a frame of.
pub fn pages(log: Option<&File>) -> io::Result<BTreeSet<u32>> {
    let mut pages = BTreeSet::new();
    if let Some(log) = log
        && let Some((salt, page_size)) = header(log)?
    {
        collect(log, 1, salt, page_size, &mut pages)?;
    }
    Ok(pages)
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
