//! The way back from a restore that turns out to be of no use: what it moved aside takes its place again. That needs
//! neither the store nor room on the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{ASIDE, RestoreError, aside, swap, swap::Move};

/// What is at the targets, and what was there before.
#[derive(Debug)]
pub struct Back(Vec<(Move, bool)>);

impl Back {
    /// From what has just been put in place.
    pub fn from(moves: &[Move]) -> Back {
        let is_there = |step: &Move| fs::symlink_metadata(&step.aside).is_ok();
        Back(moves.iter().map(|step| (step.clone(), is_there(step))).collect())
    }

    /// Goes it. What was in place instead is moved aside; returns where to. After an error the targets are as they
    /// were, unless it is [`RestoreError::Unfinished`].
    pub fn go(&self, work: &Path) -> Result<Vec<PathBuf>, RestoreError> {
        let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let back = |(step, had): &(Move, bool)| {
            // Where nothing was before, nothing comes back; but what has gone since must not be taken for nothing.
            if *had {
                fs::symlink_metadata(&step.aside)
                    .map_err(|source| RestoreError::local("bringing back", &step.aside, source))?;
            }
            Ok(Move {
                staged: step.aside.clone(),
                target: step.target.clone(),
                aside: fresh(&step.aside, &date)
                    .map_err(|source| RestoreError::local("bringing back", &step.aside, source))?,
            })
        };
        let moves = self.0.iter().map(back).collect::<Result<_, RestoreError>>()?;
        let aside = swap::swap(None, moves, work)?;
        aside.iter().for_each(|aside| aside::thin(aside));
        Ok(aside)
    }
}

/// A name beside `aside`, of the same and of that date, that nothing has yet.
fn fresh(aside: &Path, date: &str) -> io::Result<PathBuf> {
    let name = aside.to_string_lossy();
    let Some(start) = name.rfind(ASIDE).map(|at| &name[..at + ASIDE.len()]) else {
        return Err(io::Error::other("this is not the name of a state that was moved aside"));
    };
    let numbered = (2..).map(|n| format!("{start}{date}-{n}"));
    let mut names = std::iter::once(format!("{start}{date}"))
        .chain(numbered)
        .map(PathBuf::from);
    let free = names.find(|path| path != aside && fs::symlink_metadata(path).is_err());
    Ok(free.expect("there are more numbers than directories"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root `state` with something before, and `workspace` with nothing.
    fn placed(dir: &Path) -> Back {
        let step = |root: &str| Move {
            staged: dir.join(format!("staged-{root}")),
            target: dir.join(root),
            aside: dir.join(format!("{root}{ASIDE}20260102T030405Z")),
        };
        let moves = ["state", "workspace"].map(step);
        for (place, text) in [("state", "old"), ("staged-state", "new"), ("staged-workspace", "new")] {
            fs::create_dir(dir.join(place)).unwrap();
            fs::write(dir.join(place).join("a"), text).unwrap();
        }
        swap::swap(None, moves.to_vec(), &dir.join("work")).unwrap();
        Back::from(&moves)
    }

    fn text(path: PathBuf) -> Option<String> {
        fs::read_to_string(path.join("a")).ok()
    }

    #[test]
    fn what_was_there_comes_back_and_what_was_not_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let aside = placed(dir.path()).go(&at("work")).unwrap();
        assert_eq!(text(at("state")).unwrap(), "old");
        assert!(!at("workspace").exists());
        let aside: Vec<_> = aside.into_iter().map(text).collect();
        assert_eq!(aside, [Some("new".to_owned()), Some("new".to_owned())]);
    }

    #[test]
    fn a_way_that_cannot_be_gone_now_can_be_gone_later() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let back = placed(dir.path());
        let places = || ["state", "workspace"].map(|root| text(at(root)));
        let new = [Some("new".to_owned()), Some("new".to_owned())];
        // No place for the journal; then what was moved aside is not where it was.
        fs::remove_dir_all(at("work")).unwrap();
        fs::write(at("work"), "").unwrap();
        back.go(&at("work")).unwrap_err();
        assert_eq!(places(), new);
        fs::remove_file(at("work")).unwrap();
        let aside = at(&format!("state{ASIDE}20260102T030405Z"));
        fs::rename(&aside, at("elsewhere")).unwrap();
        back.go(&at("work")).unwrap_err();
        assert_eq!(places(), new);
        fs::rename(at("elsewhere"), &aside).unwrap();
        back.go(&at("work")).unwrap();
        assert_eq!(places(), [Some("old".to_owned()), None]);
    }
}
