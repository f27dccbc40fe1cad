//! A JSON document under change.

use serde_json::{Map, Value};

use super::{
    changes::{Change, changes},
    written::Written,
};

/// Paths are lists of keys, since keys may hold dots.
pub struct Editor {
    before: Value,
    root: Value,
    removed: Vec<(String, &'static str)>,
    written: Written,
}

/// A document that has been patched.
#[derive(Debug, Clone, PartialEq)]
pub struct Patched {
    pub value: Value,
    /// What is different now.
    pub changes: Vec<Change>,
    /// What of it goes when the environment does not ask for it any more.
    pub written: Written,
}

impl Editor {
    /// Without what earlier boots have written and nobody has changed.
    pub fn new(document: Value, earlier: &Written) -> Self {
        let mut root = document.clone();
        earlier.take_out(&mut root);
        Editor {
            before: document,
            root,
            removed: Vec::new(),
            written: Written::default(),
        }
    }

    pub fn finish(self) -> Patched {
        let value = in_order_of(&self.before, self.root);
        Patched {
            changes: changes(&self.before, &value, &self.removed),
            value,
            written: self.written,
        }
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
        let mut place = &mut self.root;
        for key in path {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[*key];
        }
        *place = value.into();
    }

    /// Puts a value where there is none.
    pub fn default(&mut self, path: &[&str], value: impl Into<Value>) {
        if self.is_absent(path) {
            self.set(path, value);
        }
    }

    /// Puts a value in its place for as long as the environment asks for it.
    pub fn lend(&mut self, path: &[&str], value: impl Into<Value>) {
        let value = value.into();
        // One that is there already is somebody else's.
        if self.get(path) != Some(&value) {
            self.written.note(path, &value);
            self.set(path, value);
        }
    }

    /// Puts a value where there is none, for as long as the environment asks for it.
    pub fn lend_default(&mut self, path: &[&str], value: impl Into<Value>) {
        if self.is_absent(path) {
            self.lend(path, value);
        }
    }

    /// Takes a value out, if it is there. The order of the other keys stays.
    pub fn remove(&mut self, path: &[&str], why: &'static str) -> Option<Value> {
        let (key, parents) = path.split_last()?;
        let parent = parents
            .iter()
            .try_fold(&mut self.root, |value, key| value.get_mut(key))?;
        let removed = parent.as_object_mut()?.shift_remove(*key)?;
        self.removed.push((path.join("."), why));
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

    fn is_absent(&self, path: &[&str]) -> bool {
        self.get(path).is_none_or(Value::is_null)
    }
}

/// The value with its keys in the order in which the other has them, and then those that it has not.
fn in_order_of(before: &Value, value: Value) -> Value {
    match (before, value) {
        (Value::Object(before), Value::Object(mut now)) => {
            let mut ordered = Map::new();
            for (key, before) in before {
                if let Some(value) = now.shift_remove(key) {
                    ordered.insert(key.clone(), in_order_of(before, value));
                }
            }
            ordered.extend(now);
            Value::Object(ordered)
        }
        (_, value) => value,
    }
}
