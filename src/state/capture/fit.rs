//! What to do about changes that do not make a tree that can be restored: whatever is wrong with one of them, the others
//! are committed.

use std::collections::BTreeMap;

use super::entries::parents;
use crate::state::{
    check::BadTree,
    model::{Delta, Kind, Tree, TreePath},
};

/// Paths that are undone. Where there are more, it is no single path that is wrong.
const MOST: usize = 100;

/// Undoes what `check` finds wrong with a delta: such a path stays as it was, with what that needs, and a new one is left
/// out with all below it. Says of each path that is not as it is now why it does not fit.
pub fn fit(
    tree: &Tree,
    delta: &mut Delta,
    check: impl Fn(&Delta) -> Result<(), BadTree>,
) -> BTreeMap<TreePath, &'static str> {
    let mut undone = BTreeMap::new();
    while undone.len() < MOST
        && let Err(BadTree { path, why }) = check(delta)
        && undone.insert(path.clone(), why).is_none()
    {
        let stays: Vec<&[u8]> = match tree.get(&path).map(|entry| &entry.kind) {
            Some(Kind::HardLink { to }) => with_parents(&path).chain(with_parents(to)).collect(),
            Some(_) => with_parents(&path).collect(),
            None => Vec::new(),
        };
        let inside = [&path, &b"/"[..]].concat();
        let is_left_out = |other: &TreePath| stays.is_empty() && (*other == path || other.starts_with(&inside));
        delta.remove.retain(|other| !stays.contains(&other.as_slice()));
        delta.upsert.retain(|(other, entry)| {
            let changes = stays.contains(&other.as_slice()) && (entry.kind != Kind::Dir || *other == path);
            if changes || is_left_out(other) {
                undone.insert(other.clone(), why);
            }
            !undone.contains_key(other)
        });
    }
    undone
}

fn with_parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    [path].into_iter().chain(parents(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{check, model::Entry, tests::kit::dir};

    fn entry(kind: Kind) -> Entry {
        Entry { kind, ..dir() }
    }

    fn file() -> Entry {
        let (len, extents) = (0, Vec::new());
        entry(Kind::File { len, extents })
    }

    fn link(to: &str) -> Entry {
        entry(Kind::HardLink { to: to.into() })
    }

    fn shown<'a>(paths: impl Iterator<Item = &'a TreePath>) -> String {
        let paths: Vec<_> = paths.map(|path| String::from_utf8_lossy(path)).collect();
        paths.join(" ")
    }

    /// What there is in a tree after changes that fit, and what of them has been undone.
    fn fitted(upsert: &[(&str, Entry)], remove: &[&str]) -> [String; 2] {
        let mut tree: Tree = ["s", "s/a", "s/a/b", "s/a/b/c"].map(|path| (path.into(), dir())).into();
        tree.insert("s/f".into(), file());
        tree.insert("s/g".into(), link("s/f"));
        let upsert = upsert.iter().map(|(path, entry)| ((*path).into(), entry.clone()));
        let mut delta = Delta {
            upsert: upsert.collect(),
            remove: remove.iter().map(|path| (*path).into()).collect(),
        };
        let undone = fit(&tree, &mut delta, |delta| check::delta(&tree, delta, &|_| None));
        check::delta(&tree, &delta, &|_| None).expect("a tree that can be restored");
        delta.remove.iter().for_each(|path| drop(tree.remove(path)));
        tree.extend(delta.upsert);
        [shown(tree.keys()), shown(undone.keys())]
    }

    #[test]
    fn what_does_not_fit_stays_as_it_was_or_out_and_the_rest_is_committed() {
        let new = || ("s/new", file());
        // What fits is left alone.
        assert_eq!(fitted(&[new()], &["s/f", "s/g"]), ["s s/a s/a/b s/a/b/c s/new", ""]);
        // A directory goes, or is a file, and what is in it stays.
        let all = "s s/a s/a/b s/a/b/c s/f s/g s/new";
        assert_eq!(fitted(&[new()], &["s/a"]), [all, "s/a/b"]);
        assert_eq!(fitted(&[new(), ("s/a", file())], &[]), [all, "s/a s/a/b"]);
        // A file goes, or is something else, and its other name stays.
        assert_eq!(fitted(&[new()], &["s/f"]), [all, "s/g"]);
        assert_eq!(fitted(&[new(), ("s/f", link("s/a"))], &[]), [all, "s/f"]);
        // Something comes to where nothing is, with what is in it.
        assert_eq!(
            fitted(&[new(), ("s/x/y", dir()), ("s/x/y/z", file())], &[]),
            [all, "s/x/y s/x/y/z"]
        );
    }

    #[test]
    fn where_most_does_not_fit_none_is_left_to_be_committed() {
        let (tree, many) = (Tree::from([("s".into(), dir())]), 0..1000);
        let mut delta = Delta {
            upsert: many.map(|n| (format!("s/x/{n}").into(), file())).collect(),
            remove: vec![],
        };
        let check = |delta: &Delta| check::delta(&tree, delta, &|_| None);
        assert_eq!(fit(&tree, &mut delta, check).len(), MOST);
        assert!(check(&delta).is_err());
    }
}
