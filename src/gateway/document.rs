//! `openclaw.json` on disk: read as JSON5, replaced whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Why the configuration file cannot be used. Nothing was overwritten.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("{0} is a directory; the gateway's configuration is a file: move the directory away")]
    Directory(PathBuf),
    #[error("{path} is a link to {target}, which is not there: put the file there or remove the link")]
    Dangling { path: PathBuf, target: PathBuf },
    #[error("{path} is not JSON5 ({why}): correct it, or move it away to have a fresh one made")]
    Syntax { path: PathBuf, why: String },
    #[error("{path} holds {found} instead of an object: correct it, or move it away to have a fresh one made")]
    NotAnObject { path: PathBuf, found: &'static str },
    #[error("{path} cannot be replaced, though the environment asks for a change ({why}): make it writable")]
    ReadOnly { path: PathBuf, why: io::Error },
    #[error(
        "{0} is a mount of its own and cannot be replaced, though a change is asked for: mount its directory instead"
    )]
    Mounted(PathBuf),
    #[error("cannot {doing} {path}: {why}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        why: io::Error,
    },
}

impl DocumentError {
    /// Trying again does not help: somebody has to correct it or make room for it.
    pub fn is_for_a_person(&self) -> bool {
        !matches!(self, DocumentError::Io { .. })
    }

    /// Another file in its place would be read.
    pub fn is_about_content(&self) -> bool {
        matches!(self, DocumentError::Syntax { .. } | DocumentError::NotAnObject { .. })
    }
}

/// As deep as `serde_json` goes; the deepest that a gateway has is 10.
const DEEPEST: usize = 128;

/// The text and meaning of a configuration file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub text: String,
    pub value: Value,
}

/// Reads the file; `None` when there is none.
///
/// # Errors
/// [`DocumentError`] for anything there that is not a readable file with a JSON5 object in it.
pub fn read(path: &Path) -> Result<Option<Document>, DocumentError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    match parse(&text) {
        Ok(value) if value.is_object() => Ok(Some(Document { text, value })),
        Ok(value) => Err(DocumentError::NotAnObject {
            path: path.to_owned(),
            found: kind(&value),
        }),
        Err(why) => Err(DocumentError::Syntax {
            path: path.to_owned(),
            why,
        }),
    }
}

/// # Errors
/// Why it is not JSON5, in one line.
pub fn parse(text: &str) -> Result<Value, String> {
    // The parser calls itself for each level, and a stack that overflows is the end of PID 1.
    if depth(text) > DEEPEST {
        return Err(format!("it is nested more than {DEEPEST} levels deep"));
    }
    json5::from_str(text).map_err(|error| one_line(&error.to_string()))
}

/// The most levels of brackets that are open at once, as far as a parser would come. JSON5, sections 5 and 7.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest) = (0usize, 0);
    let ends_line = |c: &char| matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}');
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('[' | '{', _) => {
                open += 1;
                deepest = deepest.max(open);
            }
            (']' | '}', _) => open = open.saturating_sub(1),
            (quote @ ('"' | '\''), _) => {
                while let Some(c) = rest.next().filter(|c| *c != quote) {
                    if c == '\\' {
                        rest.next();
                    }
                }
            }
            ('/', Some('/')) => while rest.next_if(|c| !ends_line(c)).is_some() {},
            ('/', Some('*')) => {
                rest.next();
                let mut before = ' ';
                for c in rest.by_ref() {
                    if (before, c) == ('*', '/') {
                        break;
                    }
                    before = c;
                }
            }
            _ => {}
        }
    }
    deepest
}

/// The file's text as it is; `None` when there is none.
///
/// # Errors
/// [`DocumentError`] for a directory, a dangling link, or what cannot be read as UTF-8.
pub fn read_text(path: &Path) -> Result<Option<String>, DocumentError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(DocumentError::Directory(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::read_link(path) {
                Ok(target) => Err(DocumentError::Dangling {
                    path: path.to_owned(),
                    target,
                }),
                Err(_) => Ok(None),
            };
        }
        Err(why) => return Err(io_error("look at", path, why)),
    }
    let text = fs::read_to_string(path).map_err(|why| io_error("read", path, why))?;
    Ok(Some(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned)))
}

/// Puts the text in place of the file, whole or not at all, readable by its owner alone.
///
/// Through a link the file it points at is replaced, so that the link stays.
///
/// # Errors
/// [`DocumentError::ReadOnly`] when the file or its directory does not allow it, else [`DocumentError::Io`].
pub fn write(path: &Path, text: &str) -> Result<(), DocumentError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let refused = |why: io::Error| match why.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => DocumentError::ReadOnly {
            path: path.to_owned(),
            why,
        },
        io::ErrorKind::ResourceBusy => DocumentError::Mounted(path.to_owned()),
        _ => io_error("replace", path, why),
    };
    // A rename would replace a file its owner has made read-only, and root may write to any.
    if let Ok(meta) = fs::metadata(&target)
        && meta.permissions().mode() & 0o200 == 0
    {
        return Err(refused(io::ErrorKind::PermissionDenied.into()));
    }
    let dir = target.parent().unwrap_or(Path::new("/"));
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".moltinit.tmp");
    let fresh = dir.join(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &target)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|why| {
        let _ = fs::remove_file(&fresh);
        refused(why)
    })
}

/// The text the gateway itself would write for this value.
pub fn render(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value always renders");
    text.push('\n');
    text
}

fn io_error(doing: &'static str, path: &Path, why: io::Error) -> DocumentError {
    DocumentError::Io {
        doing,
        path: path.to_owned(),
        why,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        fs::write(&path, "\u{feff}// mine\n{ gateway: { port: 0x10, }, }").unwrap();
        let document = read(&path).unwrap().unwrap();
        assert_eq!(document.value["gateway"]["port"], 16);
        assert_eq!(read(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn depth_is_that_of_what_is_parsed() {
        for (text, deep) in [
            ("{ a: [{}], b: [] }", 3),
            ("['[[', \"{\\\"{\"]", 1),
            ("{ // [[\n } /* {* [*/ [", 1),
            ("// ]\u{2028}[[", 2),
            ("]]][", 1),
        ] {
            assert_eq!(depth(text), deep, "{text}");
        }
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&nested(DEEPEST)).is_ok());
        assert!(parse(&nested(1_000_000)).unwrap_err().contains("nested"));
    }

    #[test]
    fn what_is_no_configuration_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        symlink("/no/such/file", path("dangling")).unwrap();
        fs::write(path("text"), "{ gateway: ").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("list"), "[]").unwrap();
        fs::write(path("binary"), [0xff, 0xfe, 0]).unwrap();
        for (name, says) in [
            ("dir", "is a directory"),
            ("dangling", "is a link to /no/such/file, which is not there"),
            ("text", "is not JSON5"),
            ("empty", "is not JSON5"),
            ("list", "holds an array instead of an object"),
            ("binary", "cannot read"),
        ] {
            let message = read(&path(name)).unwrap_err().to_string();
            assert!(message.contains(says) && message.contains(name), "{message}");
            assert_eq!(message.lines().count(), 1);
        }
    }

    #[test]
    fn a_write_replaces_the_file_behind_a_link_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.json"), dir.path().join("openclaw.json"));
        fs::write(&real, "{}").unwrap();
        symlink("real.json", &link).unwrap();
        write(&link, "{\"a\":1}").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "{\"a\":1}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_read_only_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        fs::write(&path, "{}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        let error = write(&path, "{\"a\":1}").unwrap_err();
        assert!(matches!(error, DocumentError::ReadOnly { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    }
}
