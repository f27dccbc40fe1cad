//! Building a tree in a directory of our own, step by step from open directories, never through a symbolic link.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat, geteuid, linkat, symlinkat},
};

use super::RestoreError;
use crate::state::model::{Entry, Kind};

/// A directory that is being filled.
pub struct Stage {
    path: PathBuf,
    /// Where what is staged here begins in the tree.
    part: Vec<u8>,
    root: OwnedFd,
    /// The directory last walked to: entries come in path order.
    last: Mutex<Option<(Vec<u8>, OwnedFd)>>,
    /// An owner that this system does not know has been met and said.
    disowned: AtomicBool,
}

const DIR: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Stage {
    /// A new, empty, private directory at `path`, for that part of the tree.
    pub fn create(path: &Path, part: &[u8]) -> Result<Stage, RestoreError> {
        let make = || {
            fs::DirBuilder::new().create(path)?;
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
            Ok(nix::fcntl::open(path, DIR, Mode::empty())?)
        };
        let root = make().map_err(|source: io::Error| RestoreError::local("making", path, source))?;
        Ok(Stage {
            path: path.to_owned(),
            part: part.to_vec(),
            root,
            last: Mutex::new(None),
            disowned: AtomicBool::new(false),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn part(&self) -> &[u8] {
        &self.part
    }

    /// The rest of a tree path that is below the part; nothing for the part itself.
    pub fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        path.strip_prefix(self.part.as_slice())?.strip_prefix(b"/")
    }

    /// Makes a directory. `path` is below the part that is staged.
    pub fn make_dir(&self, path: &[u8]) -> Result<(), RestoreError> {
        self.at("making", path, |dir, name| Ok(mkdirat(dir, name, Mode::S_IRWXU)?))
    }

    /// Opens a file for writing; makes it if it is not there yet.
    pub fn open(&self, path: &[u8]) -> Result<File, RestoreError> {
        self.at("opening", path, |dir, name| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            Ok(File::from(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
        })
    }

    /// Makes a file that long, with a hole behind what has been written to it.
    pub fn extend(&self, path: &[u8], len: u64) -> Result<(), RestoreError> {
        let extended = self.open(path)?.set_len(len);
        extended.map_err(|source| RestoreError::local("making", &self.path.join(OsStr::from_bytes(path)), source))
    }

    /// Makes a link. Only after every file has been written, so that none is written through one.
    pub fn link(&self, path: &[u8], entry: &Entry) -> Result<(), RestoreError> {
        match &entry.kind {
            Kind::Symlink { target } => self.at("linking", path, |dir, name| {
                Ok(symlinkat(OsStr::from_bytes(target), dir, name)?)
            }),
            Kind::HardLink { to } => {
                let Some(to) = self.below(to) else {
                    return Ok(());
                };
                let file = self.at("opening", to, |dir, name| {
                    Ok(openat(
                        dir,
                        name,
                        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                        Mode::empty(),
                    )?)
                })?;
                let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
                self.at("linking", path, |dir, name| {
                    let source = format!("/proc/self/fd/{fd}");
                    Ok(linkat(
                        &self.root,
                        source.as_str(),
                        dir,
                        name,
                        AtFlags::AT_SYMLINK_FOLLOW,
                    )?)
                })
            }
            _ => Ok(()),
        }
    }

    /// Sets owner (as root), mode and time. Of a directory only after everything in it is there.
    pub fn finish(&self, path: &[u8], entry: &Entry) -> Result<(), RestoreError> {
        if matches!(entry.kind, Kind::HardLink { .. }) {
            return Ok(());
        }
        self.at("setting the attributes of", path, |dir, name| {
            if geteuid().is_root() {
                let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                match fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    // Of a user namespace, or a file system without owners. The state is worth more than they are.
                    Err(errno @ (Errno::EINVAL | Errno::EPERM)) => self.disown(path, entry, errno),
                    done => done?,
                }
            }
            if !matches!(entry.kind, Kind::Symlink { .. }) {
                // What is here is ours and no link; following is what every kernel supports.
                let mode = Mode::from_bits_truncate(entry.mode);
                fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
            }
            let (seconds, nanos) = (
                entry.mtime_ns.div_euclid(1_000_000_000),
                entry.mtime_ns.rem_euclid(1_000_000_000),
            );
            let mtime = TimeSpec::new(seconds, nanos);
            Ok(utimensat(dir, name, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)?)
        })
    }

    fn disown(&self, path: &[u8], entry: &Entry, errno: Errno) {
        if !self.disowned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %self.path.join(OsStr::from_bytes(path)).display(), uid = entry.uid, gid = entry.gid, %errno,
                "an owner cannot be given here; such files are ours from now on"
            );
        }
    }

    /// Calls `act` with the open directory that `path` is in, and its last part. The root itself is `.` in itself.
    fn at<T>(
        &self,
        what: &'static str,
        path: &[u8],
        act: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<T>,
    ) -> Result<T, RestoreError> {
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            _ if path.is_empty() => (&[][..], &b"."[..]),
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        let run = || {
            let dir = self.walk(parent)?;
            let done = act(&dir, OsStr::from_bytes(name))?;
            *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((parent.to_vec(), dir));
            Ok(done)
        };
        run().map_err(|source| RestoreError::local(what, &self.path.join(OsStr::from_bytes(path)), source))
    }

    fn walk(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some((_, dir)) = last.filter(|(at, _)| at == path) {
            return Ok(dir);
        }
        let mut dir = self.root.try_clone()?;
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            dir = openat(dir.as_fd(), OsStr::from_bytes(part), DIR, Mode::empty())?;
        }
        Ok(dir)
    }
}

