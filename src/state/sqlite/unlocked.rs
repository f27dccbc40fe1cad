//! Reading without a lock, and knowing whether it was in vain. Why that is right is said in [`super`].

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use super::{BUFFER, CaptureError, Reader, Seen, Work, interruption, wal};
use crate::state::segment::SegmentWriter;

/// Where the bytes are that SQLite locks.
const LOCKS: u32 = 1 << 30;

/// Bytes read between two looks at the log when no lock is held. A log that has been begun anew twice from one look to the
/// next tells nothing, so the looks are close.
const SKIM: usize = 128 << 10;
/// What a transaction may be left with: who has to wait for that does not notice.
const ENOUGH: usize = 64 << 10;
/// Looks at the log in a row with no less left than before, after which what is left is left to transactions: somebody
/// writes as fast as is read.
const IDLE: u32 = 8;
/// Times that a database without a log is read without a lock before it is copied with one.
const RESTS: u32 = 5;
/// Times that nobody may know what has changed, so that all of it has to be read again, before no more is read without a
/// lock. The first time nothing has been read yet; later ones take a part of the time, as only what differs is stored.
const LOST: u32 = 10;
/// How long it is waited, a few times, until the log tells from where on something has changed.
const SETTLE: Duration = Duration::from_millis(10);
const SETTLES: u32 = 10;

