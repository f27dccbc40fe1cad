//! Values that must never be shown, and the mask that keeps them out of lines somebody else wrote.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use subtle::ConstantTimeEq;

/// A value that cannot be printed: neither `Debug` nor `Display` nor serialisation shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T = String>(T);

impl<T> Secret<T> {
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself. Every use is a place to check that it goes where it should and nowhere else.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<String> {
    /// Compares with what a caller presented, in time that does not tell how much of it was right.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Shorter values (`on`, `1234`) would mask half of every log line.
pub const SHORTEST_MASKED: usize = 6;

/// Every secret value known to this process, to be struck out of text that others wrote. All clones know the same.
#[derive(Clone, Default)]
pub struct Mask(Arc<RwLock<Vec<String>>>);

impl Mask {
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mask = Mask::default();
        mask.add(secrets);
        mask
    }

    /// Secrets that have become known since.
    pub fn add(&self, secrets: impl IntoIterator<Item = String>) {
        // One of several lines (a private key) is met line by line.
        let lines = |secret: String| secret.lines().map(str::to_owned).collect::<Vec<_>>();
        let lines = secrets.into_iter().flat_map(lines);
        let masked = lines.filter(|secret| secret.len() >= SHORTEST_MASKED);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(masked.flat_map(|secret| forms(&secret)));
        // Longest first, so that a secret which contains another is struck out whole.
        known.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.dedup();
    }

    /// The text with every secret in it replaced by `[secret]`; the same text if there is none.
    pub fn apply<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        let mut masked = std::borrow::Cow::Borrowed(text);
        for secret in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if masked.contains(secret.as_str()) {
                masked = masked.replace(secret.as_str(), "[secret]").into();
            }
        }
        masked
    }
}

/// A secret as it is, and as it is written within a URL, a JSON text, and a JSON text within another.
fn forms(secret: &str) -> Vec<String> {
    let quoted = |text: &str| {
        let quoted = serde_json::to_string(text).expect("a string");
        quoted[1..quoted.len() - 1].to_owned()
    };
    let json = quoted(secret);
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    vec![secret.to_owned(), quoted(&json), json, form.replace('+', "%20"), form]
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Mask({known} secrets)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(
            format!("{:?}", Some(Secret::new("hunter2".to_owned()))),
            "Some([secret])"
        );
    }

    #[test]
    fn a_secret_of_several_lines_is_struck_out_of_each() {
        let mask = Mask::new(["-----BEGIN KEY-----\nc2VjcmV0\n".to_owned()]);
        assert_eq!(mask.apply("key: c2VjcmV0"), "key: [secret]");
    }

    #[test]
    fn a_secret_is_struck_out_however_it_is_written() {
        let secret = "c\"a\\n a+r/y";
        let mask = Mask::new([secret.to_owned()]);
        let json = serde_json::json!({ "key": secret }).to_string();
        for text in [
            secret,
            &json,
            &serde_json::json!({ "message": json }).to_string(),
            &format!("{:?}", Some(secret)),
            "c%22a%5Cn%20a%2Br%2Fy",
            "c%22a%5Cn+a%2Br%2Fy",
        ] {
            let masked = mask.apply(text);
            assert!(
                masked.contains("[secret]") && !masked.contains("y") | masked.contains("key"),
                "{masked}"
            );
        }
    }

    #[test]
    fn a_secret_that_comes_later_is_known_to_all() {
        let mask = Mask::new(["abcdef".to_owned()]);
        let elsewhere = mask.clone();
        mask.add(["abcdefghi".to_owned()]);
        assert_eq!(elsewhere.apply("abcdefghi"), "[secret]");
    }

    #[test]
    fn the_longest_secret_is_struck_out_whole() {
        let mask = Mask::new(["abcdef".to_owned(), "abcdefghi".to_owned(), "x".to_owned()]);
        assert_eq!(mask.apply("x=abcdefghi abcdef"), "x=[secret] [secret]");
    }
}
