//! The disk that a restore is for: whether it has room, and what earlier restores have left on it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{sys::statvfs::statvfs, unistd::geteuid};

use super::{ASIDE, RestoreError};
use crate::state::{
    check,
    head::Head,
    model::{Extent, Tree},
    segment::line::extents_of,
};

/// States that were moved aside and are kept beside each root: the first, which may never have been in a snapshot, and
/// the newest.
const KEPT: usize = 4;

/// Fails if the roots do not fit where they are to be staged.
pub fn has_room(head: &Head, staged: &BTreeMap<&str, &Path>) -> Result<(), RestoreError> {
    let mut needed: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (root, path) in staged {
        let dir = path.parent().unwrap_or(path);
        let device = fs::metadata(dir).map_err(|source| RestoreError::local("looking at", dir, source))?;
        needed.entry(device.dev()).or_insert((dir, 0)).1 += bytes(head.tree(), root);
    }
    for (dir, needs) in needed.into_values() {
        // A file system that does not know its size is not asked.
        let Some(free) = statvfs(dir).ok().filter(|known| known.blocks() > 0) else {
            continue;
        };
        let blocks = if geteuid().is_root() {
            free.blocks_free()
        } else {
            free.blocks_available()
        };
        let free = blocks.saturating_mul(free.fragment_size());
        if needs > free {
            let dir = dir.to_owned();
            return Err(RestoreError::NoRoom { dir, needs, free });
        }
    }
    Ok(())
}

/// What a root's files take on a disk.
fn bytes(tree: &Tree, root: &str) -> u64 {
    let files = tree.iter().filter(|(path, _)| check::root(path) == root.as_bytes());
    let data = files
        .flat_map(|(_, entry)| extents_of(&entry.kind))
        .map(|extent| match extent {
            Extent::Data { len, .. } => u64::from(*len),
            Extent::Hole { .. } => 0,
        });
    data.sum()
}

/// Removes what was moved aside here before, beside `aside` under the same name, but for what is [kept](KEPT).
pub fn thin(aside: &Path) {
    if let Err(error) = try_to_thin(aside) {
        tracing::warn!(path = %aside.display(), %error, "older states that were moved aside could not be removed");
    }
}

fn try_to_thin(aside: &Path) -> io::Result<()> {
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let (Some(dir), Some(own)) = (aside.parent(), name(aside)) else {
        return Ok(());
    };
    let Some(start) = own.rfind(ASIDE).map(|at| &own[..at + ASIDE.len()]) else {
        return Ok(());
    };
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name: OsString = entry.file_name();
        let Some(date) = name.to_str().and_then(|name| name.strip_prefix(start)) else {
            continue;
        };
        if is_date(date) {
            found.push((date.to_owned(), entry.path()));
        }
    }
    found.sort();
    if found.len() > KEPT {
        for (_, path) in &found[1..found.len() - (KEPT - 1)] {
            tracing::info!(path = %path.display(), "an older state that a restore moved aside is removed");
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// As in the name of what was moved aside: `20260102T030405Z`, with a number behind it if there were several in a second.
fn is_date(text: &str) -> bool {
    let (date, number) = text.split_once('-').unwrap_or((text, "2"));
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "00000000T000000Z" && number.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_was_moved_aside_the_first_and_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let names = |day: u32| format!("state{ASIDE}202601{day:02}T030405Z");
        for name in (1..8).map(names).chain(["other".into(), format!("state{ASIDE}mine")]) {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        thin(&dir.path().join(names(7)));
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "other".into(),
                names(1),
                names(5),
                names(6),
                names(7),
                format!("state{ASIDE}mine")
            ]
        );
    }
}
