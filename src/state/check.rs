//! Whether a tree is one that can be put on a disk: asked of every tree before it is written to the store, and
//! again of every tree that is read from there, since whoever can write to the bucket can write anything.

use super::{
    chunk,
    model::{Delta, Entry, Extent, Hash, Kind, Tree, TreePath},
};

/// What is wrong with a tree, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", String::from_utf8_lossy(path))]
pub struct BadTree {
    pub path: TreePath,
    pub why: &'static str,
}

/// Looks up entries and chunks of the tree that is asked about.
pub struct View<'a> {
    pub entry: &'a dyn Fn(&[u8]) -> Option<&'a Entry>,
    /// Length of a chunk's plain bytes.
    pub chunk: &'a dyn Fn(&Hash) -> Option<u32>,
}

/// Checks every entry of a tree.
pub fn tree<'a>(tree: &'a Tree, chunk: &'a dyn Fn(&Hash) -> Option<u32>) -> Result<(), BadTree> {
    let view = View {
        entry: &|path| tree.get(path),
        chunk,
    };
    tree.iter().try_for_each(|(path, at)| entry(path, at, &view))
}

/// Checks what a delta changes in a tree that is sound: its own entries, and that nothing loses its parent or its
/// other name.
pub fn delta<'a>(old: &'a Tree, delta: &'a Delta, chunk: &'a dyn Fn(&Hash) -> Option<u32>) -> Result<(), BadTree> {
    let upsert: std::collections::BTreeMap<&[u8], &Entry> = delta
        .upsert
        .iter()
        .map(|(path, entry)| (path.as_slice(), entry))
        .collect();
    let removed: std::collections::BTreeSet<&[u8]> = delta.remove.iter().map(Vec::as_slice).collect();
    let lookup = |path: &[u8]| match upsert.get(path) {
        Some(entry) => Some(*entry),
        None if removed.contains(path) => None,
        None => old.get(path),
    };
    let view = View { entry: &lookup, chunk };
    for (path, at) in &upsert {
        entry(path, at, &view)?;
    }
    let stays = |path: &[u8]| !removed.contains(path) || upsert.contains_key(path);
    let no_dir = upsert
        .iter()
        .filter(|(_, entry)| entry.kind != Kind::Dir)
        .map(|(path, _)| *path);
    for path in no_dir.chain(removed.iter().copied().filter(|path| !upsert.contains_key(path))) {
        let below = [path, b"/"].concat();
        let mut children = old
            .range(below.clone()..)
            .map(|(child, _)| child)
            .take_while(|c| c.starts_with(&below));
        if let Some(orphan) = children.find(|child| stays(child)) {
            return Err(bad(orphan, "its directory is gone"));
        }
    }
    if delta.upsert.is_empty() && delta.remove.is_empty() {
        return Ok(());
    }
    let links = old
        .iter()
        .filter(|(path, entry)| matches!(entry.kind, Kind::HardLink { .. }) && stays(path));
    for (path, at) in links {
        entry(path, lookup(path).unwrap_or(at), &view)?;
    }
    Ok(())
}

fn bad(path: &[u8], why: &'static str) -> BadTree {
    BadTree {
        path: path.to_vec(),
        why,
    }
}

fn entry(path: &[u8], entry: &Entry, view: &View) -> Result<(), BadTree> {
    let fail = |why| Err(bad(path, why));
    if let Some(why) = bad_path(path) {
        return fail(why);
    }
    match path.iter().rposition(|&b| b == b'/') {
        None if entry.kind != Kind::Dir => return fail("a root has to be a directory"),
        None => {}
        Some(slash) => match (view.entry)(&path[..slash]) {
            Some(parent) if parent.kind == Kind::Dir => {}
            _ => return fail("what it is in is not a directory of the snapshot"),
        },
    }
    if entry.mode & !0o7777 != 0 {
        return fail("its mode has bits beyond the permissions");
    }
    match &entry.kind {
        Kind::Dir => Ok(()),
        Kind::File { len, extents } | Kind::Sqlite { len, extents, .. } => match bad_content(*len, extents, view) {
            Some(why) => fail(why),
            None => Ok(()),
        },
        Kind::Symlink { target } if target.is_empty() || target.contains(&0) => fail("its target is no path"),
        Kind::Symlink { .. } => Ok(()),
        Kind::HardLink { to } => match (view.entry)(to) {
            _ if to.as_slice() >= path => fail("it is a hard link to something later"),
            _ if root(to) != root(path) => fail("it is a hard link into another root"),
            Some(Entry {
                kind: Kind::File { .. } | Kind::Sqlite { .. },
                ..
            }) => Ok(()),
            _ => fail("it is a hard link to what is not a file of the snapshot"),
        },
    }
}

/// The name of the root a path is in.
pub fn root(path: &[u8]) -> &[u8] {
    path.split(|&b| b == b'/').next().unwrap_or_default()
}

fn bad_path(path: &[u8]) -> Option<&'static str> {
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" => return Some("its path is absolute or has an empty part"),
            b"." | b".." => return Some("its path leads elsewhere"),
            part if part.contains(&0) => return Some("its path holds a NUL"),
            part if part.len() > 255 => return Some("a part of its path is longer than 255 bytes"),
            _ => {}
        }
    }
    None
}

fn bad_content(len: u64, extents: &[Extent], view: &View) -> Option<&'static str> {
    let mut sum = 0u64;
    for extent in extents {
        if let Extent::Data { chunk, from, len } = extent {
            match (view.chunk)(chunk) {
                None => return Some("a chunk of it is not in the snapshot's table"),
                Some(raw) if from.checked_add(*len).is_none_or(|end| end > raw) => {
                    return Some("an extent of it reaches beyond its chunk");
                }
                Some(_) => {}
            }
        }
        sum = match sum.checked_add(chunk::len(extent)) {
            Some(sum) => sum,
            None => return Some("its length is beyond all measure"),
        };
    }
    (sum != len || i64::try_from(len).is_err()).then_some("its extents do not add up to its length")
}
