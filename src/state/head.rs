//! The tree as of the last commit, and what is needed to write the next one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    model::{Chunk, CommitId, Delta, Entry, Extent, Hash, Kind, Tree, TreePath},
    segment::{Segment, Source, line::extents_of},
};

/// Deltas that lean on one checkpoint: bounds what is lost with a damaged one.
const MAX_DELTAS: u32 = 256;
/// A checkpoint is due when the deltas since have cost as much as it did, and at least this.
const MIN_SPENT: u64 = 64 << 10;

/// What is in the store. The default is nothing yet.
#[derive(Debug, Default)]
pub struct Head {
    id: Option<CommitId>,
    tree: Tree,
    /// The chunks of the tree, and how many extents use each.
    chunks: HashMap<Hash, (Chunk, u32)>,
    /// The objects those chunks are in.
    objects: HashMap<CommitId, Holding>,
    chain: Option<Chain>,
    files: u64,
    bytes: u64,
    /// What the store has lost of this. The next commit has it again, or does without.
    lost: Lost,
}

/// Of each object that is damaged or gone, the chunks of the tree that it does not have any more.
pub type Lost = BTreeMap<CommitId, BTreeSet<Hash>>;

/// What of an object the tree still uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Length of the object.
    pub size: u64,
    /// Stored bytes of the chunks that are in use.
    pub live: u64,
    chunks: u32,
}

#[cfg(test)]
impl Holding {
    pub fn new(size: u64, live: u64) -> Holding {
        Holding { size, live, chunks: 1 }
    }
}

/// The last checkpoint and the deltas on top of it.
#[derive(Debug)]
pub(super) struct Chain {
    pub checkpoint: CommitId,
    /// The checkpoint's entries (or their absence) of every path that changed since.
    pub changed: BTreeMap<TreePath, Option<Entry>>,
    /// Chunks that may be elsewhere than the checkpoint says, or not be at all: they were gathered into another
    /// object, or the tree was without them for a while. Where such a chunk is in the tree, a delta has to say where.
    pub moved: BTreeSet<Hash>,
    tree_len: u64,
    deltas: u32,
    spent: u64,
}

impl Chain {
    /// Whether the next commit has to be a checkpoint. Each delta repeats what the ones before it changed, so
    /// that a commit needs no other than its checkpoint; this keeps the sum of that within twice a checkpoint.
    pub fn is_due(&self) -> bool {
        self.deltas >= MAX_DELTAS || self.spent > self.tree_len.max(MIN_SPENT)
    }
}

impl Head {
    /// The head at a commit that was read from the store. The next commit will be a checkpoint.
    pub(super) fn loaded(id: CommitId, tree: Tree, chunks: Vec<Chunk>, sources: &[Source]) -> Head {
        let mut head = Head {
            id: Some(id),
            ..Head::default()
        };
        let sizes = sources.iter().map(|source| (source.commit, source.size)).collect();
        let known = chunks.into_iter().map(|chunk| (chunk.hash, chunk)).collect();
        for entry in tree.values() {
            head.count(entry, &known, &sizes);
        }
        head.tree = tree;
        head
    }

    pub fn id(&self) -> Option<CommitId> {
        self.id
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Where a chunk of the tree is.
    pub fn chunk(&self, hash: &Hash) -> Option<&Chunk> {
        self.chunks.get(hash).map(|(chunk, _)| chunk)
    }

    /// Whether a chunk of the tree is in the store, as far as is known.
    pub fn has(&self, hash: &Hash) -> bool {
        let is_lost = |chunk: &Chunk| self.lost.get(&chunk.at.commit).is_some_and(|lost| lost.contains(hash));
        self.chunk(hash).is_some_and(|chunk| !is_lost(chunk))
    }

    /// The chunks of the tree that are in an object.
    pub fn held_by(&self, object: CommitId) -> BTreeSet<Hash> {
        let held = self.chunks().filter(|chunk| chunk.at.commit == object);
        held.map(|chunk| chunk.hash).collect()
    }

    /// What the store was found to have lost: the head cannot be restored, nor what follows it, until a commit has been
    /// made that does not need this.
    pub fn lose(&mut self, lost: Lost) {
        // Nothing is to lean on an object that is not as it was.
        self.chain.take_if(|chain| lost.contains_key(&chain.checkpoint));
        for (object, chunks) in lost {
            self.lost.entry(object).or_default().extend(chunks);
        }
    }

    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    /// Every chunk of the tree, once.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.values().map(|(chunk, _)| chunk)
    }

    /// The objects that hold the tree's chunks.
    pub fn objects(&self) -> &HashMap<CommitId, Holding> {
        &self.objects
    }

    /// The objects without which the next commit could not be restored.
    pub fn needs(&self) -> BTreeSet<CommitId> {
        let checkpoint = self.chain.as_ref().map(|chain| chain.checkpoint);
        self.objects.keys().copied().chain(self.id).chain(checkpoint).collect()
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        let source = |(commit, holding): (&CommitId, &Holding)| Source {
            commit: *commit,
            size: holding.size,
        };
        self.objects.iter().map(source)
    }

    pub(super) fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Number of names that are not directories, and the bytes they stand for.
    pub fn totals(&self) -> (u64, u64) {
        (self.files, self.bytes)
    }

