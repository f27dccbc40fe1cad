//! Hard links in a tree that changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::state::model::{Entry, Kind, Tree, TreePath};

/// Each hard link of a tree, and the first name of its file.
fn links(tree: &Tree) -> impl Iterator<Item = (&TreePath, &TreePath)> {
    tree.iter().filter_map(|(path, entry)| match &entry.kind {
        Kind::HardLink { to } => Some((path, to)),
        _ => None,
    })
}

/// The further names of each file that a tree has by several, by the first.
pub fn by_first_name(tree: &Tree) -> HashMap<&TreePath, Vec<&TreePath>> {
    let mut others: HashMap<_, Vec<_>> = HashMap::new();
    for (path, to) in links(tree) {
        others.entry(to).or_default().push(path);
    }
    others
}

/// Mends every link whose file is no longer there or could not be captured: it gets the content that the file had,
/// and if that is not known it goes.
pub fn settle(tree: &Tree, upsert: &mut BTreeMap<TreePath, Entry>, remove: &mut BTreeSet<TreePath>) {
    let is_file = |entry: &Entry| matches!(entry.kind, Kind::File { .. } | Kind::Sqlite { .. });
    let stay = links(tree).filter(|(path, _)| !remove.contains(*path) && !upsert.contains_key(*path));
    let links: Vec<(TreePath, TreePath)> = stay
        .chain(links(upsert))
        .map(|(path, to)| (path.clone(), to.clone()))
        .collect();
    for (path, to) in links {
        let now = match upsert.get(&to) {
            Some(entry) => Some(entry),
            None if remove.contains(&to) => None,
            None => tree.get(&to),
        };
        if now.is_some_and(is_file) {
            continue;
        }
        match tree.get(&to).filter(|old| is_file(old)) {
            Some(old) => {
                upsert.insert(path, old.clone());
            }
            None => {
                upsert.remove(&path);
                remove.insert(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind) -> Entry {
        Entry {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_ns: 1,
            kind,
        }
    }

    fn file(len: u64) -> Entry {
        entry(Kind::File {
            len,
            extents: Vec::new(),
        })
    }

    fn link(to: &str) -> Entry {
        entry(Kind::HardLink { to: to.into() })
    }

    #[test]
    fn a_link_outlives_its_file_with_the_files_content() {
        let tree: Tree = [("s/a", file(3)), ("s/b", link("s/a")), ("s/c", link("s/a"))]
            .map(|(p, e)| (p.into(), e))
            .into();
        let mut upsert = BTreeMap::from([("s/d".into(), link("s/none"))]);
        let mut remove = BTreeSet::from(["s/a".into(), "s/c".into()]);
        settle(&tree, &mut upsert, &mut remove);
        assert_eq!(upsert, BTreeMap::from([("s/b".into(), file(3))]));
        assert_eq!(remove, ["s/a", "s/c", "s/d"].map(|path| path.into()).into());
        let (mut upsert, mut remove) = (BTreeMap::new(), BTreeSet::new());
        settle(&tree, &mut upsert, &mut remove);
        assert!(upsert.is_empty() && remove.is_empty());
    }
}
