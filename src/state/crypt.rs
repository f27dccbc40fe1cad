//! Encryption at rest: one key, made from a passphrase, seals every chunk and every description of a store.
//!
//! Chunks are sealed one by one with nothing around them, and the table that says where they are is sealed too,
//! so that neither names nor sizes show.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Bytes that sealing adds: the nonce before, the tag after.
pub const OVERHEAD: usize = NONCE + 16;
const NONCE: usize = 24;
const ROUNDS: u32 = 600_000;

/// Names a key without giving it away, so that a wrong key is told from damage.
pub type KeyId = [u8; 16];

/// A key for XChaCha20-Poly1305. It has no `Debug`, and nothing prints it.
#[derive(Clone)]
pub struct Key {
    cipher: XChaCha20Poly1305,
    id: KeyId,
}

impl Key {
    /// The key of a passphrase: PBKDF2 (RFC 8018) with HMAC-SHA-256, 600,000 rounds, salted with the instance's
    /// name. Takes a good part of a second.
    pub fn derive(passphrase: &str, instance: &str) -> Key {
        let salt = format!("moltinit store v1 {instance}");
        let key = pbkdf2(passphrase.as_bytes(), salt.as_bytes(), ROUNDS);
        let digest = Sha256::new()
            .chain_update(b"moltinit key id")
            .chain_update(key)
            .finalize();
        let mut id = KeyId::default();
        id.copy_from_slice(&digest[..16]);
        Key {
            cipher: XChaCha20Poly1305::new(&key.into()),
            id,
        }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    /// A random nonce, the ciphertext and its tag. `what` is not stored, and opening needs the same.
    pub fn seal(&self, what: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload { msg: plain, aad: what };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        let mut out = nonce.to_vec();
        out.extend(sealed.expect("the cipher takes any message shorter than 256 GiB"));
        out
    }

    /// What [`Key::seal`] was given, or nothing if a bit of it is not as it was.
    pub fn open(&self, what: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, msg) = sealed.split_first_chunk::<NONCE>()?;
        self.cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg, aad: what })
            .ok()
    }
}

/// PBKDF2 for one block, which is all that a key of 32 bytes needs.
fn pbkdf2(passphrase: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let keyed = Hmac::<Sha256>::new_from_slice(passphrase).expect("HMAC takes a key of any length");
    let mac = |parts: &[&[u8]]| -> [u8; 32] {
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let mut last = mac(&[salt, &1u32.to_be_bytes()]);
    let mut key = last;
    for _ in 1..rounds {
        last = mac(&[&last]);
        key.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pbkdf2_agrees_with_the_published_vector() {
        // RFC 7914, section 11.
        let hex = |bytes: [u8; 32]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(pbkdf2(b"passwd", b"salt", 1)),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        );
    }

    #[test]
    fn only_the_same_key_and_purpose_open_what_was_sealed() {
        let key = Key::derive("a passphrase", "default");
        let other = Key::derive("a passphrase", "another");
        let sealed = key.seal(b"info", b"secret");
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(key.open(b"info", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(key.open(b"tree", &sealed), None);
        assert_eq!(other.open(b"info", &sealed), None);
        assert_eq!(key.open(b"info", &sealed[..10]), None);
        assert_ne!(key.id(), other.id());
    }
}
