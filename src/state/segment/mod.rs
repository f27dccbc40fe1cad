//! A segment: the one object that a commit is.
//!
//! ```text
//! "MOLTSEG1" | chunk | chunk | … | block of the tree | block | … | info | trailer
//! ```
//!
//! Chunks are compressed one by one and found by the table in the tree's lines ([`line`]); the tree is there as a
//! whole (a checkpoint) or as what differs from the last checkpoint of the generation (a delta), so that reading
//! any commit takes at most two descriptions. Everything can be checked from its end: the trailer ([`trailer`])
//! covers the info, the info covers the tree, the tree names each chunk by its hash. `docs/store-format.md` has it
//! byte by byte.

pub mod line;
pub mod reader;
mod spool;
pub mod trailer;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{Damage, Opened};
pub use writer::{Segment, SegmentError, SegmentWriter};

use super::model::{CommitId, Hash, Meta};

/// The first bytes of every segment.
pub const MAGIC: [u8; 8] = *b"MOLTSEG1";

/// Most plain bytes in a chunk or in a block of the tree. Readers take no more, whatever a segment says.
pub const MAX_CHUNK: usize = 1 << 20;

/// Most plain bytes of the info, and of all blocks of a tree.
pub const MAX_INFO: u64 = 16 << 20;
pub const MAX_TREE: u64 = 1 << 30;

/// Most chunks, entries and extents of a tree in all: what takes four bytes in a line, and next to none compressed, takes
/// fifty in memory. They are more than 30 GB of a database that is scattered page by page, or two million small files.
pub const MAX_PIECES: u64 = if cfg!(test) { 1 << 18 } else { 8 << 20 };

/// An object that holds chunks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub commit: CommitId,
    /// Length of the whole object; of the segment itself 0, since it is not known before its end.
    pub size: u64,
}

/// What a segment says about itself and what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub meta: Meta,
    /// For a delta the commit, of the same generation, whose tree it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CommitId>,
    /// Every object with chunks of this snapshot; the first is this one. Chunks name theirs by its place here.
    pub sources: Vec<Source>,
    /// Number of blocks in the tree, and SHA-256 of all of them as stored.
    pub blocks: u32,
    pub tree: Hash,
}

impl Info {
    /// Every other object without which this commit cannot be restored.
    pub fn needs(&self) -> impl Iterator<Item = CommitId> {
        let sources = self.sources.iter().skip(1).map(|source| source.commit);
        sources.chain(self.checkpoint)
    }
}

/// What is sealed with a section, so that no section can stand in for another.
fn purpose(section: &str, id: CommitId, block: u32) -> Vec<u8> {
    format!("{section} {id} {block}").into_bytes()
}

const CHUNK: &[u8] = b"chunk";
const TREE: &str = "tree";
const INFO: &str = "info";
