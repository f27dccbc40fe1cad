//! The browser skill in the agent's workspace: put there, brought up to date, and left alone once somebody changed it.
//!
//! What was installed is recorded beside it, in the workspace, so that the record travels with every snapshot: a copy
//! that still is what its record says is ours, however old, and one that is not is the user's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const DIRECTORY: &str = "skills/cloudflare-browser";
const RECORD: &str = ".moltinit.json";

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../skills/cloudflare-browser/", $path)))),*]
    };
}

/// What the skill consists of.
const FILES: [(&str, &str); 6] = files![
    "SKILL.md",
    "scripts/cdp.js",
    "scripts/package.json",
    "scripts/scrape.js",
    "scripts/screenshot.js",
    "scripts/video.js",
];

/// SHA-256 of every file of the skill that moltworker's images came with. It wants a secret and speaks to the Worker;
/// where nobody has touched it, it gives way.
const MOLTWORKERS: [&str; 5] = [
    "06f8f67410955ff10065b70d306e1c996a3cd12e429346099d495dfacec1f483",
    "3a89ac31a223c2eb4cabc6d54a3b73289c41d97de493468b8c651481d0b6a06f",
    "af210bbc0a4338142e49139f149d7ccc568babc02a843a18c94a44360c71dff2",
    "f5288c8a64a8bc310cf062eef358f47614ad427810703e74bf13ba9529e717f9",
    "7347c68ec735f00614c75d504f546aa5dcf593983a6b6979c502ed3b90965c44",
];

/// Paths below the skill's directory, and the SHA-256 of their content in hex.
type Sums = BTreeMap<String, String>;

/// What becomes of the skill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there as it should be; nothing was written.
    UpToDate,
    /// It was put there, or in the place of an older one.
    Installed,
    /// Somebody has changed this file, so all of it stays as it is.
    Kept(String),
}

/// It cannot be put there.
#[derive(Debug, thiserror::Error)]
#[error("the browser skill cannot be written: {}: {source}", path.display())]
pub struct InstallError {
    path: PathBuf,
    source: io::Error,
}

/// Where it is in a workspace.
pub fn directory(workspace: &Path) -> PathBuf {
    workspace.join(DIRECTORY)
}

/// Puts the skill into `workspace`, unless somebody has changed the one that is there. A few small local files.
///
/// Dying half-way leaves a mixture of the old and the new one, which the next time is brought to its end.
///
/// # Errors
/// A file cannot be read or written.
pub fn install(workspace: &Path) -> Result<Outcome, InstallError> {
    let directory = directory(workspace);
    let ours: Sums = FILES.iter().map(|(path, text)| (owned(path), sum(text))).collect();
    let recorded = fs::read(directory.join(RECORD)).ok();
    let recorded = recorded.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let recorded = recorded.map(|record| record.files).unwrap_or_default();
    let present = look(&directory, ours.keys().chain(recorded.keys()))?;
    let plan = match decide(&ours, &recorded, &present) {
        Decision::Keep(path) => return Ok(Outcome::Kept(path)),
        Decision::Put(plan) => plan,
    };
    if plan.is_empty() && recorded == ours {
        return Ok(Outcome::UpToDate);
    }
    for (path, text) in FILES
        .iter()
        .filter(|(path, _)| plan.write.iter().any(|write| write == path))
    {
        write(&directory.join(path), text.as_bytes())?;
    }
    for path in plan.remove.iter().map(|path| directory.join(path)) {
        fs::remove_file(&path).map_err(|source| InstallError { path, source })?;
    }
    let record = Record {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: ours,
    };
    let text = serde_json::to_vec_pretty(&record).expect("strings in a map are JSON");
    write(&directory.join(RECORD), &text)?;
    Ok(Outcome::Installed)
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: String,
    files: Sums,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Keep(String),
    Put(Plan),
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    write: Vec<String>,
    remove: Vec<String>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.write.is_empty() && self.remove.is_empty()
    }
}

/// What to do where `present` is found, `recorded` was installed last, and `ours` is to be there. A file is somebody
/// else's change if it is at a place of ours with a content that never was; files at other places are none of our
/// business, and one that is missing is put back.
fn decide(ours: &Sums, recorded: &Sums, present: &Sums) -> Decision {
    let was_ours = |path: &String, found: &String| {
        ours.get(path) == Some(found) || recorded.get(path) == Some(found) || MOLTWORKERS.contains(&found.as_str())
    };
    let mut places = present
        .iter()
        .filter(|(path, _)| ours.contains_key(*path) || recorded.contains_key(*path));
    if let Some((changed, _)) = places.find(|(path, found)| !was_ours(path, found)) {
        return Decision::Keep(changed.clone());
    }
    let write = ours.iter().filter(|(path, wanted)| present.get(*path) != Some(wanted));
    let remove = present
        .iter()
        .filter(|(path, found)| !ours.contains_key(*path) && was_ours(path, found));
    Decision::Put(Plan {
        write: write.map(|(path, _)| path.clone()).collect(),
        remove: remove.map(|(path, _)| path.clone()).collect(),
    })
}

