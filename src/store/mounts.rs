//! Which mount a path is on, as the kernel sees it, without asking the file system behind the mount.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    /// Of the file system, whatever is mounted of it and how often.
    pub device: String,
    pub point: PathBuf,
    pub fstype: String,
    pub source: String,
}

impl Mount {
    /// Whether each call is a request to a user-space server, such as s3fs.
    pub fn is_fuse(&self) -> bool {
        self.fstype == "fuse" || self.fstype.starts_with("fuse.")
    }

    /// Whether a process or another machine has to answer, and may not. What shows a container its own files, or those of
    /// the machine that it is on, answers as long as the container runs.
    pub fn is_remote(&self) -> bool {
        const OWN: [&str; 3] = ["fuse.fuse-overlayfs", "fuse.grpcfuse", "fuse.osxfs"];
        const NETWORK: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "lustre"];
        let fstype = self.fstype.as_str();
        self.is_fuse() && !OWN.contains(&fstype) || NETWORK.contains(&fstype)
    }
}

/// The mount that `path` is on. Opening with `O_PATH` walks to the path and no further, so on the mount's own
/// root nothing is asked of its server; below it, the server is asked and may hang.
pub fn covering(path: &Path) -> io::Result<Mount> {
    use nix::fcntl::{OFlag, open};
    let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    of(&fd)
}

/// The mount that an open file is on. Without `/proc` only its device is known: no mount that is expected, but enough for
/// a plain directory to be seen to stay what it was.
pub fn of(fd: &(impl AsRawFd + AsFd)) -> io::Result<Mount> {
    if !Path::new("/proc/self").exists() {
        let device = nix::sys::stat::fstat(fd)?.st_dev;
        return Ok(Mount {
            id: device,
            device: device.to_string(),
            point: "/".into(),
            fstype: "unknown".into(),
            source: "an unknown device".into(),
        });
    }
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = mount_id(&fdinfo).ok_or_else(|| io::Error::other("no mnt_id in /proc/self/fdinfo"))?;
    all()?
        .into_iter()
        .find(|mount| mount.id == id)
        .ok_or_else(|| io::Error::other("its mount is detached, or of another namespace"))
}

/// Every mount there is.
pub fn all() -> io::Result<Vec<Mount>> {
    // Read as bytes: a mount point somewhere on the machine need not be UTF-8.
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// What is mounted below `dir`, whose path has no links in it, and not hidden by another mount; parents first. No file
/// system is asked. Without `/proc` there is nothing that is known.
pub fn below(dir: &Path) -> io::Result<Vec<Mount>> {
    let all = match all() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        all => all?,
    };
    let mut found = BTreeMap::new();
    for mount in all {
        if dir.starts_with(&mount.point) {
            found.clear();
        } else if mount.point.starts_with(dir) {
            found.retain(|hidden: &PathBuf, _| !hidden.starts_with(&mount.point));
            found.insert(mount.point.clone(), mount);
        }
    }
    Ok(found.into_values().collect())
}

/// Returns when a file system was mounted or unmounted, or after `patience`.
///
/// The kernel marks an open mountinfo with POLLPRI when the table changes (proc_pid_mountinfo(5)).
pub fn wait_for_change(patience: Duration) {
    match fs::File::open("/proc/self/mountinfo") {
        Ok(table) => {
            has_changed(&table, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
        }
        Err(_) => std::thread::sleep(patience),
    }
}

/// The table of mounts, to see whether it has changed.
pub struct Table {
    /// `None` without `/proc`.
    file: Option<fs::File>,
    changes: AtomicU64,
}

impl Table {
    pub fn open() -> Table {
        Table {
            file: fs::File::open("/proc/self/mountinfo").ok(),
            changes: AtomicU64::new(0),
        }
    }

    /// In how many looks it had changed since the one before.
    pub fn changes(&self) -> u64 {
        let changed = self
            .file
            .as_ref()
            .is_some_and(|file| has_changed(file, PollTimeout::ZERO));
        self.changes.fetch_add(u64::from(changed), Ordering::Relaxed) + u64::from(changed)
    }
}

fn has_changed(table: &fs::File, patience: PollTimeout) -> bool {
    let mut wanted = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
    poll(&mut wanted, patience).is_ok_and(|ready| ready > 0)
}

fn mount_id(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// Every well-formed line of a mountinfo file, in its order: a later mount on the same point hides an earlier one.
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let point = unescape(fields.nth(1)?);
    // A varying number of optional fields ends with a lone hyphen.
    fields.find(|&field| field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        id,
        device,
        point: PathBuf::from(OsString::from_vec(point)),
        fstype: text(fields.next()?),
        source: text(fields.next()?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_optional_fields_and_escapes() {
        let text = b"36 35 98:0 / / rw shared:1 - ext4 /dev/root rw\n\
            77 36 0:57 / /mnt/my\\040bucket rw,nosuid shared:2 master:1 - fuse.s3fs s3fs rw\nrubbish\n\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].point, Path::new("/mnt/my bucket"));
        assert_eq!((mounts[1].id, mounts[1].is_fuse()), (77, true));
        assert!(!mounts[0].is_fuse());
    }

    #[test]
    fn the_mount_of_proc_is_proc() {
        let mount = covering(Path::new("/proc/self/task")).unwrap();
        assert_eq!(
            (mount.point.as_path(), mount.fstype.as_str()),
            (Path::new("/proc"), "proc")
        );
    }
}
