//! What of the configuration may change while running: `moltinit attach` brings secrets that PID 1 was not given.

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    pub url: Url,
    pub key: SigningKey,
}

impl Settings {
    /// What `config` has of them.
    ///
    /// # Errors
    /// The callback URL is not one that events can be posted to, or the secret is not a signing secret.
    pub fn of(config: &Config) -> Result<Settings, Problem> {
        let callback = match (&config.callback.url, &config.callback.secret) {
            (Some(url), Some(secret)) => Some(Callback {
                url: callback_url(url).map_err(|what| Problem::new("MOLTINIT_CALLBACK_URL", what))?,
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
