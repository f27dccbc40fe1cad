//! What of the configuration may change while running: `moltinit attach` brings secrets that PID 1 was not given.

use std::fmt;

use url::Url;

use super::webhook::SigningKey;
use crate::config::{
    Config,
    env::Problem,
    secret::{Mask, Secret},
};

/// Who may ask, where events go, and what must never be said.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The bearer token; without one everything but the probes is refused.
    pub admin_token: Option<Secret>,
    /// `None`: events are kept and served, not posted.
    pub callback: Option<Callback>,
    pub mask: Mask,
}

/// Where events are posted, and how they are signed.
#[derive(Clone, PartialEq, Eq)]
pub struct Callback {
    pub url: Url,
    pub key: SigningKey,
}

impl Callback {
    /// The URL without what may be secret: user, password, query and fragment.
    pub fn shown(&self) -> String {
        let mut url = self.url.clone();
        // Refused only by URLs that cannot have them.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        url.into()
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callback({})", self.shown())
    }
}

impl Settings {
    /// What `config` has of them.
    ///
    /// # Errors
    /// The callback URL is not one that events can be posted to, or the secret is not a signing secret.
    pub fn of(config: &Config) -> Result<Settings, Problem> {
        let callback = match (&config.callback.url, &config.callback.secret) {
            (Some(url), Some(secret)) => Some(Callback {
                url: callback_url(url).map_err(|what| Problem::new(&config.callback.named, what))?,
                key: SigningKey::parse(secret)
                    .map_err(|error| Problem::new("MOLTINIT_CALLBACK_SECRET", error.to_string()))?,
            }),
            _ => None,
        };
        Ok(Settings {
            admin_token: config.admin_token.clone(),
            callback,
            mask: config.mask.clone(),
        })
    }
}

/// The URL itself is not quoted: it may hold a password.
fn callback_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("it is not a URL: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("it must begin with https:// or http://, not `{other}:`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_secret() {
        let callback = Callback {
            url: Url::parse("https://user:hunter2@example.com/hook?token=hunter2#hunter2").unwrap(),
            key: SigningKey::parse(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned())).unwrap(),
        };
        assert_eq!(callback.shown(), "https://example.com/hook");
        assert_eq!(format!("{callback:?}"), "Callback(https://example.com/hook)");
    }

    #[test]
    fn only_a_web_address_is_posted_to() {
        assert!(callback_url("https://example.com/hook").is_ok());
        for bad in [
            "",
            "example.com",
            "ftp://user:hunter2@example.com/",
            "file:///etc/passwd",
        ] {
            let why = callback_url(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
