//! A connection that reads pages and leaves no trace.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::libc;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, config::DbConfig};

use super::{CaptureError, LONGEST_SLICE, MOST_PAGES, Seen, Users, wal};
use crate::event::millis;

/// How long a lock is waited for, looking again every millisecond: a commit without a log takes a moment. Anything
/// longer is somebody's intention.
const PATIENCE: i32 = 40;

/// Bytes copied between two looks at the clock.
const PART: u64 = 4 << 20;

/// Nothing that is asked of a database takes longer, unless it has been made to keep us busy.
const LONGEST: Duration = Duration::from_secs(10);

pub struct Reader {
    db: Connection,
    question: Question,
    path: PathBuf,
    log: PathBuf,
    /// The file itself. Closed last: that drops the locks of the connection, see [`super`].
    file: Option<File>,
    /// It is known to be the one that the connection has.
    is_its_own: bool,
}

/// What is read in one transaction.
pub struct View<'a> {
    /// Ends when dropped.
    tx: Transaction<'a>,
    reader: &'a Reader,
    pub page_size: u32,
    pub pages: u32,
    /// How often it was written to; `None` for one with a log, where that is not counted.
    pub counter: Option<u32>,
}

/// When the present one was asked. SQLite itself counts the steps of a statement over all times that it is run.
#[derive(Clone)]
struct Question {
    opened: Instant,
    /// In milliseconds from then on.
    asked: Arc<AtomicU64>,
}

impl Question {
    fn ask(&self) {
        self.asked.store(millis(self.opened.elapsed()), Ordering::Relaxed);
    }

    fn takes(&self) -> Duration {
        let asked = Duration::from_millis(self.asked.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(asked)
    }
}

impl Reader {
    /// Opens the database for reading: closing a file that was open for writing would look like a change. Only where
    /// SQLite has to undo what a crash left half-done is it opened for writing, as by whoever would open it next. Not so a
    /// file with several names: a journal belongs to one of them, and by another its user may have gone on long ago.
    pub fn open(path: &Path, users: Users) -> Result<Reader, CaptureError> {
        let before = wal::Times::of(path);
        let mut reader = Reader::open_for(path, LONGEST)?;
        if let Users::Others = users {
            reader.hold(open(path)?, before);
        }
        Ok(reader)
    }

    /// Takes the file for what need not go through SQLite, if it is the one that the connection has: the one that was
    /// there `before` it was made, and is there now. Whether or not that can be told, it is not closed.
    pub(super) fn hold(&mut self, file: Option<File>, before: Option<wal::Times>) {
        self.file = file;
        let is_its_own = |now: wal::Times| before.is_some_and(|before| now.is_of_same_file(before));
        self.is_its_own = self
            .file
            .as_ref()
            .and_then(|file| wal::Times::of_open(file, &self.path))
            .is_some_and(is_its_own);
    }

    pub(super) fn open_for(path: &Path, longest: Duration) -> Result<Reader, CaptureError> {
        Reader::open_as(path, OpenFlags::SQLITE_OPEN_READ_ONLY, longest).or_else(|error| {
            match error.sqlite_error_code() {
                Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) if has_one_name(path) => {
                    Ok(Reader::open_as(path, OpenFlags::SQLITE_OPEN_READ_WRITE, longest)?)
                }
                _ => Err(error.into()),
            }
        })
    }

