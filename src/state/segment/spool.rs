//! Where a segment is put together before the store sees anything of it: a file without a name, or memory where the disk
//! takes none. That it is full or failing is no reason to lose what is on it; and it is the agent's, so no more of it is
//! used than leaves twice as much: what mounts the store may need as much again on the way there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    statvfs::fstatvfs,
};
use sha2::{Digest, Sha256};

/// Bytes of chunks that are put together in memory.
const MOST_IN_MEMORY: u64 = 32 << 20;
const BUFFER: usize = 256 << 10;

pub struct Spool {
    file: File,
    room: Room,
    /// The end, which is not in the file yet.
    buffer: Vec<u8>,
    pub len: u64,
    pub sum: Sha256,
}

/// What there may be of it.
enum Room {
    Memory,
    Disk,
    /// Of a disk that nobody else uses.
    OwnDisk,
}

/// How far it had been written at some time.
pub struct Mark {
    pub len: u64,
    sum: Sha256,
}

impl Spool {
    /// In `dir`, or in memory if that has as little room, or cannot be written.
    pub fn open(dir: &Path) -> io::Result<Spool> {
        let on_disk = unlinked(dir).and_then(|file| Ok((free(&file)? / 3 >= MOST_IN_MEMORY).then_some(file)));
        let (file, room) = match on_disk {
            Ok(Some(file)) => (file, Room::Disk),
            Ok(None) | Err(_) => (memfd_create("segment", MFdFlags::MFD_CLOEXEC)?.into(), Room::Memory),
        };
        Ok(Spool {
            file,
            room,
            buffer: Vec::with_capacity(BUFFER),
            len: 0,
            sum: Sha256::new(),
        })
    }

    /// The disk is nobody else's.
    pub fn take_all(&mut self) {
        if matches!(self.room, Room::Disk) {
            self.room = Room::OwnDisk;
        }
    }

    /// Whether there may be `more` bytes, as things are now.
    pub fn fits(&self, more: u64) -> io::Result<bool> {
        let len = self.len + more;
        Ok(match self.room {
            Room::Memory => len <= MOST_IN_MEMORY,
            Room::Disk => len <= free(&self.file)? / 2,
            Room::OwnDisk => true,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.len += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BUFFER {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.in_file())?;
        self.buffer.clear();
        Ok(())
    }

    fn in_file(&self) -> u64 {
        self.len - self.buffer.len() as u64
    }

    pub fn mark(&self) -> Mark {
        Mark {
            len: self.len,
            sum: self.sum.clone(),
        }
    }

    /// Takes back what was written since, also if the last of it could not be.
    pub fn roll_back(&mut self, to: Mark) -> io::Result<()> {
        let in_file = self.in_file();
        self.buffer.truncate(to.len.saturating_sub(in_file) as usize);
        (self.len, self.sum) = (to.len, to.sum);
        if to.len < in_file {
            self.file.set_len(to.len)?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<File> {
        self.flush()?;
        Ok(self.file)
    }
}

/// Bytes that its disk has left.
fn free(file: &File) -> io::Result<u64> {
    let disk = fstatvfs(file)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// A file in `dir` for `len` bytes on their way somewhere, that is gone when it is closed. There is none where they would
/// take most of the room that is left.
pub fn scratch(dir: &Path, len: u64) -> io::Result<File> {
    let file = unlinked(dir)?;
    match free(&file)? / 2 {
        room if room < len => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(file),
    }
}

/// A file without a name, that is gone when the process is.
fn unlinked(dir: &Path) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("segment-{}", ulid::Ulid::generate()));
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    open.inspect(|_| {
        // If this fails the file stays behind under its name, and is found and removed by whoever cleans the spool.
        let _ = fs::remove_file(&path);
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_taken_back_was_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = |parts: &[(&[u8], bool)]| {
            let mut spool = Spool::open(dir.path()).unwrap();
            for (part, stays) in parts {
                let mark = spool.mark();
                spool.write(part).unwrap();
                if !stays {
                    spool.roll_back(mark).unwrap();
                }
            }
            let (len, sum) = (spool.len, spool.sum.clone().finalize());
            let mut bytes = Vec::new();
            spool.finish().unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!((bytes.len() as u64, Sha256::digest(&bytes)), (len, sum));
            bytes
        };
        let (small, large) = ([1; 1000], [2; BUFFER + 1000]);
        for first in [&small[..], &large] {
            for second in [&small[..], &large] {
                let both = written(&[(first, true), (second, false), (second, false), (&small, true)]);
                assert_eq!(both, [first, &small].concat());
            }
        }
    }

    #[test]
    fn memory_takes_no_more_than_its_share() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        // No file can be made there.
        let mut spool = Spool::open(&dir.path().join("file")).unwrap();
        assert!(spool.fits(MOST_IN_MEMORY).unwrap());
        spool.write(&[0; 1000]).unwrap();
        spool.take_all();
        assert!(!spool.fits(MOST_IN_MEMORY).unwrap());
    }
}
