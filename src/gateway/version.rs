//! Which gateway is installed, found out without starting it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The packages the gateway has been published as, newest name first.
const PACKAGES: [&str; 3] = ["openclaw", "moltbot", "clawdbot"];

/// What a gateway of some age expects of its configuration and offers as probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Up to 2026.2: state in JSON files, health only over the WebSocket, exit code 1 for everything.
    Early,
    /// From 2026.3: probe routes; by 2026.9 state in SQLite, exit code 78 for a bad configuration.
    Current,
}

/// `YEAR.MONTH.PATCH`, as the gateway's releases are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub year: u32,
    pub month: u32,
    pub patch: u32,
}

impl Version {
    /// Reads `2026.9.6`, and `2026.9.6-1` or `2026.9.0-beta.1` without what follows the dash.
    pub fn parse(text: &str) -> Option<Version> {
        let mut parts = text.split('-').next()?.splitn(3, '.').map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Version {
            year: next()?,
            month: next()?,
            patch: next()?,
        })
    }

    pub fn generation(self) -> Generation {
        if (self.year, self.month) < (2026, 3) {
            Generation::Early
        } else {
            Generation::Current
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.year, self.month, self.patch)
    }
}

/// The version of the package that a command would run: the program itself, or the script its interpreter is given.
///
/// `path` is the `PATH` to look the program up in. `None` when the command is no installed gateway (a wrapper
/// script, a stand-in); the newest is then assumed.
pub fn installed(command: &[String], path: &str) -> Option<Version> {
    let program = look_up(command.first()?, path);
    let script = command
        .iter()
        .skip(1)
        .find(|word| !word.starts_with('-'))
        .map(PathBuf::from);
    [program, script]
        .into_iter()
        .flatten()
        .find_map(|file| of_package_around(&file))
}

fn look_up(program: &str, path: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Looks upwards from a file: for the package it belongs to, and for one of its name that is installed beside it, which
/// a wrapper script would run.
fn of_package_around(file: &Path) -> Option<Version> {
    let file = fs::canonicalize(file).ok()?;
    let name = PACKAGES
        .into_iter()
        .find(|name| file.file_stem().is_some_and(|stem| stem == *name));
    file.ancestors().skip(1).find_map(|dir| {
        of_package(dir).or_else(|| {
            let beside = ["node_modules", "lib/node_modules"].map(|modules| dir.join(modules));
            beside.iter().find_map(|modules| of_package(&modules.join(name?)))
        })
    })
}

fn of_package(dir: &Path) -> Option<Version> {
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("package.json")).ok()?).ok()?;
    let name = manifest.get("name")?.as_str()?;
    PACKAGES
        .contains(&name)
        .then(|| Version::parse(manifest.get("version")?.as_str()?))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_and_fall_into_generations() {
        let of = |text| Version::parse(text).unwrap();
        assert!(of("2026.2.3") < of("2026.9.6") && of("2026.9.6") < of("2026.10.0-beta.1"));
        assert_eq!(of("2026.2.26-1").generation(), Generation::Early);
        assert_eq!(of("2026.3.0").generation(), Generation::Current);
        assert_eq!(Version::parse("next"), None);
        assert_eq!(Version::parse("2026.2"), None);
    }

    #[test]
    fn the_version_is_read_from_the_package_behind_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("lib/node_modules/openclaw");
        fs::create_dir_all(package.join("dist")).unwrap();
        fs::write(
            package.join("package.json"),
            r#"{"name":"openclaw","version":"2026.2.3"}"#,
        )
        .unwrap();
        fs::write(package.join("dist/package.json"), r#"{"type":"module"}"#).unwrap();
        fs::write(package.join("dist/entry.js"), "").unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink("../lib/node_modules/openclaw/dist/entry.js", bin.join("openclaw")).unwrap();

        let path = format!("/nowhere:{}", bin.display());
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let found = Version::parse("2026.2.3");
        assert_eq!(installed(&words(&["openclaw", "gateway"]), &path), found);
        let script = package.join("dist/entry.js");
        let by_script = words(&["node", "--enable-source-maps", script.to_str().unwrap(), "gateway"]);
        assert_eq!(installed(&by_script, &path), found);
        fs::remove_file(bin.join("openclaw")).unwrap();
        fs::write(bin.join("openclaw"), "#!/bin/sh\nexec node ...").unwrap();
        assert_eq!(installed(&words(&["openclaw", "gateway"]), &path), found);
        fs::write(bin.join("sleep"), "").unwrap();
        assert_eq!(installed(&words(&["sleep", "1"]), &path), None);
    }
}
