//! The settings as text: from the file, the environment over it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    env::{Env, Problem},
    names::{self, SETTINGS},
    secret::Secret,
    service::Service,
    value,
};

/// The settings as text, the environment's over the file's, and the problems met so far.
pub struct Settings<'a> {
    pub file: BTreeMap<String, String>,
    pub env: &'a Env,
    pub problems: Vec<Problem>,
}

impl Settings<'_> {
    /// What is secret in the environment, the file's settings and what its services are given.
    pub fn secrets(&self, services: &[Service]) -> Vec<String> {
        let file = self
            .file
            .iter()
            .flat_map(|(key, text)| names::secrets(&names::variable(key), text));
        let given = services.iter().flat_map(|service| &service.env);
        let given = given.flat_map(|(name, value)| names::secrets(name, value));
        file.chain(given).chain(names::secrets_of(self.env)).collect()
    }

    /// The name under which the value in force was given: the variable's, or the file's key.
    pub fn named(&self, key: &str) -> String {
        match self.env.get(&names::variable(key)) {
            Some(_) => names::variable(key),
            None => key.to_owned(),
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        debug_assert!(SETTINGS.contains(&key), "{key} is not in SETTINGS");
        self.env
            .get(&names::variable(key))
            .or_else(|| self.file.get(key).map(String::as_str))
    }

    pub fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(self.named(key), what));
    }

    pub fn parse<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text(key)?) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.problem(key, what);
                None
            }
        }
    }

    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.parse(key, value::duration).unwrap_or(default)
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        self.parse(key, value::boolean)
    }

    pub fn addr(&mut self, key: &str, default: ([u8; 4], u16)) -> SocketAddr {
        self.parse(key, |text| {
            text.parse()
                .map_err(|_| format!("`{text}` is not an address; write it like 127.0.0.1:9180"))
        })
        .unwrap_or_else(|| default.into())
    }

    pub fn absolute(&mut self, key: &str) -> Option<PathBuf> {
        self.parse(key, |text| match Path::new(text) {
            path if path.is_absolute() => Ok(path.to_owned()),
            _ => Err(format!("`{text}` must be an absolute path")),
        })
    }

    pub fn secret(&self, key: &str) -> Option<Secret> {
        self.text(key).map(|text| Secret::new(text.to_owned()))
    }
}
