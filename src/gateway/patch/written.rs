//! What earlier boots have written into a configuration for as long as the environment asks for it. It goes again when
//! the environment does not; what somebody has changed since is theirs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Paths, and digests of what was written there: the values may be secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written(BTreeMap<Vec<String>, String>);

/// An entry as it is kept.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: Vec<String>,
    sha256: String,
}

impl Written {
    pub fn note(&mut self, path: &[&str], value: &Value) {
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        self.0.insert(path, digest(value));
    }

    /// Takes out of the document whatever is still as it was written, and the objects that were only there for it.
    pub fn take_out(&self, document: &mut Value) {
        for (path, digest) in &self.0 {
            take_out(document, path, digest);
        }
    }

    /// Reads what [`render`](Self::render) wrote; anything else is nothing.
    pub fn parse(text: &str) -> Written {
        let entries: Vec<Entry> = serde_json::from_str(text).unwrap_or_default();
        Written(entries.into_iter().map(|entry| (entry.path, entry.sha256)).collect())
    }

    pub fn render(&self) -> String {
        let entries: Vec<Entry> = self
            .0
            .iter()
            .map(|(path, sha256)| Entry {
                path: path.clone(),
                sha256: sha256.clone(),
            })
            .collect();
        serde_json::to_string_pretty(&entries).expect("plain data")
    }
}

fn digest(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether it did.
fn take_out(value: &mut Value, path: &[String], wanted: &str) -> bool {
    let Some((key, deeper)) = path.split_first() else {
        return false;
    };
    let Some(object) = value.as_object_mut() else {
        return false;
    };
    let Some(child) = object.get_mut(key) else {
        return false;
    };
    if deeper.is_empty() {
        if digest(child) != wanted {
            return false;
        }
    } else if !take_out(child, deeper, wanted) {
        return false;
    } else if child.as_object().is_none_or(|left| !left.is_empty()) {
        return true;
    }
    object.shift_remove(key);
    true
}
