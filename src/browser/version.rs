//! Which browser it is, as far as that can be said without launching one.

use serde_json::{Value, json};

/// What a browser says of itself. Clients choose by the number how they treat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    product: String,
    protocol: String,
    revision: String,
    user_agent: String,
    js: String,
}

impl Default for Version {
    /// Of a browser that nobody has asked yet.
    fn default() -> Version {
        Version {
            product: "Chrome/140.0.0.0".to_owned(),
            protocol: "1.3".to_owned(),
            revision: String::new(),
            user_agent:
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
                    .to_owned(),
            js: "14.0.0.0".to_owned(),
        }
    }
}

impl Version {
    /// From the page `/json/version`.
    pub fn of_page(page: &Value) -> Option<Version> {
        let text = |name: &str| page[name].as_str().map(str::to_owned);
        // `537.36 (@revision)`
        let revision = page["WebKit-Version"].as_str().and_then(|text| text.split_once('('));
        Some(Version {
            product: text("Browser")?,
            protocol: text("Protocol-Version").unwrap_or_default(),
            revision: revision.map_or_else(String::new, |(_, revision)| revision.trim_end_matches(')').to_owned()),
            user_agent: text("User-Agent").unwrap_or_default(),
            js: text("V8-Version").unwrap_or_default(),
        })
    }

    /// From the result of `Browser.getVersion`.
    pub fn of_result(result: &Value) -> Option<Version> {
        let text = |name: &str| result[name].as_str().map(str::to_owned);
        Some(Version {
            product: text("product")?,
            protocol: text("protocolVersion").unwrap_or_default(),
            revision: text("revision").unwrap_or_default(),
            user_agent: text("userAgent").unwrap_or_default(),
            js: text("jsVersion").unwrap_or_default(),
        })
    }

    pub fn page(&self) -> Value {
        json!({
            "Browser": self.product,
            "Protocol-Version": self.protocol,
            "User-Agent": self.user_agent,
            "V8-Version": self.js,
            "WebKit-Version": format!("537.36 ({})", self.revision),
        })
    }

    pub fn result(&self) -> Value {
        json!({
            "protocolVersion": self.protocol,
            "product": self.product,
            "revision": self.revision,
            "userAgent": self.user_agent,
            "jsVersion": self.js,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let version = Version {
            revision: "@abc".to_owned(),
            ..Version::default()
        };
        assert_eq!(Version::of_page(&version.page()), Some(version.clone()));
        assert_eq!(Version::of_result(&version.result()), Some(version));
        assert_eq!(Version::of_page(&json!({ "Browser": 1 })), None);
    }
}
