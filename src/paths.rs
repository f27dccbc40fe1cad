//! Where a path really leads: through symbolic links, also to what is not there yet. Two that look apart may be one
//! directory, and what is one must not be kept, or restored, as two.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{self, Path, PathBuf},
};

/// Links on the way of one path that are followed, as the kernel has it.
const MOST_LINKS: u32 = 40;

/// What `path` leads to on this disk.
pub fn resolve(path: &Path) -> PathBuf {
    let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
    resolve_by(&path, |path| fs::read_link(path).ok())
}

/// The same where `link` says what is a link, and where to. Nothing that follows on what is missing has to exist.
pub fn resolve_by(path: &Path, link: impl Fn(&Path) -> Option<PathBuf>) -> PathBuf {
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut at, mut left, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(part) = left.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        if links < MOST_LINKS
            && let Some(target) = link(&at)
        {
            links += 1;
            at.pop();
            left.extend(parts(&target));
        }
    }
    at
}

/// Whether `inner` is `outer` or inside of it, both resolved: by name, or as the same directory mounted twice.
pub fn is_within(inner: &Path, outer: &Path) -> bool {
    let id = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let outer_id = id(outer);
    inner
        .ancestors()
        .any(|above| above == outer || outer_id.is_some() && id(above) == outer_id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_what_is_not_there_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        symlink(at("d"), at("absolute")).unwrap();
        symlink("absolute/../missing", at("dangling")).unwrap();
        symlink("round", at("round")).unwrap();
        for (path, leads_to) in [
            ("absolute/x/y", "d/x/y"),
            ("dangling/x", "missing/x"),
            ("absolute/../d/./x", "d/x"),
            ("round/x", "round/x"),
        ] {
            assert_eq!(resolve(&at(path)), at(leads_to), "{path}");
        }
    }

    #[test]
    fn what_is_inside_is_told_by_name_and_by_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (inner, outer, within) in [
            ("a", "a", true),
            ("a/b/c", "a", true),
            ("a", "a/b", false),
            ("ab", "a", false),
        ] {
            assert_eq!(is_within(&at(inner), &at(outer)), within, "{inner} in {outer}");
        }
        fs::create_dir(at("d")).unwrap();
        // Not resolved, it stands for a second mount.
        symlink(at("d"), at("again")).unwrap();
        assert!(is_within(&at("again/x"), &at("d")) && is_within(&at("d"), &at("again")));
        assert!(!is_within(&at("x"), &at("d")));
    }
}
