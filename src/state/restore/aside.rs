//! What restores have moved aside: how it is called, what of it is only a copy, and what is kept.
//!
//! A name is that of the directory it was, [`ASIDE`], the date, and [`UNSAVED`] if it was in no commit when it was moved.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

/// Start of the name of a staging directory, which is nobody's state.
pub const STAGED: &str = ".moltinit-restoring-";
/// Between a directory's name and the date on which a restore moved it aside.
pub const ASIDE: &str = ".before-restore-";
/// Behind the date.
const UNSAVED: &str = "-unsaved";

/// Copies that are kept beside each root, with the one that was just made and the oldest of all.
const KEPT: usize = 2;

/// State that was moved aside.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Aside {
    date: String,
    is_saved: bool,
    path: PathBuf,
}

/// A place in `dir` for what is called `name`, which is not taken whether or not it is saved.
pub fn free(dir: &Path, name: &str, date: &str) -> PathBuf {
    let numbered = |n: u32| match n {
        1 => dir.join(format!("{name}{ASIDE}{date}")),
        n => dir.join(format!("{name}{ASIDE}{date}-{n}")),
    };
    let is_free = |path: &PathBuf| {
        [path, &unsaved(path)]
            .iter()
            .all(|path| fs::symlink_metadata(path).is_err())
    };
    let found = (1..).map(numbered).find(is_free);
    found.expect("there are more numbers than directories")
}

/// The same place for state that is in no commit.
pub fn unsaved(aside: &Path) -> PathBuf {
    let mut name = aside.as_os_str().to_owned();
    name.push(UNSAVED);
    name.into()
}

pub fn is_unsaved(aside: &Path) -> bool {
    aside.as_os_str().as_encoded_bytes().ends_with(UNSAVED.as_bytes())
}

/// Whether something of that name in a directory that is a mount point is what a restore has had to have inside of it.
pub fn is_inside(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    name == STAGED || name.strip_prefix(ASIDE).is_some_and(|rest| parse(rest).is_some())
}

/// What was moved aside here under the same name as `aside`, oldest first.
pub fn beside(aside: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(found(aside)?.into_iter().map(|one| one.path).collect())
}

/// Of that what may be removed where there is no room: copies, oldest first. The first of all may never have been in a
/// snapshot: earlier versions did not say.
pub fn copies(aside: &Path) -> io::Result<Vec<PathBuf>> {
    let later = found(aside)?.into_iter().skip(1);
    Ok(later.filter(|one| one.is_saved).map(|one| one.path).collect())
}

/// Removes copies that were moved aside here before `aside`, but for what is [kept](KEPT), and says what is no copy.
pub fn thin(aside: &Path) {
    if let Err(error) = try_to_thin(aside) {
        tracing::warn!(path = %aside.display(), %error, "older states that were moved aside could not be removed");
    }
}

fn try_to_thin(aside: &Path) -> io::Result<()> {
    let mut others = found(aside)?;
    // By its name it need not be the newest: the clock may have been ahead before.
    others.retain(|one| one.path != aside);
    for one in others.iter().filter(|one| !one.is_saved) {
        tracing::warn!(path = %one.path.display(), "state that was in no snapshot is still here, from an earlier restore: take from it what you miss, and delete it");
    }
    let copies: Vec<&Aside> = others.iter().skip(1).filter(|one| one.is_saved).collect();
    for one in &copies[..copies.len().saturating_sub(KEPT)] {
        tracing::info!(path = %one.path.display(), "an older state that a restore moved aside is removed");
        fs::remove_dir_all(&one.path)?;
    }
    Ok(())
}

fn found(aside: &Path) -> io::Result<Vec<Aside>> {
    let (Some(dir), Some(own)) = (aside.parent(), aside.file_name()) else {
        return Ok(Vec::new());
    };
    let own = own.to_string_lossy();
    let Some(start) = own.rfind(ASIDE).map(|at| &own[..at + ASIDE.len()]) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(start));
        if let Some((date, is_saved)) = rest.and_then(parse) {
            let (date, path) = (date.to_owned(), entry.path());
            found.push(Aside { date, is_saved, path });
        }
    }
    found.sort();
    Ok(found)
}

/// The date in a name, and whether what has it is saved: `20260102T030405Z`, with a number behind it if there were several
/// in a second.
fn parse(rest: &str) -> Option<(&str, bool)> {
    let (text, is_saved) = match rest.strip_suffix(UNSAVED) {
        Some(text) => (text, false),
        None => (rest, true),
    };
    let (date, number) = text.split_once('-').unwrap_or((text, "2"));
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    (shape == "00000000T000000Z" && number.parse::<u32>().is_ok()).then_some((text, is_saved))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(day: u32) -> String {
        format!("state{ASIDE}202601{day:02}T030405Z")
    }

    fn dir(names: &[String]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        names
            .iter()
            .for_each(|name| fs::create_dir(dir.path().join(name)).unwrap());
        dir
    }

    fn left(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut left: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        left
    }

    #[test]
    fn of_what_was_moved_aside_the_first_and_the_newest_are_kept() {
        let others = ["other".to_owned(), format!("state{ASIDE}mine")];
        let dir = dir(&(1..8).map(name).chain(others.clone()).collect::<Vec<_>>());
        thin(&dir.path().join(name(7)));
        let [other, mine] = others;
        assert_eq!(left(&dir), [other, name(1), name(5), name(6), name(7), mine]);
    }

    #[test]
    fn what_was_just_moved_aside_is_kept_whatever_its_date() {
        let dir = dir(&(1..8).map(name).collect::<Vec<_>>());
        thin(&dir.path().join(name(3)));
        assert_eq!(left(&dir), [1, 3, 6, 7].map(name));
    }

    #[test]
    fn what_is_in_no_commit_is_kept_whatever_comes_later() {
        let precious = format!("{}-2{UNSAVED}", name(2));
        let dir = dir(&(1..8).map(name).chain([precious.clone()]).collect::<Vec<_>>());
        thin(&dir.path().join(name(7)));
        let kept = [name(1), precious, name(5), name(6), name(7)];
        assert_eq!(left(&dir), kept);
        let newest = dir.path().join(name(7));
        assert_eq!(
            copies(&newest).unwrap(),
            [5, 6, 7].map(|day| dir.path().join(name(day)))
        );
        assert_eq!(beside(&newest).unwrap().len(), 5);
        // Its name is not given to another.
        let free = free(dir.path(), "state", "20260102T030405Z");
        assert_eq!(free, dir.path().join(name(2)));
        fs::create_dir(unsaved(&free)).unwrap();
        assert_eq!(
            super::free(dir.path(), "state", "20260102T030405Z"),
            dir.path().join(format!("{}-3", name(2)))
        );
    }
}
