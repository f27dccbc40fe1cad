//! Where the agent works: what is named to us, else what the gateway's configuration says, else a default.

use std::path::PathBuf;

use serde_json::Value;

use super::{document, places::Places};
use crate::config::{Config, Workspace};

/// Looks at the machine once, and at the gateway's configuration each time it is asked.
#[derive(Clone)]
pub struct Whereabouts {
    set: Option<Workspace>,
    places: Places,
}

impl Whereabouts {
    pub fn of(config: &Config) -> Whereabouts {
        Whereabouts {
            set: config.workspace.clone(),
            places: Places::of(config),
        }
    }

    /// As the configuration in its place has it now.
    pub fn now(&self) -> PathBuf {
        self.configured().unwrap_or_else(|| self.by(&Value::Null))
    }

    /// The same; `None` while there is no configuration that can be read.
    pub fn configured(&self) -> Option<PathBuf> {
        Some(self.by(&document::read(&self.places.config).ok()??.value))
    }

    /// With a configuration that is not in its place; `None` is one that there is not yet.
    pub fn with(&self, config: Option<&[u8]>) -> PathBuf {
        let text = config.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let value = text.and_then(|text| document::parse(text.trim_start_matches('\u{feff}')).ok());
        self.by(&value.unwrap_or(Value::Null))
    }

    fn by(&self, config: &Value) -> PathBuf {
        let named = || self.places.named_in(config);
        match &self.set {
            Some(Workspace::Named(path)) => path.clone(),
            Some(Workspace::Default(path)) => named().unwrap_or_else(|| path.clone()),
            None => named().unwrap_or_else(|| self.places.default_workspace()),
        }
    }
}