/// A tree path's part below its root; nothing for the root itself.
pub fn below(path: &[u8]) -> Option<&[u8]> {
    path.iter().position(|&b| b == b'/').map(|slash| &path[slash + 1..])
}

#[cfg(test)]
mod tests {
    use crate::{
        neighbour::run,
        pid1::Exit,
        state::{
            diff,
            history::History,
            model::Reason,
            recover::{Recovered, recover},
            restore::Progress,
            segment::SegmentWriter,
            tests::{
                kit::{Kit, meta, scan},
                process::again_alone,
            },
        },
        store::{Expect, Patience, Store},
    };

    /// Set in the process that restores: where the store is.
    const PLACE: &str = "MOLTINIT_TEST_OWNERS";

    #[test]
    fn an_owner_that_is_not_known_here_stops_no_restore() {
        if let Some(place) = std::env::var_os(PLACE).map(std::path::PathBuf::from) {
            let store = Store::open(&place.join("store"), Expect::Existing, Patience::default());
            let history = History::open(store, "default", None).unwrap();
            let targets = [("state".to_owned(), place.join("back"))];
            let recovered = recover(
                &history,
                &|_| Ok(targets.to_vec()),
                &place.join("work"),
                &Progress::default(),
            );
            assert!(matches!(recovered.unwrap(), Recovered::Restored { .. }));
            return;
        }
        let mut kit = Kit::new();
        kit.write("dir/theirs", "content");
        let (id, live, spool) = (kit.generation.next_id(), kit.live(), kit.path("spool"));
        let mut writer = SegmentWriter::new(&kit.head, &spool, id, None).unwrap();
        let mut tree = scan(&live, &mut writer);
        for path in [&b"state/dir"[..], b"state/dir/theirs"] {
            let entry = tree.get_mut(path).unwrap();
            (entry.uid, entry.gid) = (4711, 4712);
        }
        let delta = diff::delta(kit.head.tree(), &tree);
        let segment = writer.finish(meta(id, None, Reason::Change), delta).unwrap();
        kit.history.commit(&segment).unwrap();
        let name = "an_owner_that_is_not_known_here_stops_no_restore";
        let restored = run(again_alone(module_path!(), name, PLACE, &kit.path("")));
        assert_eq!(
            restored.exit,
            Exit::Code(0),
            "{}",
            String::from_utf8_lossy(&restored.stderr)
        );
        assert_eq!(std::fs::read(kit.path("back/dir/theirs")).unwrap(), b"content");
    }
}
