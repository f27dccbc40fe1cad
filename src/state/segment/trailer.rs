//! The last bytes of a segment: fixed in length, so that one read of an object's end says what the rest is.

use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::{Damage, MAGIC};
use crate::state::{
    crypt::KeyId,
    model::{CommitId, Hash},
};

pub const LEN: u64 = 152;
const TAIL: [u8; 8] = *b"MOLTTAIL";
/// The format that is written, and read.
pub const VERSION: u32 = 1;
const ENCRYPTED: u32 = 1;

/// Where the sections are, and what they have to hash to. Integers are little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    pub version: u32,
    pub id: CommitId,
    /// The key it is sealed with, if it is.
    pub key: Option<KeyId>,
    /// Offset of the tree, which ends where the info begins.
    pub tree_at: u64,
    pub tree_len: u64,
    pub info_len: u64,
    /// Length of the info when it is unsealed and decompressed.
    pub info_raw: u64,
    /// SHA-256 of every byte before the trailer.
    pub body: Hash,
}

impl Trailer {
    pub fn info_at(&self) -> u64 {
        self.tree_at + self.tree_len
    }

    /// The trailer's bytes; they end with the SHA-256 of the stored info and of the trailer up to there.
    pub fn encode(&self, info: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN as usize);
        out.extend(TAIL);
        out.extend(self.version.to_le_bytes());
        out.extend(if self.key.is_some() { ENCRYPTED } else { 0 }.to_le_bytes());
        out.extend(self.id.generation.to_bytes());
        out.extend(self.id.seq.to_le_bytes());
        out.extend(self.key.unwrap_or_default());
        for number in [self.tree_at, self.tree_len, self.info_len, self.info_raw] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.body.as_bytes());
        let sum = Sha256::new().chain_update(info).chain_update(&out).finalize();
        out.extend(sum);
        out
    }

    /// Reads the trailer of an object of `object_len` bytes, and checks that its sections fill it exactly. It is the
    /// same in every version, so that one that is newer is told from damage.
    pub fn decode(bytes: &[u8], object_len: u64) -> Result<Trailer, Damage> {
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n).ok_or(Damage::Torn)?;
            rest = tail;
            Ok::<&[u8], Damage>(head)
        };
        if take(8)? != TAIL {
            return Err(Damage::Torn);
        }
        let version = u32_of(take(4)?);
        let flags = u32_of(take(4)?);
        let mut generation = [0; 16];
        generation.copy_from_slice(take(16)?);
        let seq = u64_of(take(8)?);
        let mut key = KeyId::default();
        key.copy_from_slice(take(16)?);
        let mut number = || Ok::<u64, Damage>(u64_of(take(8)?));
        let (tree_at, tree_len, info_len, info_raw) = (number()?, number()?, number()?, number()?);
        let mut body = [0; 32];
        body.copy_from_slice(take(32)?);
        let sections = [tree_at, tree_len, info_len, LEN];
        let sum = sections.iter().try_fold(0u64, |sum, part| sum.checked_add(*part));
        if sum != Some(object_len) || tree_at < MAGIC.len() as u64 {
            return Err(Damage::Malformed("its sections do not fill it".to_owned()));
        }
        Ok(Trailer {
            version,
            id: CommitId {
                generation: Ulid::from_bytes(generation),
                seq,
            },
            key: (flags & ENCRYPTED != 0).then_some(key),
            tree_at,
            tree_len,
            info_len,
            info_raw,
            body: Hash::from_bytes(body),
        })
    }
}

/// Whether the last 32 bytes of `trailer` are the sum over the stored info and the rest of the trailer.
pub fn sum_holds(info: &[u8], trailer: &[u8]) -> bool {
    trailer.split_last_chunk::<32>().is_some_and(|(covered, sum)| {
        Sha256::new()
            .chain_update(info)
            .chain_update(covered)
            .finalize()
            .as_slice()
            == sum
    })
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
