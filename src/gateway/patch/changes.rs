//! What is different between two documents, key by key. Values are not told: they may be secrets.

use std::fmt;

use serde_json::{Map, Value};

/// One change to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key's path, with dots.
    pub key: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Set,
    /// Taken out, and why.
    Removed(&'static str),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Set => write!(f, "{} set", self.key),
            Kind::Removed(why) => write!(f, "{} removed: {why}", self.key),
        }
    }
}

/// Of what nobody asks for any more.
pub const STALE: &str = "an earlier boot made it, and the environment does not ask for it any more";

/// `reasons` are those for which keys were taken out, or something above them was.
pub fn changes(before: &Value, now: &Value, reasons: &[(String, &'static str)]) -> Vec<Change> {
    let mut found = Vec::new();
    look(String::new(), Some(before), Some(now), reasons, &mut found);
    found
}

fn look(
    key: String,
    before: Option<&Value>,
    now: Option<&Value>,
    reasons: &[(String, &'static str)],
    found: &mut Vec<Change>,
) {
    if before == now {
        return;
    }
    let object = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
    let (then, after) = match (object(before), object(now)) {
        (Some(then), Some(after)) => (then, after),
        (Some(then), None) if now.is_none() && !then.is_empty() => (then, Map::new()),
        (None, Some(after)) if before.is_none() && !after.is_empty() => (Map::new(), after),
        _ => {
            let kind = match now {
                Some(_) => Kind::Set,
                None => Kind::Removed(reason(&key, reasons)),
            };
            return found.push(Change { key, kind });
        }
    };
    let new = after.keys().filter(|key| !then.contains_key(*key));
    for name in then.keys().chain(new) {
        let key = if key.is_empty() {
            name.clone()
        } else {
            format!("{key}.{name}")
        };
        look(key, then.get(name), after.get(name), reasons, found);
    }
}

fn reason(key: &str, reasons: &[(String, &'static str)]) -> &'static str {
    let above = |(known, _): &&(String, &str)| {
        key.strip_prefix(known.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    reasons.iter().find(above).map_or(STALE, |(_, why)| why)
}
