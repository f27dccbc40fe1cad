//! Sessions that were opened in sessions.

use std::collections::{BTreeSet, HashMap};

/// A session and all that were opened in it, directly or not, by name. `parents` has each session with the one that it
/// was opened in. However deep they are: who opens them is not to be trusted with our stack, nor with our time.
pub fn with_all_below<'a>(
    name: &'a str,
    parents: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
) -> BTreeSet<String> {
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for (child, parent) in parents {
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = vec![name];
    while let Some(name) = next.pop() {
        if found.insert(name.to_owned()) {
            next.extend(children.remove(name).unwrap_or_default());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_below_is_found_and_nothing_else() {
        let sessions = [
            ("a", None),
            ("b", Some("a")),
            ("c", Some("b")),
            ("d", Some("a")),
            ("e", None),
            ("f", Some("e")),
        ];
        let below = |name| with_all_below(name, sessions).into_iter().collect::<String>();
        assert_eq!(
            ["a", "b", "c", "e", "none"].map(below),
            ["abcd", "bc", "c", "ef", "none"]
        );
        let ring = [("a", Some("b")), ("b", Some("a"))];
        assert_eq!(with_all_below("a", ring).len(), 2);
    }
}
