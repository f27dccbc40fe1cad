//! The environment as configuration reads it: names to text, with `NAME_FILE` standing in for `NAME`.

use std::{collections::BTreeMap, fmt};

/// A snapshot of environment variables. Values may be secrets, so it does not print them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's environment. Variables that are not UTF-8 are nobody's configuration and left out.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Puts `NAME` with what is in the file, without its last line break, in the place of every `NAME_FILE` of a name
    /// in `names`.
    ///
    /// # Errors
    /// One problem for each file that cannot be read or has nothing in it, and for each name given both ways.
    pub fn read_files(&mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for name in names {
            let name = name.as_ref();
            let by_file = format!("{name}_FILE");
            let Some(path) = self.get(&by_file).map(str::to_owned) else {
                continue;
            };
            if self.get(name).is_some() {
                problems.push(Problem::new(
                    &by_file,
                    format!("{name} is set too; unset one of the two"),
                ));
                continue;
            }
            match std::fs::read_to_string(&path) {
                // Unset would be a snapshot in plain text, or a token that is somebody else's.
                Ok(text) if text.trim().is_empty() => {
                    problems.push(Problem::new(&by_file, "there is nothing in the file that it names"));
                }
                Ok(text) => {
                    let value = text.strip_suffix('\n').unwrap_or(&text);
                    self.0.remove(&by_file);
                    self.0
                        .insert(name.to_owned(), value.strip_suffix('\r').unwrap_or(value).to_owned());
                }
                // The path is not quoted: it may be the secret itself, given under the wrong name.
                Err(error) => problems.push(Problem::new(
                    &by_file,
                    format!("cannot read the file that it names: {error}"),
                )),
            }
        }
        problems
    }

    /// The value of a variable; one that is set but empty counts as unset, as Workers pass unset secrets.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of several names for the same thing that is set.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Every variable, those that are set but empty too.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// This environment with another's variables over it.
    pub fn overlaid(mut self, over: &Env) -> Self {
        self.0
            .extend(over.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        self
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Env(pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One thing wrong with the configuration: which variable or key, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct Problem {
    /// The variable's or key's name, as its author wrote it.
    pub name: String,
    pub what: String,
}

impl Problem {
    pub fn new(name: impl Into<String>, what: impl Into<String>) -> Self {
        Problem {
            name: name.into(),
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stands_in_for_a_variable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "t0k3n\n").unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, " \n").unwrap();
        let mut env: Env = [
            ("TOKEN_FILE", file.to_str().unwrap()),
            ("BOTH", "1"),
            ("BOTH_FILE", "/x"),
            ("GONE_FILE", "/no/such"),
            ("EMPTY_FILE", empty.to_str().unwrap()),
        ]
        .into_iter()
        .collect();
        let problems = env.read_files(["TOKEN", "BOTH", "GONE", "EMPTY"]);
        assert_eq!(env.get("TOKEN"), Some("t0k3n"));
        let named: Vec<_> = problems.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(named, ["BOTH_FILE", "GONE_FILE", "EMPTY_FILE"]);
    }

    #[test]
    fn values_are_not_printed() {
        let env: Env = [("KEY", "sk-ant-123")].into_iter().collect();
        assert_eq!(format!("{env:?}"), r#"{"KEY"}"#);
    }
}
