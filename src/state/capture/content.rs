//! Reading a file that somebody may be writing.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    time::Duration,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use crate::state::{
    chunk,
    model::{Extent, Hash},
    segment::{SegmentError, SegmentWriter},
    sqlite,
    walk::{Below, Stat},
};

/// What was read, and whether it was so at any one moment.
#[derive(Debug)]
pub struct Content {
    pub stat: Stat,
    pub extents: Vec<Extent>,
    pub steady: Steady,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steady {
    /// Nothing changed while it was read.
    Still,
    /// It grew, and nothing else: what was read is its beginning up to where it ended when it was opened.
    Grew,
    /// It was written to in the middle; what was read is a bit of before and a bit of after.
    Torn,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("it is a database")]
    Database,
}

/// Times a file is read again that changes while it is read, and how long a writer is given to finish.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(5);
/// A growing file longer than this is not read again at once: logs grow for ever.
pub const LONG: u64 = 4 << 20;

/// Reads the file at `rel` into chunks, again if it changes meanwhile. A database is read only if it is as good as no
/// database: bytes that were read one after the other are no image of it.
pub fn read(
    below: &mut Below,
    rel: &[u8],
    even_a_database: bool,
    writer: &mut SegmentWriter,
) -> Result<Content, ReadFailure> {
    let mut tries = 1;
    loop {
        let content = read_once(below, rel, even_a_database, writer)?;
        if !below.is_in_place(rel)? {
            // What was read may never have been here.
            return Err(ReadFailure::File(Errno::ENOENT.into()));
        }
        let enough = match content.steady {
            Steady::Still => true,
            Steady::Grew => content.stat.len > LONG,
            Steady::Torn => false,
        };
        if enough || tries >= TRIES {
            return Ok(content);
        }
        tries += 1;
        std::thread::sleep(PAUSE);
    }
}

fn read_once(
    below: &mut Below,
    rel: &[u8],
    even_a_database: bool,
    writer: &mut SegmentWriter,
) -> Result<Content, ReadFailure> {
    let (mut file, stat) = below.file(rel)?;
    if !even_a_database && is_database(&file)? {
        return Err(ReadFailure::Database);
    }
    let extents = extents(&mut file, stat.len, |bytes| writer.put(bytes))?;
    let len: u64 = extents.iter().map(chunk::len).sum();
    let after = Stat::of(&file)?;
    let still = (after.len, after.mtime_ns, after.ctime_ns) == (stat.len, stat.mtime_ns, stat.ctime_ns);
    if !still && !even_a_database && is_database(&file)? {
        return Err(ReadFailure::Database);
    }
    let steady = if still {
        Steady::Still
    } else if after.len > stat.len && has(&mut file, &extents)? {
        Steady::Grew
    } else {
        Steady::Torn
    };
    Ok(Content {
        stat: Stat { len, ..stat },
        extents,
        steady,
    })
}

fn is_database(file: &File) -> io::Result<bool> {
    let mut begin = [0; sqlite::MAGIC.len()];
    let len = file.metadata()?.len();
    Ok(len >= sqlite::SMALLEST && file.read_at(&mut begin, 0)? == begin.len() && begin == *sqlite::MAGIC)
}

/// Whether a file still begins with what was read of it: one that was appended to does, one that was written over and
/// became longer does not.
fn has(file: &mut File, read: &[Extent]) -> Result<bool, ReadFailure> {
    let len = read.iter().map(chunk::len).sum();
    Ok(extents(file, len, |bytes| Ok::<_, io::Error>(Hash::of(bytes)))? == read)
}

/// The first `len` bytes, or fewer if there are no more.
fn extents<P, E>(file: &mut File, len: u64, mut put: P) -> Result<Vec<Extent>, ReadFailure>
where
    P: FnMut(&[u8]) -> Result<Hash, E>,
    ReadFailure: From<E>,
{
    let mut found = Vec::new();
    let mut at = 0;
    while at < len {
        let Some((start, end)) = data(file, at, len)? else {
            break;
        };
        chunk::push(&mut found, Extent::Hole { len: start - at });
        file.seek(SeekFrom::Start(start))?;
        let mut read = start;
        chunk::split(file.by_ref().take(end - start), |bytes| {
            // A chunk has at most `MAX_CHUNK` bytes.
            let len = bytes.len() as u32;
            read += u64::from(len);
            chunk::push(
                &mut found,
                Extent::Data {
                    chunk: put(bytes)?,
                    from: 0,
                    len,
                },
            );
            Ok::<_, ReadFailure>(())
        })?;
        if read < end {
            break;
        }
        at = end;
    }
    Ok(found)
}

/// The next run of bytes that is not a hole, empty where the rest is one; `None` at the end of the file.
fn data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, from, whence).map(|at| u64::try_from(at).unwrap_or(0))
    };
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start.min(len),
        Err(Errno::ENXIO) => {
            let end = file.metadata()?.len().min(len);
            return Ok((end > at).then_some((end, end)));
        }
        // A filesystem that does not know.
        Err(Errno::EINVAL) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    match seek(start, Whence::SeekHole) {
        Ok(end) => Ok(Some((start, end.min(len)))),
        Err(Errno::ENXIO) => Ok(Some((start, start))),
        Err(error) => Err(error.into()),
    }
}

/// The first bytes of a file, as many as there are.
pub fn beginning<const N: usize>(below: &mut Below, rel: &[u8]) -> io::Result<Vec<u8>> {
    let (file, _) = below.file(rel)?;
    let mut bytes = Vec::with_capacity(N);
    file.take(N as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether there are only zeros after the first `at` bytes of a file.
pub fn is_zero_after(below: &mut Below, rel: &[u8], at: u64) -> io::Result<bool> {
    let (mut file, _) = below.file(rel)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = vec![0; 64 << 10];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(true),
            n if bytes[..n].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    fn of(file: &mut File, len: u64) -> Vec<Extent> {
        extents(file, len, |bytes| Ok::<_, io::Error>(Hash::of(bytes))).unwrap()
    }

    #[test]
    fn holes_stay_holes() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 4096], 4 << 20).unwrap();
        let found = of(&mut file, 8 << 20);
        assert_eq!(found.iter().map(chunk::len).sum::<u64>(), 8 << 20);
        assert!(
            matches!(
                found[..],
                [
                    Extent::Hole { len: 4_194_304 },
                    Extent::Data { .. },
                    Extent::Hole { .. }
                ]
            ),
            "{found:?}"
        );
        let mut only = tempfile::tempfile().unwrap();
        only.set_len(5).unwrap();
        assert_eq!(of(&mut only, 5), [Extent::Hole { len: 5 }]);
    }

    #[test]
    fn no_more_is_read_than_there_was_and_less_is_no_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1000]).unwrap();
        assert_eq!(
            of(&mut file, 600),
            [Extent::Data {
                chunk: Hash::of(&[1; 600]),
                from: 0,
                len: 600
            }]
        );
        let shorter = of(&mut file, 2000);
        assert_eq!(shorter.iter().map(chunk::len).sum::<u64>(), 1000);
        assert_eq!(of(&mut file, 0), []);
    }

    #[test]
    fn what_was_written_over_and_became_longer_did_not_only_grow() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 300_000]).unwrap();
        let read = of(&mut file, 300_000);
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&[2; 1000]).unwrap();
        assert!(has(&mut file, &read).unwrap());
        file.write_all_at(&[3], 200_000).unwrap();
        assert!(!has(&mut file, &read).unwrap());
        file.set_len(100_000).unwrap();
        assert!(!has(&mut file, &read).unwrap());
    }
}
