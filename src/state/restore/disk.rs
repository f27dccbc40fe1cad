//! Room on the disk that a restore is for.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use nix::{sys::statvfs::statvfs, unistd::geteuid};

use super::{RestoreError, aside, places::Places};
use crate::state::{
    head::Head,
    model::{Entry, Extent},
    segment::line::extents_of,
};

/// Fails if what is restored does not fit where it is to be staged, even without copies of what was there before.
pub fn make_room(head: &Head, places: &Places) -> Result<(), RestoreError> {
    loop {
        let (dir, needs, free) = match has_room(head, places) {
            Err(RestoreError::NoRoom { dir, needs, free, .. }) => (dir, needs, free),
            other => return other,
        };
        let asides = || {
            let asides = places.moves().map(|step| step.aside.as_path());
            asides.filter(|aside| aside.parent().and_then(|parent| device(parent).ok()) == device(&dir).ok())
        };
        let mut copies = asides().flat_map(|aside| aside::copies(aside).unwrap_or_default());
        let removed = copies.next().is_some_and(|oldest| {
            tracing::warn!(path = %oldest.display(), "there is no room, so an older state that a restore moved aside is removed");
            fs::remove_dir_all(oldest).is_ok()
        });
        if !removed {
            let asides = asides().flat_map(|aside| aside::beside(aside).unwrap_or_default());
            return Err(RestoreError::NoRoom {
                asides: asides.collect(),
                dir,
                needs,
                free,
            });
        }
    }
}

fn device(dir: &Path) -> io::Result<u64> {
    Ok(fs::metadata(dir)?.dev())
}

fn has_room(head: &Head, places: &Places) -> Result<(), RestoreError> {
    let mut needed: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    let mut devices = BTreeMap::new();
    for (part, step) in places.parts() {
        let dir = step.staged.parent().unwrap_or(&step.staged);
        let device = device(dir).map_err(|source| RestoreError::local("looking at", dir, source))?;
        devices.insert(part, device);
        needed.entry(device).or_insert((dir, 0));
    }
    for (path, entry) in head.tree() {
        let device = places.part(path).and_then(|(part, _)| devices.get(part));
        if let Some((_, needs)) = device.and_then(|device| needed.get_mut(device)) {
            *needs += bytes(entry);
        }
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
            return Err(RestoreError::NoRoom {
                dir,
                needs,
                free,
                asides: Vec::new(),
            });
        }
    }
    Ok(())
}

/// What a file takes on a disk.
fn bytes(entry: &Entry) -> u64 {
    let data = extents_of(&entry.kind).iter().map(|extent| match extent {
        Extent::Data { len, .. } => u64::from(*len),
        Extent::Hole { .. } => 0,
    });
    data.sum()
}
