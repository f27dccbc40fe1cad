//! Reading a segment, believing nothing it says before it is checked, and never more of it than the limits allow.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::{
    CHUNK, INFO, Info, MAGIC, MAX_CHUNK, MAX_INFO, MAX_TREE, TREE,
    line::Decoder,
    purpose,
    trailer::{self, Trailer},
};
use crate::{
    state::{
        check::BadTree,
        crypt::{Key, OVERHEAD},
        model::{Chunk, CommitId, Hash, Tree},
    },
    store::{Object, StoreError},
};

/// Read at once from the end of an object: the trailer, and most often everything but the chunks.
const TAIL: u64 = 64 << 10;

/// Most bytes of a line of the tree, and a block: a line has a path and some thousand short lists.
const MAX_LINE: usize = 2 << 20;

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its writer died, or is still at it; it was never reported committed unless it was cut later.
    #[error("it is cut short: no segment, or one whose writing was never finished")]
    Torn,
    #[error("it is not there any more")]
    Missing,
    #[error("it says it is commit {0}")]
    Foreign(CommitId),
    #[error("its {0} does not match its hash")]
    Hash(&'static str),
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error("its tree is not one to restore: {0}")]
    Tree(#[from] BadTree),
    /// Whoever wrote it did not have the key.
    #[error("it is not encrypted, though an older snapshot is: it was not written with this key")]
    NotSealed,
    #[error("chunk {0} of it does not match its hash")]
    Chunk(Hash),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object may be fine.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{object}: {damage}")]
    Damaged { object: String, damage: Damage },
    #[error("{object} is of format version {version}, which this moltinit does not know: use a newer one")]
    Version { object: String, version: u32 },
    #[error("{object} is encrypted: set MOLTINIT_KEY or MOLTINIT_KEY_FILE to the key it was written with")]
    KeyMissing { object: String },
    #[error(
        "{object} is encrypted with another key: set MOLTINIT_KEY or MOLTINIT_KEY_FILE to the one it was written with"
    )]
    KeyWrong { object: String },
}

impl ReadError {
    pub fn damaged(object: &str, damage: Damage) -> ReadError {
        ReadError::Damaged {
            object: object.to_owned(),
            damage,
        }
    }

    /// What is wrong with the object, where that is known.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            ReadError::Damaged { damage, .. } => Some(damage),
            _ => None,
        }
    }

    /// Of an object that was in a listing: one that is gone is damage to whoever needs it.
    pub fn of_known(object: &str, error: StoreError) -> ReadError {
        if error.is_not_found() {
            ReadError::damaged(object, Damage::Missing)
        } else {
            ReadError::Store(error)
        }
    }
}

/// A segment whose trailer and info are as they were written.
pub struct Opened<'k> {
    window: Window,
    key: Option<&'k Key>,
    trailer: Trailer,
    pub info: Info,
}

