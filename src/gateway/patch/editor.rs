//! A JSON document under change, with a record of what was changed. Values are not recorded: they may be secrets.

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

/// Paths are lists of keys, since keys may hold dots.
pub struct Editor {
    root: Value,
    changes: Vec<Change>,
}

impl Editor {
    pub fn new(root: Value) -> Self {
        Editor {
            root,
            changes: Vec::new(),
        }
    }

    pub fn finish(self) -> (Value, Vec<Change>) {
        (self.root, self.changes)
    }

    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.root, |value, key| value.get(key))
    }

    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// The strings of a list, none if there is no list.
    pub fn texts(&self, path: &[&str]) -> Vec<String> {
        let list = self.get(path).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// The keys of an object, none if there is no object.
    pub fn keys(&self, path: &[&str]) -> Vec<String> {
        let object = self.get(path).and_then(Value::as_object);
        object.into_iter().flat_map(Map::keys).cloned().collect()
    }

    /// Puts a value in its place, making the objects on the way to it.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let value = value.into();
        if self.get(path) == Some(&value) {
            return;
        }
        let mut place = &mut self.root;
        for key in path {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[*key];
        }
        *place = value;
        self.changed(path, Kind::Set);
    }

    /// Puts a value where there is none.
    pub fn default(&mut self, path: &[&str], value: impl Into<Value>) {
        if self.get(path).is_none_or(Value::is_null) {
            self.set(path, value);
        }
    }

    /// Takes a value out, if it is there. The order of the other keys stays.
    pub fn remove(&mut self, path: &[&str], why: &'static str) -> Option<Value> {
        let (key, parents) = path.split_last()?;
        let parent = parents
            .iter()
            .try_fold(&mut self.root, |value, key| value.get_mut(key))?;
        let removed = parent.as_object_mut()?.shift_remove(*key)?;
        self.changed(path, Kind::Removed(why));
        Some(removed)
    }

    /// Takes an object out if nothing is left in it.
    pub fn prune(&mut self, path: &[&str], why: &'static str) {
        if self
            .get(path)
            .and_then(Value::as_object)
            .is_some_and(|object| object.is_empty())
        {
            self.remove(path, why);
        }
    }

    /// Moves a value to where another version wants it. What is already there stays, and the old value is dropped.
    pub fn rename(&mut self, from: &[&str], to: &[&str], why: &'static str) {
        if let Some(value) = self.remove(from, why) {
            self.default(to, value);
        }
    }

    fn changed(&mut self, path: &[&str], kind: Kind) {
        self.changes.push(Change {
            key: path.join("."),
            kind,
        });
    }
}