impl Work<'_> {
    pub(super) fn may_be_read_unlocked(&self) -> bool {
        if self.has_log {
            self.lost < LOST
        } else {
            self.lost < RESTS && !self.is_small()
        }
    }

    /// A slice or two read all of it.
    fn is_small(&self) -> bool {
        self.pages as usize * self.image.page_size() as usize <= BUFFER
    }

    /// Reads what it can without a lock; what it has seen then, and what is left, is for a transaction to make sense of.
    pub(super) fn read_unlocked(&mut self, reader: &Reader, writer: &mut SegmentWriter) -> Result<(), CaptureError> {
        if self.has_log {
            self.skim(reader, writer)
        } else {
            self.read_at_rest(reader, writer)
        }
    }

    /// Reads a database with a log.
    fn skim(&mut self, reader: &Reader, writer: &mut SegmentWriter) -> Result<(), CaptureError> {
        let Some(file) = reader.file() else { return Ok(()) };
        let (mut least, mut idle) = (u32::MAX, 0);
        while self.lost < LOST
            && let Some(before) = self.settled_mark(reader)?
        {
            let changed = match self.seen {
                Some(Seen::Log(mark)) => reader.changed(mark)?,
                _ => None,
            };
            self.lost += u32::from(changed.is_none());
            self.note(changed.as_ref());
            self.seen = Some(Seen::Log(before));
            let left = self.stale.len();
            idle = if left < least { 0 } else { idle + 1 };
            least = least.min(left);
            if left as usize * self.image.page_size() as usize <= ENOUGH || idle > IDLE {
                break;
            }
            let log = reader.log()?;
            let advanced = self.frames.advance(log.as_ref(), before);
            if !advanced.map_err(|error| reader.log_error(&error))? {
                continue;
            }
            interruption();
            // A file that has become shorter is for a transaction to make sense of.
            let Ok(true) = self.read_still(file, log.as_ref(), SKIM) else {
                break;
            };
            interruption();
            let held = match &log {
                Some(log) => self.frames.held(log).map_err(|error| reader.log_error(&error))?,
                None => true,
            };
            match reader.changed(before)? {
                Some(_) if !held => self.unread(),
                // What was being written while it was read is read again. Put all the same, it does no harm.
                Some(changed) => {
                    let numbers = self.numbers.iter().filter(|page| changed.contains(page));
                    numbers.for_each(|page| self.stale.insert(*page));
                    self.put(writer)?;
                }
                None => {
                    self.unread();
                    self.seen = None;
                }
            }
        }
        self.unread();
        Ok(())
    }

    /// Reads a database without a log from a moment on at which nobody writes to it. Whether it has been left alone is for
    /// the next transaction to tell.
    fn read_at_rest(&mut self, reader: &Reader, writer: &mut SegmentWriter) -> Result<(), CaptureError> {
        let Some(file) = reader.file().filter(|_| !self.is_small()) else {
            return Ok(());
        };
        // Nothing has been read of it yet, and most of the time goes into what has to be stored. What is stored now need not
        // be when it counts.
        let is_first = self.read == 0;
        let mut settles = 0;
        let (counter, rest) = loop {
            interruption();
            let Ok(view) = reader.view() else { return Ok(()) };
            let Some(counter) = view.counter.filter(|_| view.page_size == self.image.page_size()) else {
                return Ok(());
            };
            if self.seen == Some(Seen::Counter(counter)) {
                return Ok(());
            }
            let rest = reader.times().filter(wal::Times::are_settled);
            self.pages = view.pages;
            drop(view);
            if rest.is_some() || is_first {
                break (counter, rest);
            }
            settles += 1;
            if settles > SETTLES {
                return Ok(());
            }
            std::thread::sleep(SETTLE);
        };
        self.note(None);
        interruption();
        let is_at_rest = || rest.is_some() && reader.times() == rest;
        // A file that has become shorter is for a transaction to make sense of.
        while (is_first || is_at_rest())
            && let Ok(true) = self.read_still(file, None, BUFFER)
        {
            self.put(writer)?;
            interruption();
        }
        self.unread();
        if let Some(times) = rest
            && is_at_rest()
        {
            self.seen = Some(Seen::Rest { counter, times });
        }
        Ok(())
    }

    /// The place where the log is now. Where there is more than a slice to read a moment is given for it to be told.
    fn settled_mark(&self, reader: &Reader) -> Result<Option<wal::Mark>, CaptureError> {
        let mut mark = reader.mark(self.seen)?;
        for _ in 0..SETTLES {
            if mark.is_some() || self.is_small() || !reader.has_log() {
                break;
            }
            std::thread::sleep(SETTLE);
            mark = reader.mark(self.seen)?;
        }
        Ok(mark)
    }

    /// Reads stale pages, whole blocks of them up to about `most` bytes, from where they are as of the last mark: in the
    /// log or else in the file itself. It goes on after those that it has read last, since some are stale again at once.
    /// False if there are none.
    pub(super) fn read_still(&mut self, file: &File, log: Option<&File>, most: usize) -> Result<bool, CaptureError> {
        let last = self.read_last;
        self.read_still_from(last + 1, file, log, most)?;
        if self.numbers.is_empty() {
            self.read_still_from(1, file, log, most)?;
        }
        Ok(!self.numbers.is_empty())
    }

    fn read_still_from(&mut self, from: u32, file: &File, log: Option<&File>, most: usize) -> Result<(), CaptureError> {
        let (size, block) = (self.image.page_size(), self.image.block());
        // SQLite never uses the page that its locks are in.
        let locks = LOCKS / size + 1;
        let mut next = from;
        while self.buffer.len() < most
            && let Some(first) = self.stale.next(next)
        {
            next = first + 1;
            if first == locks {
                continue;
            }
            let is_logged = |page| log.is_some() && self.frames.contains(page);
            let at = self.buffer.len();
            let read = match log.filter(|_| is_logged(first)) {
                Some(log) => self.frames.read(log, first, &mut self.buffer),
                None => {
                    let end = (first - 1) / block * block + block + 1;
                    let still = |page: u32| page != locks && self.stale.contains(page) && !is_logged(page);
                    next = (next..end).find(|page| !still(*page)).unwrap_or(end);
                    self.buffer.resize(at + (next - first) as usize * size as usize, 0);
                    file.read_exact_at(&mut self.buffer[at..], u64::from(first - 1) * u64::from(size))
                }
            };
            if let Err(error) = read {
                self.buffer.truncate(at);
                return Err(CaptureError::Unavailable(error.to_string()));
            }
            for page in first..next {
                self.numbers.push(page);
                self.stale.remove(page);
            }
            self.read += u64::from(next - first);
            self.read_last = next - 1;
        }
        Ok(())
    }

    /// Forgets what was read and not put.
    fn unread(&mut self) {
        self.buffer.clear();
        for page in std::mem::take(&mut self.numbers) {
            self.stale.insert(page);
        }
    }
}
