//! Standard Webhooks v1: what proves to a receiver that a callback is ours and fresh.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::secret::Secret;

/// What a signing secret begins with.
const PREFIX: &str = "whsec_";

/// The specification's bounds for the bytes of a secret.
const LENGTH: std::ops::RangeInclusive<usize> = 24..=64;

/// Not a signing secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not a signing secret: it must be `whsec_` and the base64 of 24 to 64 random bytes")]
pub struct BadKey;

/// The key both sides share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey(Secret<Vec<u8>>);

impl SigningKey {
    /// From its usual text, `whsec_` and base64.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(text: &Secret) -> Result<SigningKey, BadKey> {
        let encoded = text.expose().trim().strip_prefix(PREFIX).ok_or(BadKey)?;
        let key = STANDARD.decode(encoded).map_err(|_| BadKey)?;
        if !LENGTH.contains(&key.len()) {
            return Err(BadKey);
        }
        Ok(SigningKey(Secret::new(key)))
    }

    /// The `webhook-signature` header of a body sent at `timestamp`, in seconds since the epoch.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("a key of any length will do");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_specification_does() {
        // The specification's own example.
        let key = SigningKey::parse(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned())).unwrap();
        assert_eq!(
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn refuses_what_is_not_a_key() {
        for text in [
            "",
            "whsec_",
            "whsec_!!!!",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_c2hvcnQ=",
        ] {
            assert_eq!(SigningKey::parse(&Secret::new(text.to_owned())), Err(BadKey), "{text}");
        }
    }
}
