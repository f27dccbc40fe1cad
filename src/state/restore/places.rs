//! Where on the disk each part of a tree goes: a root, or what of a root is on a mount of its own.
//!
//! Nothing can be renamed from one mount to another, nor a mount itself. So what is below a mount is staged in it, and put
//! in its place there. A mount of a single file, or one that cannot be written to, is whoever's who mounted it, and stays.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{
    RestoreError,
    aside::{self, STAGED},
    swap::Move,
};
use crate::{
    paths,
    state::{
        head::Head,
        model::{Kind, TreePath},
        walk::join,
    },
    store::mounts,
};

/// The parts by where they begin in the tree; without a move what stays as it is.
pub struct Places(BTreeMap<TreePath, Option<Move>>);

impl Places {
    /// Clears away what an earlier restore left staged there.
    pub fn of(head: &Head, targets: &[(String, PathBuf)]) -> Result<Places, RestoreError> {
        let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut parts = BTreeMap::new();
        for (root, target) in targets {
            if head.tree().contains_key(root.as_bytes()) {
                // A link stands for what it leads to, there or not: that is where the state is to be.
                let step = step(paths::resolve(target), &date);
                let step = step.map_err(|source| local(target, source))?;
                parts.insert(root.as_bytes().to_vec(), Some(step));
            }
        }
        apart(parts.values().flatten())?;
        let roots: Vec<(TreePath, PathBuf)> = parts
            .iter()
            .filter_map(|(root, step)| Some((root.clone(), step.as_ref()?.target.clone())))
            .collect();
        for (root, target) in &roots {
            let below = mounts::below(target).map_err(|source| local(target, source))?;
            let own = mounts::covering(target).map(|own| own.device).unwrap_or_default();
            let mut remote: Vec<PathBuf> = Vec::new();
            for mount in below {
                if mount.is_remote() && mount.device != own {
                    remote.push(mount.point.clone());
                }
                let is_remote = remote.iter().any(|point| mount.point.starts_with(point));
                let mount = mount.point;
                let below = mount.strip_prefix(target).unwrap_or(&mount).as_os_str().as_bytes();
                let part = join(root, below);
                // A server may not answer; nothing is captured of what it has. Another root may be mounted here as well; it
                // is put in its place where it is.
                let step = if is_remote || roots.iter().any(|(_, target)| is_same(target, &mount)) {
                    None
                } else if stays(&mount).map_err(|source| local(&mount, source))? {
                    tracing::warn!(mount = %mount.display(), "a mount of a single file, or one that cannot be written to, stays as it is, whatever the snapshot has of it");
                    None
                } else {
                    if !is_dir_in(head, root.len(), &part) {
                        return Err(RestoreError::Mount(mount));
                    }
                    Some(step(mount.clone(), &date).map_err(|source| local(&mount, source))?)
                };
                parts.insert(part, step);
            }
        }
        Ok(Places(parts))
    }

    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.0.values().flatten()
    }

    pub fn into_moves(self) -> Vec<Move> {
        self.0.into_values().flatten().collect()
    }

    /// Parts that move, and where they begin.
    pub fn parts(&self) -> impl Iterator<Item = (&[u8], &Move)> {
        self.0
            .iter()
            .filter_map(|(part, step)| Some((part.as_slice(), step.as_ref()?)))
    }

    /// The part that a path of the tree is in: where it begins, and its move.
    pub fn part(&self, path: &[u8]) -> Option<(&[u8], Option<&Move>)> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut longest_first = slashes.map(|(at, _)| at).chain([path.len()]).rev();
        longest_first.find_map(|end| {
            let (part, step) = self.0.get_key_value(&path[..end])?;
            Some((part.as_slice(), step.as_ref()))
        })
    }
}

fn local(place: &Path, source: io::Error) -> RestoreError {
    RestoreError::local("preparing to restore", place, source)
}

/// Fails where a root would be put into another.
fn apart<'a>(moves: impl Iterator<Item = &'a Move> + Clone) -> Result<(), RestoreError> {
    for a in moves.clone() {
        let mut others = moves.clone().filter(|b| b.target != a.target);
        if let Some(b) = others.find(|b| b.target.starts_with(&a.target)) {
            return Err(RestoreError::Nested(b.target.clone(), a.target.clone()));
        }
    }
    Ok(())
}

/// Where a target's tree is staged and where what is there goes: beside it, or inside where it is a mount point,
/// since both have to be on its file system.
fn step(target: PathBuf, date: &str) -> io::Result<Move> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::Error::other("the root directory cannot hold state"));
    };
    fs::create_dir_all(parent)?;
    let is_mount = mounts::covering(&target).is_ok_and(|mount| mount.point == target);
    let (dir, name) = if is_mount {
        (target.as_path(), "".into())
    } else {
        (parent, name.to_string_lossy())
    };
    let staged = dir.join(format!("{STAGED}{name}"));
    match fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(Move {
        staged,
        aside: aside::free(dir, &name, date),
        target,
    })
}

fn stays(mount: &Path) -> io::Result<bool> {
    let is_dir = fs::symlink_metadata(mount)?.is_dir();
    Ok(!is_dir || statvfs(mount)?.flags().contains(FsFlags::ST_RDONLY))
}

fn is_same(a: &Path, b: &Path) -> bool {
    let inode = |path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    inode(a).is_some() && inode(a) == inode(b)
}

/// Whether nothing but directories are on the way to `path`, from behind its root on, and there, as far as they are in the
/// tree at all.
fn is_dir_in(head: &Head, root: usize, path: &[u8]) -> bool {
    let mut ends = (root + 1..=path.len()).filter(|end| path.get(*end).is_none_or(|byte| *byte == b'/'));
    ends.all(|end| {
        head.tree()
            .get(&path[..end])
            .is_none_or(|entry| entry.kind == Kind::Dir)
    })
}
