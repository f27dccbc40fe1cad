//! Looking at a root's files without ever being led out of it.
//!
//! An agent may swap a directory for a symlink between any two of our calls, so no path of more than one part is
//! ever handed to the kernel: each directory is opened by its name in its parent, and links are not followed.

use std::{
    ffi::{CString, OsStr},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    libc::nlink_t,
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

use crate::state::model::TreePath;

/// A directory that is captured, under the name it has in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub name: String,
    /// May be a symlink itself: that is its owner's choice. Nothing below it is followed.
    pub path: PathBuf,
}

/// Longest time between two ticks of a filesystem's clock, and of the clock of one that keeps whole seconds.
const TICK: Duration = Duration::from_millis(50);
const COARSE_TICK: Duration = Duration::from_secs(2);

/// Whether a file's last change, at `ns` since 1970, was so long ago that another would leave another time.
pub fn is_settled(ns: i64) -> bool {
    let tick = if ns % 1_000_000_000 == 0 { COARSE_TICK } else { TICK };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(tick).as_nanos()).is_ok_and(|last| ns < last)
}

/// What tells one version of a file from another, and what a snapshot keeps of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub links: nlink_t,
    pub what: What,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub len: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// The last change was so long before this was taken that another would have left another time.
    pub settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    Dir,
    File,
    Symlink,
    /// A socket, a pipe or a device: nothing that could be brought back.
    Special,
}

impl Stat {
    /// What an open file is like now.
    pub fn of(file: &std::fs::File) -> io::Result<Stat> {
        Ok(fstat(file)?.into())
    }

    /// Whether a file that was like this, and is like `now`, has surely not been written to in between.
    pub fn is_still(&self, now: &Stat) -> bool {
        self.settled && Stat { settled: true, ..*now } == *self
    }

    /// Tells files apart, whatever their names.
    pub fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }
}

impl From<FileStat> for Stat {
    fn from(stat: FileStat) -> Stat {
        let what = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => What::Dir,
            SFlag::S_IFREG => What::File,
            SFlag::S_IFLNK => What::Symlink,
            _ => What::Special,
        };
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        let ctime_ns = nanos(stat.st_ctime, stat.st_ctime_nsec);
        Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            links: stat.st_nlink,
            what,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns,
            settled: is_settled(ctime_ns),
        }
    }
}

/// True when a path is not there, or is no longer reached without following a link: for a snapshot the same.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
    )
}

/// Access to what is below one root. Neighbouring paths asked for one after the other share their open directories.
pub struct Below {
    root: OwnedFd,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Below {
    /// Opens the root as it is now; it may have been replaced since the last time.
    pub fn open(root: &Root) -> io::Result<Below> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(&root.path, flags, Mode::empty())?;
        Ok(Below { root, open: Vec::new() })
    }

    /// What is at `rel`; the empty path is the root itself.
    pub fn stat(&mut self, rel: &[u8]) -> io::Result<Stat> {
        if rel.is_empty() {
            return Ok(fstat(&self.root)?.into());
        }
        let (dir, name) = self.parent(rel)?;
        Ok(fstatat(dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
    }

    /// The names in the directory at `rel`, in byte order.
    pub fn names(&mut self, rel: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let dir = self.dir(rel)?;
        // A handle of its own: the shared one's position must not move.
        let again = openat(
            dir,
            c".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(again)?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The regular file at `rel`, for reading. A pipe put in its place does not block us.
    pub fn file(&mut self, rel: &[u8]) -> io::Result<(std::fs::File, Stat)> {
        let (dir, name) = self.parent(rel)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let file = openat(dir, name.as_c_str(), flags, Mode::empty())?;
        let stat = Stat::from(fstat(&file)?);
        if stat.what != What::File {
            return Err(Errno::ENOTDIR.into());
        }
        Ok((file.into(), stat))
    }

    pub fn link_target(&mut self, rel: &[u8]) -> io::Result<Vec<u8>> {
        let (dir, name) = self.parent(rel)?;
        Ok(std::os::unix::ffi::OsStringExt::into_vec(readlinkat(
            dir,
            name.as_c_str(),
        )?))
    }

    fn parent(&mut self, rel: &[u8]) -> io::Result<(BorrowedFd<'_>, CString)> {
        let (dir, name) = match rel.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&rel[..slash], &rel[slash + 1..]),
            None => (&b""[..], rel),
        };
        let name = CString::new(name)?;
        Ok((self.dir(dir)?, name))
    }

    /// Whether the directory that `rel` is in is still where it was opened. One that has been moved stays open, and what
    /// is in it goes on elsewhere.
    pub fn is_in_place(&mut self, rel: &[u8]) -> io::Result<bool> {
        let then = Stat::from(fstat(self.parent(rel)?.0)?);
        self.open.clear();
        let now = Stat::from(fstat(self.parent(rel)?.0)?);
        Ok(now.inode() == then.inode())
    }

    /// Where `rel` really is, without links on the way as far as that can be said of a path.
    pub fn real_path(&self, rel: &[u8]) -> io::Result<PathBuf> {
        let root = std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd()))?;
        Ok(root.join(OsStr::from_bytes(rel)))
    }

