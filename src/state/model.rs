//! The nouns of a snapshot: commits, the tree they describe, and the chunks the tree's bytes are in.
//!
//! These types are shared by capture (which makes them from a live directory), the segment format (which
//! writes and reads them) and restore (which makes a directory from them). They hold no behaviour that
//! touches a disk.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

/// One commit: the `seq`th of a generation. Generations are ULIDs, so they sort by the time of their boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitId {
    pub generation: Ulid,
    pub seq: u64,
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08}", self.generation, self.seq)
    }
}

/// A commit id that is not `<ULID>-<number>`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a commit id; take one from `moltinit snapshot list`, e.g. 01JD3Z0Y5T7Q8R9S0T1V2W3X4Y-00000012")]
pub struct BadCommitId(String);

impl FromStr for CommitId {
    type Err = BadCommitId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadCommitId(text.to_owned());
        let (generation, seq) = text.split_once('-').ok_or_else(bad)?;
        Ok(CommitId {
            generation: generation.parse().map_err(|_| bad())?,
            seq: seq.parse().map_err(|_| bad())?,
        })
    }
}

impl Serialize for CommitId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CommitId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A path in a snapshot: the name of its root (`state`, `workspace`, `moltinit`), a slash, and the path below
/// that root as raw bytes. A root itself is its bare name. Never empty, absolute, or with `.`/`..` parts.
pub type TreePath = Vec<u8>;

/// SHA-256 of a chunk's plain bytes: in hardware on any machine worth running on, and in every language's
/// standard library, so that a store can be read and checked without moltinit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Hash {
        Hash(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: a commit prints thousands of these, and `{:02x}` for each byte takes most of its time.
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        let digits = self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        f.write_str(&digits.collect::<String>())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A chunk hash that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a SHA-256 in hexadecimal")]
pub struct BadHash(String);

impl FromStr for Hash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadHash(text.to_owned());
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| bad())?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).ok_or_else(bad);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).map_err(|_| bad())?;
        }
        Ok(Hash(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Where a chunk's bytes are: `len` stored bytes at `offset` of the object of `commit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    pub commit: CommitId,
    pub offset: u64,
    pub len: u32,
}

/// A chunk: plain bytes named by their hash, stored once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub hash: Hash,
    /// Length of the plain bytes.
    pub raw_len: u32,
    pub at: Location,
}

/// A run of a file's bytes: `len` bytes from `from` within the plain bytes of a chunk, or a hole of zeros.
/// A file's content is its extents one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    Data { chunk: Hash, from: u32, len: u32 },
    Hole { len: u64 },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File {
        len: u64,
        extents: Vec<Extent>,
    },
    /// A database image taken through SQLite: `extents` cover whole pages of `page_size` bytes.
    Sqlite {
        len: u64,
        page_size: u32,
        extents: Vec<Extent>,
    },
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of the file at `to`, which is an earlier path of the same tree.
    HardLink {
        to: TreePath,
    },
}

/// One name in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits, set-id and sticky bits; not the file type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since the epoch, negative before it.
    pub mtime_ns: i64,
    pub kind: Kind,
}

/// The whole of a snapshot: every name in path order, so a directory comes before what is in it.
pub type Tree = BTreeMap<TreePath, Entry>;

/// The paths below a directory.
pub fn below<'t, T>(tree: &'t BTreeMap<TreePath, T>, dir: &[u8]) -> impl Iterator<Item = &'t TreePath> {
    let below = [dir, b"/"].concat();
    let from = tree.range(below.clone()..).map(|(path, _)| path);
    from.take_while(move |path| path.starts_with(&below))
}

/// From one tree to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    pub upsert: Vec<(TreePath, Entry)>,
    pub remove: Vec<TreePath>,
}

/// Why a commit was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The first of a generation: what was found after the restore.
    Boot,
    /// Something changed.
    Change,
    /// Somebody asked for it.
    Manual,
    /// The last one before a stop.
    Final,
    /// A plain backup was taken over.
    Import,
    /// Nothing changed: live chunks of many small objects were gathered into one.
    Compact,
}

/// What is said about a commit, in its object and in `snapshot list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub id: CommitId,
    /// The commit this one follows; for the first of a generation its `base`.
    pub parent: Option<CommitId>,
    /// What its generation began from: the commit that was restored, or none for an empty boot.
    pub base: Option<CommitId>,
    /// When the capture began.
    pub time: jiff::Timestamp,
    pub reason: Reason,
    /// What wrote it: moltinit's version, and the gateway's where known.
    pub moltinit: String,
    pub gateway: Option<String>,
    /// Totals of the whole tree, not of the change.
    pub files: u64,
    pub bytes: u64,
    /// Why this commit looks like a loss, e.g. most of the state is gone. The one before it is kept for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicious: Option<String>,
    /// What of the tree could not be read or captured as it should, by name; an older copy is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