/// The sums of what is at our places, and of what lies beside the scripts, where moltworker has had some. Whatever is no
/// plain file has a sum that no file has.
fn look<'a>(directory: &Path, places: impl Iterator<Item = &'a String>) -> Result<Sums, InstallError> {
    let beside = fs::read_dir(directory.join("scripts")).into_iter().flatten().flatten();
    let beside = beside.filter_map(|entry| Some(format!("scripts/{}", entry.file_name().to_str()?)));
    let mut present = Sums::new();
    for place in places.cloned().chain(beside) {
        let path = directory.join(&place);
        let found = match fs::symlink_metadata(&path) {
            Ok(data) if data.is_file() => fs::read(&path).map(sum),
            Ok(_) => Ok("no file".to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => Err(error),
        };
        present.insert(place, found.map_err(|source| InstallError { path, source })?);
    }
    Ok(present)
}

/// Whole or not at all: the gateway may be reading it.
fn write(path: &Path, content: &[u8]) -> Result<(), InstallError> {
    let done = || {
        let directory = path.parent().unwrap_or(path);
        fs::create_dir_all(directory)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let half = directory.join(format!(".{name}.moltinit"));
        fs::write(&half, content)
            .and_then(|()| fs::rename(&half, path))
            .inspect_err(|_| drop(fs::remove_file(&half)))
    };
    done().map_err(|source| InstallError {
        path: path.to_owned(),
        source,
    })
}

fn sum(content: impl AsRef<[u8]>) -> String {
    let sum = Sha256::digest(content);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn owned(path: &&str) -> String {
    (*path).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::*;

    fn sums() -> impl Strategy<Value = Sums> {
        let content = select(vec!["1", "2", "3", MOLTWORKERS[0]]).prop_map(str::to_owned);
        btree_map(select(vec!["a", "b", "c", "d"]).prop_map(str::to_owned), content, 0..5)
    }

    fn after(plan: &Plan, ours: &Sums, present: &Sums) -> Sums {
        let mut after = present.clone();
        for path in &plan.write {
            after.insert(path.clone(), ours[path].clone());
        }
        for path in &plan.remove {
            after.remove(path);
        }
        after
    }

    proptest! {
        #[test]
        fn nothing_of_the_users_is_touched(ours in sums(), recorded in sums(), present in sums()) {
            if let Decision::Put(plan) = decide(&ours, &recorded, &present) {
                for (path, found) in &present {
                    let touched = plan.write.contains(path) || plan.remove.contains(path);
                    let known = recorded.get(path) == Some(found) || MOLTWORKERS.contains(&found.as_str());
                    prop_assert!(!touched || known, "{path}");
                }
            }
        }

        #[test]
        fn what_was_put_there_is_all_there_and_stays(ours in sums(), recorded in sums(), present in sums()) {
            if let Decision::Put(plan) = decide(&ours, &recorded, &present) {
                let after = after(&plan, &ours, &present);
                prop_assert!(ours.iter().all(|(path, wanted)| after.get(path) == Some(wanted)));
                prop_assert_eq!(decide(&ours, &ours, &after), Decision::Put(Plan::default()));
            }
        }

        #[test]
        fn an_untouched_copy_is_updated_wherever_an_update_was_cut_short(old in sums(), new in sums(), done in 0usize..9) {
            let Decision::Put(plan) = decide(&new, &old, &old) else { panic!("an untouched copy was kept") };
            let cut = Plan {
                write: plan.write.iter().take(done).cloned().collect(),
                remove: plan.remove.iter().take(done.saturating_sub(plan.write.len())).cloned().collect(),
            };
            let half = after(&cut, &new, &old);
            prop_assert!(matches!(decide(&new, &old, &half), Decision::Put(_)));
        }

        #[test]
        fn any_change_at_a_place_of_ours_is_kept(ours in sums(), recorded in sums(), which in 0usize..9) {
            prop_assume!(!ours.is_empty());
            let mut present = ours.clone();
            let path = ours.keys().nth(which % ours.len()).unwrap();
            present.insert(path.clone(), "a change".to_owned());
            prop_assert_eq!(decide(&ours, &recorded, &present), Decision::Keep(path.clone()));
        }
    }

    #[test]
    fn it_is_installed_kept_and_updated() {
        let workspace = tempfile::tempdir().unwrap();
        let install = || install(workspace.path()).unwrap();
        let at = |path: &str| directory(workspace.path()).join(path);
        assert_eq!(install(), Outcome::Installed);
        assert_eq!(install(), Outcome::UpToDate);
        let skill = fs::read_to_string(at("SKILL.md")).unwrap();
        assert!(skill.starts_with("---\nname: cloudflare-browser\n"));

        // A file of theirs beside ours changes nothing; one of ours that is gone comes back.
        fs::write(at("notes.md"), "mine").unwrap();
        fs::remove_file(at("scripts/video.js")).unwrap();
        assert_eq!(install(), Outcome::Installed);
        assert!(at("scripts/video.js").is_file() && at("notes.md").is_file());

        // A changed one is kept, links included.
        fs::write(at("SKILL.md"), "mine").unwrap();
        assert_eq!(install(), Outcome::Kept("SKILL.md".to_owned()));
        assert_eq!(fs::read_to_string(at("SKILL.md")).unwrap(), "mine");
        fs::remove_file(at("SKILL.md")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", at("SKILL.md")).unwrap();
        assert_eq!(install(), Outcome::Kept("SKILL.md".to_owned()));

        // An older one from a snapshot, with a script that there is no more.
        fs::remove_file(at("SKILL.md")).unwrap();
        fs::write(at("SKILL.md"), "old").unwrap();
        fs::write(at("scripts/pdf.js"), "old").unwrap();
        let files = [("SKILL.md", "old"), ("scripts/pdf.js", "old")].map(|(path, text)| (path.to_owned(), sum(text)));
        let record = Record {
            version: "0.0.1".to_owned(),
            files: files.into(),
        };
        fs::write(at(RECORD), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(install(), Outcome::Installed);
        assert_eq!(fs::read_to_string(at("SKILL.md")).unwrap(), skill);
        assert!(!at("scripts/pdf.js").exists());
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let workspace = tempfile::tempdir().unwrap();
        fs::write(workspace.path().join("skills"), "a file").unwrap();
        let error = install(workspace.path()).unwrap_err().to_string();
        assert!(error.contains("skills/cloudflare-browser"), "{error}");
    }
}