impl<'k> Opened<'k> {
    /// Reads and checks the end of the object of commit `id`.
    pub fn open(object: Object, id: CommitId, key: Option<&'k Key>) -> Result<Opened<'k>, ReadError> {
        let name = object.name().to_owned();
        let fail = |damage| ReadError::damaged(&name, damage);
        if object.len() < trailer::LEN {
            return Err(fail(Damage::Torn));
        }
        let window = Window::new(object)?;
        let len = window.object.len();
        let last = window.read(len - trailer::LEN..len)?;
        let trailer = Trailer::decode(&last, len).map_err(fail)?;
        if trailer.info_len > MAX_INFO || trailer.info_raw > MAX_INFO {
            return Err(fail(Damage::Malformed("its info is too long".to_owned())));
        }
        let stored = window.read(trailer.info_at()..trailer.info_at() + trailer.info_len)?;
        if !trailer::sum_holds(&stored, &last) {
            return Err(fail(Damage::Hash("info")));
        }
        // None of what follows is damage, and nothing older is to be taken for it.
        if trailer.version != trailer::VERSION {
            let version = trailer.version;
            return Err(ReadError::Version { object: name, version });
        }
        let key = match (trailer.key, key) {
            (None, _) => None,
            (Some(_), None) => return Err(ReadError::KeyMissing { object: name }),
            (Some(id), Some(key)) if key.id() == id => Some(key),
            (Some(_), Some(_)) => return Err(ReadError::KeyWrong { object: name }),
        };
        let raw = usize::try_from(trailer.info_raw).unwrap_or(usize::MAX);
        let plain = unpack(&stored, &purpose(INFO, trailer.id, 0), raw, key);
        let plain = plain.ok_or_else(|| fail(Damage::Malformed("its info cannot be unpacked".to_owned())))?;
        let info: Info =
            serde_json::from_slice(&plain).map_err(|error| fail(Damage::Malformed(format!("its info: {error}"))))?;
        let own = info.sources.first().map(|source| source.commit);
        if [Some(trailer.id), Some(info.meta.id), own] != [Some(id); 3] {
            return Err(fail(Damage::Foreign(trailer.id)));
        }
        Ok(Opened {
            window,
            key,
            trailer,
            info,
        })
    }

    /// Whether it is encrypted, and so was written by somebody who has the key.
    pub fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    pub fn size(&self) -> u64 {
        self.window.object.len()
    }

    /// The bytes that describe the tree, as stored: what a delta costs, and what a checkpoint costs.
    pub fn tree_len(&self) -> u64 {
        self.trailer.tree_len
    }

    /// Reads the tree on top of `base`, the checkpoint's for a delta and empty for a checkpoint. What comes back
    /// is well-formed, not yet sound: [`crate::state::check::tree`] tells.
    pub fn tree(&self, base: Tree) -> Result<(Tree, Vec<Chunk>), ReadError> {
        let fail = |damage| ReadError::damaged(self.window.object.name(), damage);
        let malformed = |what: &str| fail(Damage::Malformed(what.to_owned()));
        let commits: Vec<CommitId> = self.info.sources.iter().map(|source| source.commit).collect();
        let mut decoder = Decoder::new(&commits, base);
        let mut sum = Sha256::new();
        let (mut at, mut raw_sum) = (self.trailer.tree_at, 0);
        let mut rest = Vec::new();
        for block in 0..self.info.blocks {
            let header = self.window.read(at..at + 8)?;
            let (len, raw) = header.split_at(4);
            let [len, raw] = [len, raw].map(|b| b.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)));
            raw_sum += raw;
            if raw > MAX_CHUNK as u64 || raw_sum > MAX_TREE || len > stored_max(raw) {
                return Err(malformed("a block of its tree is too long"));
            }
            let end = at + 8 + len;
            if end > self.trailer.info_at() {
                return Err(malformed("its tree is longer than it says"));
            }
            let stored = self.window.read(at + 8..end)?;
            sum.update(&header);
            sum.update(&stored);
            let purpose = purpose(TREE, self.trailer.id, block);
            // The block's own bounds are kept; that it is the one that was written, the sum says below.
            let plain = unpack(&stored, &purpose, raw as usize, self.key);
            let plain = plain.ok_or_else(|| malformed("a block of its tree cannot be unpacked"))?;
            // A line may go on in the next block.
            rest.extend(plain);
            if rest.len() > MAX_LINE {
                return Err(malformed("a line of its tree is too long"));
            }
            if let Some(last) = rest.iter().rposition(|&b| b == b'\n') {
                for line in rest[..last].split(|&b| b == b'\n') {
                    decoder.line(line).map_err(fail)?;
                }
                rest.drain(..=last);
            }
            at = end;
        }
        if at != self.trailer.info_at() || !rest.is_empty() {
            return Err(malformed("its tree ends in the middle"));
        }
        if sum.finalize().as_slice() != self.info.tree.as_bytes() {
            return Err(fail(Damage::Hash("tree")));
        }
        Ok(decoder.finish())
    }

    /// Reads every byte before the trailer and compares their hash.
    pub fn verify_body(&self) -> Result<(), ReadError> {
        let mut sum = Sha256::new();
        let mut at = 0;
        let end = self.window.object.len() - trailer::LEN;
        while at < end {
            let bytes = self.window.read(at..end.min(at + (1 << 20)))?;
            if at == 0 && !bytes.starts_with(&MAGIC) {
                return Err(ReadError::damaged(
                    self.window.object.name(),
                    Damage::Hash("first bytes"),
                ));
            }
            sum.update(&bytes);
            at += bytes.len() as u64;
        }
        if sum.finalize().as_slice() == self.trailer.body.as_bytes() {
            Ok(())
        } else {
            Err(ReadError::damaged(self.window.object.name(), Damage::Hash("body")))
        }
    }
}

/// An object, and its end in memory.
struct Window {
    object: Object,
    tail_at: u64,
    tail: Vec<u8>,
}

impl Window {
    fn new(object: Object) -> Result<Window, ReadError> {
        let mut window = Window {
            tail_at: object.len(),
            tail: Vec::new(),
            object,
        };
        let (at, len) = (window.tail_at.saturating_sub(TAIL), window.tail_at);
        window.tail = window.read(at..len)?;
        window.tail_at = at;
        Ok(window)
    }

    /// Exactly these bytes of the object.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        let want = range.end - range.start;
        let place = |n: u64| usize::try_from(n.checked_sub(self.tail_at)?).ok();
        if let (Some(start), Some(end)) = (place(range.start), place(range.end))
            && let Some(bytes) = self.tail.get(start..end)
        {
            return Ok(bytes.to_vec());
        }
        let name = self.object.name();
        let bytes = self.object.read(range).map_err(|e| ReadError::of_known(name, e))?;
        if bytes.len() as u64 == want {
            Ok(bytes)
        } else {
            Err(ReadError::damaged(name, Damage::Torn))
        }
    }
}

/// A chunk's plain bytes from its stored ones, checked against its hash.
pub fn chunk(stored: &[u8], chunk: &Chunk, key: Option<&Key>) -> Result<Vec<u8>, Damage> {
    let raw = chunk.raw_len as usize;
    let unpacked = |key| unpack(stored, CHUNK, raw, key).filter(|plain| Hash::of(plain) == chunk.hash);
    // One from before the store was encrypted is as it was, and the hash vouches for it.
    let before = || key.and_then(|_| unpacked(None));
    unpacked(key).or_else(before).ok_or(Damage::Chunk(chunk.hash))
}

/// Most bytes that a chunk or block of `raw` plain bytes takes when compressed and sealed.
pub fn stored_max(raw: u64) -> u64 {
    // zstd's own bound is raw/256 and a little for short input.
    raw + raw / 128 + 512 + OVERHEAD as u64
}

/// Unseals and decompresses to exactly `raw` bytes. Memory is bounded by `raw` whatever the bytes hold.
fn unpack(stored: &[u8], purpose: &[u8], raw: usize, key: Option<&Key>) -> Option<Vec<u8>> {
    let unsealed = match key {
        Some(key) => Some(key.open(purpose, stored)?),
        None => None,
    };
    let plain = zstd::bulk::decompress(unsealed.as_deref().unwrap_or(stored), raw).ok()?;
    (plain.len() == raw).then_some(plain)
}
