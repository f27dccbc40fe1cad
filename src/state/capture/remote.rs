//! File systems below a root that a server has to answer for: a process, or another machine. A call on one whose server does
//! not answer takes the thread that made it for good, so none is made. What is mounted where is asked of the kernel alone.

use std::{collections::BTreeMap, io, os::unix::ffi::OsStrExt, path::Path};

use crate::{
    state::walk::Below,
    store::mounts::{self, Mount},
};

/// Where they are mounted below a root, and of what type.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remote(BTreeMap<Vec<u8>, String>);

impl Remote {
    pub fn below(root: &mut Below) -> io::Result<Remote> {
        let own = mounts::of(&root.dir(b"")?)?;
        Ok(Remote::among(&mounts::all()?, &root.real_path(b"")?, &own))
    }

    /// Those of `mounts` below `root`, which is on `own`: what a server shows at several places it answers for or not.
    fn among(mounts: &[Mount], root: &Path, own: &Mount) -> Remote {
        let mut found = BTreeMap::new();
        for mount in mounts {
            if root.starts_with(&mount.point) {
                found.clear();
            } else if let Ok(point) = mount.point.strip_prefix(root) {
                // It hides what was mounted there and below before.
                found.retain(|hidden: &&Path, _| !hidden.starts_with(point));
                if mount.is_remote() && mount.device != own.device {
                    found.insert(point, &mount.fstype);
                }
            }
        }
        let named = found.into_iter();
        Remote(
            named
                .map(|(point, fstype)| (point.as_os_str().as_bytes().to_vec(), fstype.clone()))
                .collect(),
        )
    }

    /// The one that `rel` is on: where that is mounted, and its type.
    pub fn at(&self, rel: &[u8]) -> Option<(&[u8], &str)> {
        let is_on = |point: &&[u8]| {
            rel.strip_prefix(*point)
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let mut mounts = self.0.iter().map(|(point, fstype)| (point.as_slice(), fstype.as_str()));
        mounts.find(|(point, _)| is_on(point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_server_answers_for_and_is_not_hidden_is_remote() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/root rw\n\
            2 1 0:50 / /home/s/remote rw - fuse.rclone remote: rw\n\
            3 1 0:51 / /home/s/a/b rw - nfs4 server:/ rw\n\
            4 1 0:52 / /home/s/tmpfs rw - tmpfs none rw\n\
            5 1 0:53 / /home/s/hidden/below rw - fuse.sshfs host: rw\n\
            6 1 8:1 /x /home/s/hidden rw - ext4 /dev/root rw\n\
            7 1 0:54 / /home/s/host rw - fuse.grpcfuse grpcfuse rw\n\
            8 1 0:55 / /home/other rw - fuse.s3fs s3fs rw\n";
        let mut mounts = mounts::parse(table);
        let root = Path::new("/home/s");
        let remote = Remote::among(&mounts, root, &mounts[0]);
        for (path, at) in [
            ("remote", Some("remote")),
            ("remote/x/y", Some("remote")),
            ("remotely", None),
            ("a/b/c", Some("a/b")),
            ("a", None),
            ("tmpfs", None),
            ("hidden/below", None),
            ("host", None),
            ("", None),
        ] {
            let found = remote.at(path.as_bytes()).map(|(point, _)| point);
            assert_eq!(found, at.map(str::as_bytes), "{path}");
        }
        // A root that is itself on one.
        let on_remote = Remote::among(&mounts, Path::new("/home/s/remote/x"), &mounts[1]);
        assert_eq!(on_remote, Remote::default());
        let same = mounts::parse(b"9 1 0:50 /x /home/s/remote/x/again rw - fuse.rclone remote: rw\n");
        mounts.extend(same);
        let on_remote = Remote::among(&mounts, Path::new("/home/s/remote"), &mounts[1]);
        assert_eq!(on_remote, Remote::default());
        // The whole of it lies below a newer mount.
        mounts.extend(mounts::parse(b"10 1 0:60 / /home rw - tmpfs none rw\n"));
        assert_eq!(Remote::among(&mounts, root, &mounts[0]), Remote::default());
    }
}
