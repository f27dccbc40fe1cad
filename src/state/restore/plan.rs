//! Which bytes of which objects to read, and where each chunk goes.

use std::collections::HashMap;

use crate::state::{
    chunk,
    fetch::{self, Read},
    head::Head,
    model::{Chunk, Entry, Extent, Hash, Kind, Tree},
    segment::line::extents_of,
};

/// A place in a file where bytes of a chunk go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Place of the file in the tree.
    pub file: u32,
    pub at: u64,
    pub from: u32,
    pub len: u32,
}

/// All of a restore's reads, by object and offset, so that each object is read from front to back.
#[derive(Debug)]
pub struct Plan {
    pub reads: Vec<Read>,
    pub chunks: Vec<(Chunk, Vec<Use>)>,
}

impl Plan {
    /// The plan for the files that `wanted` names by their place in the tree.
    pub fn new(head: &Head, wanted: impl Fn(usize) -> bool) -> Plan {
        let mut uses: HashMap<Hash, Vec<Use>> = HashMap::new();
        for (file, entry) in head.tree().values().enumerate().filter(|(file, _)| wanted(*file)) {
            let mut at = 0;
            for extent in extents_of(&entry.kind) {
                if let Extent::Data { chunk: hash, from, len } = *extent {
                    let file = file as u32;
                    uses.entry(hash).or_default().push(Use { file, at, from, len });
                }
                at += chunk::len(extent);
            }
        }
        let located = uses
            .into_iter()
            .filter_map(|(hash, uses)| Some((*head.chunk(&hash)?, uses)));
        let mut chunks: Vec<(Chunk, Vec<Use>)> = located.collect();
        chunks.sort_by_key(|(chunk, _)| fetch::order(chunk));
        let reads = fetch::plan(chunks.iter().map(|(chunk, _)| chunk));
        Plan { reads, chunks }
    }

    /// The reads of each object, which only in their order are quick.
    pub fn by_object(&self) -> Vec<&[Read]> {
        self.reads.chunk_by(|a, b| a.commit == b.commit).collect()
    }
}

/// A file that lies beside a database under the name of one of its sidecars, or another name of such a file: next to
/// a restored image it would corrupt it.
pub fn is_sidecar(tree: &Tree, path: &[u8], entry: &Entry) -> bool {
    let suffixes: [&[u8]; 3] = [b"-wal", b"-shm", b"-journal"];
    let beside = |path: &[u8]| {
        let database = suffixes.iter().find_map(|suffix| tree.get(path.strip_suffix(*suffix)?));
        database.is_some_and(|entry| matches!(entry.kind, Kind::Sqlite { .. }))
    };
    entry.kind != Kind::Dir && (beside(path) || matches!(&entry.kind, Kind::HardLink { to } if beside(to)))
}