    /// The totals that `delta` would make.
    pub fn totals_after(&self, delta: &Delta) -> (u64, u64) {
        let (mut files, mut bytes) = self.totals();
        let removed = delta.remove.iter().map(|path| (path, None));
        let upserted = delta.upsert.iter().map(|(path, entry)| (path, Some(entry)));
        let changed: BTreeMap<&TreePath, Option<&Entry>> = removed.chain(upserted).collect();
        for (path, entry) in changed {
            if let Some(old) = self.tree.get(path) {
                files -= u64::from(is_file(old));
                bytes = bytes.wrapping_sub(len(old));
            }
            if let Some(new) = entry {
                files += u64::from(is_file(new));
                bytes = bytes.wrapping_add(len(new));
            }
        }
        (files, bytes)
    }

    /// Takes over a segment that has been committed.
    pub fn advance(&mut self, segment: Segment) {
        let Segment {
            meta,
            len,
            tree_len,
            checkpoint,
            delta,
            chunks,
            ..
        } = segment;
        // A chunk that was put again to be gathered is from now on where it was put.
        for chunk in chunks.values() {
            if let Some((old, _)) = self.chunks.get_mut(&chunk.hash) {
                let from = std::mem::replace(old, *chunk);
                release(&mut self.objects, &from);
                hold(&mut self.objects, chunk, len);
                if let Some(chain) = &mut self.chain {
                    chain.moved.insert(chunk.hash);
                }
            }
        }
        let sizes = HashMap::from([(meta.id, len)]);
        for (_, entry) in &delta.upsert {
            self.count(entry, &chunks, &sizes);
        }
        if checkpoint {
            self.chain = Some(Chain {
                checkpoint: meta.id,
                changed: BTreeMap::new(),
                moved: BTreeSet::new(),
                tree_len,
                deltas: 0,
                spent: 0,
            });
        } else if let Some(chain) = &mut self.chain {
            chain.deltas += 1;
            chain.spent += tree_len;
        }
        let removed = delta.remove.into_iter().map(|path| (path, None));
        let upserted = delta.upsert.into_iter().map(|(path, entry)| (path, Some(entry)));
        for (path, entry) in removed.chain(upserted) {
            let old = match entry {
                Some(entry) => self.tree.insert(path.clone(), entry),
                None => self.tree.remove(&path),
            };
            if let Some(old) = &old {
                self.discount(old);
            }
            if let Some(chain) = self.chain.as_mut().filter(|_| !checkpoint) {
                chain.changed.entry(path).or_insert(old);
            }
        }
        self.id = Some(meta.id);
        self.lost.clear();
    }

    fn count(&mut self, entry: &Entry, new: &HashMap<Hash, Chunk>, sizes: &HashMap<CommitId, u64>) {
        self.files += u64::from(is_file(entry));
        // Lengths from a hostile store may add up to anything.
        self.bytes = self.bytes.wrapping_add(len(entry));
        for hash in hashes(extents_of(&entry.kind)) {
            if let Some((_, uses)) = self.chunks.get_mut(&hash) {
                *uses += 1;
            } else if let Some(chunk) = new.get(&hash) {
                self.chunks.insert(hash, (*chunk, 1));
                hold(
                    &mut self.objects,
                    chunk,
                    sizes.get(&chunk.at.commit).copied().unwrap_or(0),
                );
            }
        }
    }

    fn discount(&mut self, entry: &Entry) {
        self.files -= u64::from(is_file(entry));
        self.bytes = self.bytes.wrapping_sub(len(entry));
        for hash in hashes(extents_of(&entry.kind)) {
            let Some((chunk, uses)) = self.chunks.get_mut(&hash) else {
                continue;
            };
            *uses -= 1;
            if *uses == 0 {
                let chunk = *chunk;
                self.chunks.remove(&hash);
                release(&mut self.objects, &chunk);
                // Should it come back it is stored again, and the checkpoint's object may be gone by then.
                if let Some(chain) = self.chain.as_mut().filter(|chain| chunk.at.commit <= chain.checkpoint) {
                    chain.moved.insert(hash);
                }
            }
        }
    }
}

fn hold(objects: &mut HashMap<CommitId, Holding>, chunk: &Chunk, size: u64) {
    let holding = objects.entry(chunk.at.commit).or_default();
    holding.size = size.max(holding.size);
    holding.live += u64::from(chunk.at.len);
    holding.chunks += 1;
}

fn release(objects: &mut HashMap<CommitId, Holding>, chunk: &Chunk) {
    if let Some(holding) = objects.get_mut(&chunk.at.commit) {
        holding.live -= u64::from(chunk.at.len);
        holding.chunks -= 1;
        if holding.chunks == 0 {
            objects.remove(&chunk.at.commit);
        }
    }
}

/// The chunk of each extent; one that several extents use comes several times.
fn hashes(extents: &[Extent]) -> impl Iterator<Item = Hash> {
    extents.iter().filter_map(|extent| match extent {
        Extent::Data { chunk, .. } => Some(*chunk),
        Extent::Hole { .. } => None,
    })
}

fn is_file(entry: &Entry) -> bool {
    entry.kind != Kind::Dir
}

fn len(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File { len, .. } | Kind::Sqlite { len, .. } => len,
        _ => 0,
    }
}