    /// The directory at `rel`, open.
    pub fn dir(&mut self, rel: &[u8]) -> io::Result<BorrowedFd<'_>> {
        let parts: Vec<&[u8]> = rel
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let shared = self
            .open
            .iter()
            .zip(&parts)
            .take_while(|((name, _), part)| name == *part)
            .count();
        self.open.truncate(shared);
        for part in &parts[shared..] {
            let parent = self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(parent, CString::new(*part)?.as_c_str(), flags, Mode::empty())?;
            self.open.push((part.to_vec(), fd));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

/// The path of `name` in the directory `dir` of a tree.
pub fn join(dir: &[u8], name: &[u8]) -> TreePath {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// A tree path taken apart: the root's name and the path below it, empty for the root itself.
pub fn split(path: &[u8]) -> (&str, &[u8]) {
    let (root, rel) = match path.iter().position(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, &b""[..]),
    };
    (std::str::from_utf8(root).unwrap_or_default(), rel)
}

/// A path for a person to read.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn root(dir: &tempfile::TempDir) -> Below {
        Below::open(&Root {
            name: "state".into(),
            path: dir.path().into(),
        })
        .unwrap()
    }

    #[test]
    fn a_link_is_never_followed_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("d")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("f")).unwrap();
        let mut below = root(&dir);
        assert!(is_gone(&below.stat(b"d/secret").unwrap_err()));
        assert!(is_gone(&below.file(b"f").unwrap_err()));
        assert!(is_gone(&below.names(b"d").unwrap_err()));
        assert_eq!(below.stat(b"f").unwrap().what, What::Symlink);
        assert_eq!(
            below.link_target(b"d").unwrap(),
            outside.path().as_os_str().as_encoded_bytes()
        );
    }

    #[test]
    fn a_directory_swapped_for_a_link_after_it_was_opened_is_still_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("a"), "outside").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), "in").unwrap();
        let mut below = root(&dir);
        below.stat(b"d/a").unwrap();
        fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
        symlink(outside.path(), dir.path().join("d")).unwrap();
        let (file, stat) = below.file(b"d/a").unwrap();
        assert_eq!((io::read_to_string(file).unwrap().as_str(), stat.len), ("in", 2));
        assert!(is_gone(&root(&dir).file(b"d/a").unwrap_err()));
    }

    #[test]
    fn a_clock_of_whole_seconds_takes_longer_to_move_on() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let second = 1_000_000_000;
        assert!(is_settled((now - second) / second * second + 1));
        assert!(!is_settled((now - second) / second * second));
        assert!(is_settled((now - 4 * second) / second * second));
        assert!(!is_settled(now + second));
    }

    #[test]
    fn names_come_in_order_and_a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a-wal", "a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        nix::unistd::mkfifo(&dir.path().join("p"), Mode::S_IRWXU).unwrap();
        let mut below = root(&dir);
        for _ in 0..2 {
            assert_eq!(below.names(b"").unwrap(), [&b"a"[..], b"a-wal", b"b", b"p"]);
        }
        assert!(below.file(b"p").is_err());
        assert_eq!(below.stat(b"p").unwrap().what, What::Special);
        assert_eq!(
            (split(b"state"), split(b"state/a/b")),
            (("state", &b""[..]), ("state", &b"a/b"[..]))
        );
    }
}
