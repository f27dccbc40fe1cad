//! Which file a command names, found before the fork so that the answer can name the file.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

/// Where commands are looked for when the environment has no `PATH`, as POSIX shells do.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that cannot be run, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    /// No such file in any directory of `PATH`.
    Nowhere(OsString),
    /// There is such a file, but it is not a program.
    NotExecutable(PathBuf),
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotFound::Nowhere(name) => write!(
                f,
                "`{}` was not found in PATH: install it, or give its whole path",
                name.display()
            ),
            NotFound::NotExecutable(file) => write!(
                f,
                "`{}` is not executable: chmod +x it, or name another file",
                file.display()
            ),
        }
    }
}

/// The file that `name` names, searched for in `path` as `execvp` does. A name with a slash names itself.
///
/// # Errors
/// [`NotFound`] when no directory has an executable file of that name.
pub fn program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, NotFound> {
    if name.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(name));
    }
    let mut found_but = None;
    for dir in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &dir
        };
        let file = dir.join(name);
        if !file.is_file() {
            continue;
        }
        if access(&file, AccessFlags::X_OK).is_ok() {
            return Ok(file);
        }
        found_but.get_or_insert(file);
    }
    Err(match found_but {
        Some(file) => NotFound::NotExecutable(file),
        None => NotFound::Nowhere(name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_first_executable_file_in_path_is_it() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (at, mode) in [(&a, 0o644), (&b, 0o755)] {
            fs::create_dir(at).unwrap();
            fs::write(at.join("tool"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(at.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = std::env::join_paths([&a, &b]).unwrap();
        assert_eq!(program(OsStr::new("tool"), Some(&path)), Ok(b.join("tool")));
        assert_eq!(
            program(OsStr::new("tool"), Some(a.as_os_str())),
            Err(NotFound::NotExecutable(a.join("tool")))
        );
        assert_eq!(
            program(OsStr::new("tool"), Some(OsStr::new("/nowhere"))),
            Err(NotFound::Nowhere("tool".into()))
        );
        assert_eq!(program(OsStr::new("./x"), None), Ok("./x".into()));
    }
}
