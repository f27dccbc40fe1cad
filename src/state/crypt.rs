//! Encryption at rest: one key, made from a passphrase, seals every chunk and every description of a store.
//!
//! Chunks are sealed one by one with nothing around them, and the table that says where they are is sealed too,
//! so that neither names nor sizes show.

use std::sync::{Mutex, PoisonError};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use sha2::{Digest, Sha256};

/// Bytes that sealing adds: the nonce before, the tag after.
pub const OVERHEAD: usize = NONCE + 16;
const NONCE: usize = 24;
const ROUNDS: u32 = 600_000;

/// The key that was made last, and what of: a boot that waits for its store asks for the same one each second.
static LAST: Mutex<Option<([u8; 32], Key)>> = Mutex::new(None);

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
    /// name. Takes a good part of a second the first time.
    pub fn derive(passphrase: &str, instance: &str) -> Key {
        let salt = format!("moltinit store v1 {instance}");
        let asked: [u8; 32] = Sha256::new()
            .chain_update((passphrase.len() as u64).to_le_bytes())
            .chain_update(passphrase)
            .chain_update(&salt)
            .finalize()
            .into();
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((same, key)) if *same == asked => key.clone(),
            _ => last.insert((asked, Key::made_of(passphrase, &salt))).1.clone(),
        }
    }

    fn made_of(passphrase: &str, salt: &str) -> Key {
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(passphrase.as_bytes(), salt.as_bytes(), ROUNDS, &mut key);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_one_of_the_document() {
        // `hashlib.pbkdf2_hmac("sha256", b"a passphrase", b"moltinit store v1 default", 600000)`, hashed as it says.
        let id: String = Key::derive("a passphrase", "default")
            .id()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(id, "7b47b55a214a5b15bd5aa487f88e4547");
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
