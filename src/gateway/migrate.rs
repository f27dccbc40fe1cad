//! State that older names of the gateway have left, under the name of today.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The names the state directory and its configuration file have had, newest first.
const OLD_DIRS: [&str; 3] = [".moltbot", ".clawdbot", ".moldbot"];
const OLD_FILES: [&str; 3] = ["moltbot.json", "clawdbot.json", "moldbot.json"];
pub const CONFIG_FILE: &str = "openclaw.json";

/// Moves an older state directory and configuration file to where they are looked for today, unless there is something
/// there. Gives what was moved.
///
/// # Errors
/// What could not be moved, and why. Nothing is lost: it is where it was.
pub fn migrate(home: &Path, state_dir: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut moved = Vec::new();
    if state_dir == home.join(".openclaw") && is_absent_or_empty(state_dir) {
        let old = OLD_DIRS.iter().map(|name| home.join(name));
        // A link is what a gateway leaves behind when it has moved the directory itself.
        if let Some(old) = old
            .into_iter()
            .find(|dir| is_plain_dir(dir) && !is_absent_or_empty(dir))
        {
            let _ = fs::remove_dir(state_dir);
            fs::rename(&old, state_dir).map_err(|error| (old.clone(), error))?;
            moved.push(old);
        }
    }
    let config = state_dir.join(CONFIG_FILE);
    if fs::symlink_metadata(&config).is_err() {
        let old = OLD_FILES.iter().map(|name| state_dir.join(name));
        if let Some(old) = old.into_iter().find(|file| file.is_file()) {
            fs::rename(&old, &config).map_err(|error| (old.clone(), error))?;
            moved.push(old);
        }
    }
    Ok(moved)
}

fn is_plain_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn is_absent_or_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or_else(
        |error| error.kind() == io::ErrorKind::NotFound,
        |mut entries| entries.next().is_none(),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_older_directory_and_file_are_moved_once() {
        let home = tempfile::tempdir().unwrap();
        let (old, new) = (home.path().join(".clawdbot"), home.path().join(".openclaw"));
        fs::create_dir_all(&old).unwrap();
        fs::create_dir_all(&new).unwrap();
        fs::write(old.join("clawdbot.json"), "{}").unwrap();
        fs::write(old.join("memory"), "m").unwrap();
        assert_eq!(
            migrate(home.path(), &new).unwrap(),
            [old.clone(), new.join("clawdbot.json")]
        );
        assert_eq!(fs::read_to_string(new.join(CONFIG_FILE)).unwrap(), "{}");
        assert_eq!(fs::read_to_string(new.join("memory")).unwrap(), "m");
        assert!(!old.exists());
        assert!(migrate(home.path(), &new).unwrap().is_empty());
    }

    #[test]
    fn what_is_there_wins() {
        let home = tempfile::tempdir().unwrap();
        let (old, new) = (home.path().join(".clawdbot"), home.path().join(".openclaw"));
        for dir in [&old, &new] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join(CONFIG_FILE), dir.to_str().unwrap()).unwrap();
        }
        symlink(&new, home.path().join(".moltbot")).unwrap();
        assert!(migrate(home.path(), &new).unwrap().is_empty());
        assert_eq!(
            fs::read_to_string(new.join(CONFIG_FILE)).unwrap(),
            new.to_str().unwrap()
        );
        assert!(old.join(CONFIG_FILE).exists());
    }
}