    fn open_as(path: &Path, access: OpenFlags, longest: Duration) -> rusqlite::Result<Reader> {
        let flags = access
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let mut db = Connection::open_with_flags(path, flags)?;
        db.busy_handler(Some(|tries| {
            std::thread::sleep(Duration::from_millis(1));
            tries < PATIENCE
        }))?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        let question = Question {
            opened: Instant::now(),
            asked: Arc::default(),
        };
        let asked = question.clone();
        db.progress_handler(100_000, Some(move || asked.takes() > longest))?;
        db.pragma_update(None, "query_only", true)?;
        db.pragma_update(None, "mmap_size", 0)?;
        // From here on the log, if there is one, is open, and what a crash left behind is recovered.
        db.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Reader {
            db,
            question,
            path: path.to_owned(),
            log: log.into(),
            file: None,
            is_its_own: false,
        })
    }

    /// The file itself, for what need not go through SQLite.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.is_its_own)
    }

    /// Whether there is a log, be it empty.
    pub fn has_log(&self) -> bool {
        self.log.exists()
    }

    /// The log, if it is there.
    pub fn log(&self) -> Result<Option<File>, CaptureError> {
        open(&self.log)
    }

    /// The times of the file that is read without a lock, if it is still the database's.
    pub fn times(&self) -> Option<wal::Times> {
        wal::Times::of_open(self.file()?, &self.path)
    }

    /// A place in the log that the next view has all of; `None` where there is no log, or no telling. `last` is the one
    /// before.
    pub fn mark(&self, last: Option<Seen>) -> Result<Option<wal::Mark>, CaptureError> {
        self.question.ask();
        let main = self.settled();
        let before = self.run()?;
        // What the log holds of committed frames, by SQLite's own index of it: a frame that can be seen in the file
        // may be of a transaction that is not over. Does nothing (`NOOP`).
        let frames = self
            .db
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1));
        let frames = frames.ok().and_then(|frames| u32::try_from(frames).ok());
        if self.run()? != before {
            return Ok(None);
        }
        let was_written_to = |run| match last {
            Some(Seen::Log(wal::Mark::At { salt, frames })) => salt == run && frames > 0,
            Some(Seen::Log(wal::Mark::Over { salt })) => salt == run,
            _ => false,
        };
        Ok(match (before, frames, main) {
            (Some(salt), Some(0), _) if was_written_to(salt) => Some(wal::Mark::Over { salt }),
            (Some(salt), Some(frames), _) => Some(wal::Mark::At { salt, frames }),
            (None, Some(0), Some(main)) => Some(wal::Mark::Empty { main }),
            _ => None,
        })
    }

    /// The file itself, if it has been left alone for long enough for its times to tell.
    pub fn settled(&self) -> Option<wal::Times> {
        wal::Times::settled(&self.path)
    }

    /// The pages that may have changed since `mark`, if the log tells.
    pub fn changed(&self, mark: wal::Mark) -> Result<Option<BTreeSet<u32>>, CaptureError> {
        let log = open(&self.log)?;
        wal::changed(log.as_ref(), &self.path, mark).map_err(|error| self.log_error(&error))
    }

    /// Begins a read transaction.
    pub fn view(&self) -> Result<View<'_>, CaptureError> {
        self.question.ask();
        let tx = self.db.unchecked_transaction()?;
        let header = tx.prepare_cached(PAGE)?.query_row([1], |row| {
            let page = row.get_ref(0)?.as_blob()?;
            let len = page.len() as u32;
            let header: Option<[u8; 100]> = page.get(..100).and_then(|header| header.try_into().ok());
            Ok(header.map(|header| (header, len)))
        })?;
        let Some((header, page_size)) = header.filter(|(_, size)| size.is_power_of_two() && *size <= 65536) else {
            return Err(CaptureError::Damaged("its first page is none".into()));
        };
        let pages: i64 = tx.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let has_log = header[18] == 2 || header[19] == 2;
        let counter = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
        let few = u32::try_from(pages).ok().filter(|pages| *pages <= MOST_PAGES);
        Ok(View {
            page_size,
            pages: few.ok_or_else(|| CaptureError::Damaged(format!("it has {pages} pages")))?,
            counter: (!has_log).then_some(counter),
            tx,
            reader: self,
        })
    }

    /// The bytes that the file has after its last page: a user of it may have made room in advance. With a log the file
    /// may be of any length.
    pub fn behind(&self, view: &View) -> Option<u64> {
        let pages = u64::from(view.pages) * u64::from(view.page_size);
        let len = fs::symlink_metadata(&self.path).ok()?.len();
        len.checked_sub(pages)
            .filter(|behind| *behind > 0 && view.counter.is_some())
    }

    /// The run that the log is in, if it has been begun.
    fn run(&self) -> Result<Option<wal::Salt>, CaptureError> {
        let Some(log) = open(&self.log)? else { return Ok(None) };
        let header = wal::header(&log).map_err(|error| self.log_error(&error))?;
        Ok(header.map(|(salt, _)| salt))
    }

    pub fn log_error(&self, error: &io::Error) -> CaptureError {
        CaptureError::Unavailable(format!("{}: {error}", self.log.display()))
    }
}

fn has_one_name(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.nlink() == 1)
}

/// Opens a file, if it is there.
fn open(path: &Path) -> Result<Option<File>, CaptureError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaptureError::Unavailable(format!("{}: {error}", path.display()))),
    }
}

const PAGE: &str = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";

impl View<'_> {
    /// Appends the bytes of a page.
    pub fn read(&self, page: u32, to: &mut Vec<u8>) -> Result<(), CaptureError> {
        self.reader.question.ask();
        let mut read = self.tx.prepare_cached(PAGE)?;
        let len = read.query_row([page], |row| {
            let bytes = row.get_ref(0)?.as_blob()?;
            to.extend_from_slice(bytes);
            Ok(bytes.len())
        })?;
        if len != self.page_size as usize {
            return Err(CaptureError::Damaged(format!("its page {page} has {len} bytes")));
        }
        Ok(())
    }

    /// Copies the file of a database without a log, whose pages it has as they are. `None` with a log, or where the
    /// file is not to be opened, or there is no room.
    pub fn copy(&self, to: impl FnOnce(u64) -> io::Result<File>) -> Result<Option<File>, CaptureError> {
        let Some(mut file) = self.reader.file().filter(|_| self.counter.is_some()) else {
            return Ok(None);
        };
        let begun = Instant::now();
        let mut left = u64::from(self.pages) * u64::from(self.page_size);
        let copied = to(left).and_then(|mut copy| {
            file.rewind()?;
            while left > 0 && begun.elapsed() < LONGEST_SLICE {
                let part = io::copy(&mut file.take(left.min(PART)), &mut copy)?;
                left -= part;
                if part == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok((copy, left))
        });
        match copied {
            Ok((copy, 0)) => Ok(Some(copy)),
            Ok(_) => Err(CaptureError::Outrun),
            Err(error) => {
                tracing::debug!(path = %self.reader.path.display(), %error, "a database cannot be copied, and is read under its lock");
                Ok(None)
            }
        }
    }

    /// Up to where changes have been seen with this view, given the mark taken before it.
    pub fn seen(&self, before: Option<wal::Mark>) -> Option<Seen> {
        match self.counter {
            Some(counter) => Some(Seen::Counter(counter)),
            None => before.map(Seen::Log),
        }
    }
}
