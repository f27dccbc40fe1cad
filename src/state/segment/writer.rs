//! Building a segment in a local spool, so that the store sees nothing before it is whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;

use super::{
    CHUNK, INFO, Info, MAGIC, MAX_CHUNK, MAX_INFO, MAX_PIECES, MAX_TREE, Source, TREE,
    line::{Encoder, Line, Part, extents_of, reuse},
    purpose,
    spool::{Mark, Spool, scratch},
    trailer::{Trailer, VERSION},
};
use crate::state::{
    check::{self, BadTree},
    crypt::Key,
    head::Head,
    model::{Chunk, CommitId, Delta, Entry, Extent, Hash, Location, Meta, TreePath},
};

/// Plain bytes of a block of the tree.
const BLOCK: usize = 256 << 10;

/// Why a segment could not be built. Nothing of it is in the store.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("the spool in {}: {source}; see that the disk has room and can be written", dir.display())]
    Spool { dir: PathBuf, source: io::Error },
    /// Of one content. Taken back, it leaves the rest as it was.
    #[error("there is no room to put it together: most of what {} has left is the agent's; make room there", dir.display())]
    NoRoom { dir: PathBuf },
    #[error("not a tree that can be restored: {0}")]
    Tree(#[from] BadTree),
    /// No reader would take it.
    #[error("{found} {what}, and a snapshot has {most} at most; remove something from the state, or move it elsewhere")]
    TooMuch { what: &'static str, found: u64, most: u64 },
}

/// A segment that is whole in its spool file.
#[derive(Debug)]
pub struct Segment {
    pub(in crate::state) meta: Meta,
    pub(in crate::state) file: File,
    pub(in crate::state) len: u64,
    /// Stored bytes of the tree.
    pub(in crate::state) tree_len: u64,
    pub(in crate::state) checkpoint: bool,
    pub(in crate::state) needs: Vec<CommitId>,
    pub(in crate::state) delta: Delta,
    pub(in crate::state) chunks: HashMap<Hash, Chunk>,
}

impl Segment {
    pub fn id(&self) -> CommitId {
        self.meta.id
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Length of the object.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Whether it holds the whole tree, not only what changed.
    pub fn is_checkpoint(&self) -> bool {
        self.checkpoint
    }
}

/// Takes chunks, then the tree.
pub struct SegmentWriter<'a> {
    head: &'a Head,
    id: CommitId,
    key: Option<&'a Key>,
    dir: PathBuf,
    out: Spool,
    pack: Compressor<'static>,
    chunks: HashMap<Hash, Chunk>,
}

impl<'a> SegmentWriter<'a> {
    /// Starts the segment of commit `id`, to follow `head`, spooled in the directory `spool`.
    pub fn new(
        head: &'a Head,
        spool: &Path,
        id: CommitId,
        key: Option<&'a Key>,
    ) -> Result<SegmentWriter<'a>, SegmentError> {
        let fail = |source| SegmentError::Spool {
            dir: spool.to_owned(),
            source,
        };
        let mut writer = SegmentWriter {
            head,
            id,
            key,
            dir: spool.to_owned(),
            out: Spool::open(spool).map_err(fail)?,
            pack: Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL).map_err(fail)?,
            chunks: HashMap::new(),
        };
        writer.out.write(&MAGIC).map_err(fail)?;
        Ok(writer)
    }

    /// Lets it take whatever its disk has, which nobody else uses.
    pub fn take_all_room(&mut self) {
        self.out.take_all();
    }

    /// Nothing has been put.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(in crate::state) fn mark(&self) -> Mark {
        self.out.mark()
    }

    /// Takes back what was put since.
    pub(in crate::state) fn roll_back(&mut self, to: Mark) -> Result<(), SegmentError> {
        self.chunks.retain(|_, chunk| chunk.at.offset < to.len);
        self.out.roll_back(to).map_err(|source| self.fail(source))
    }

    /// A file for `len` bytes on their way here, that is gone when it is closed. Where they would take most of the room
    /// that is left there is none: the disk is the agent's.
    pub(in crate::state) fn scratch(&self, len: u64) -> io::Result<File> {
        scratch(&self.dir, len)
    }

    /// Whether a chunk is in the store or in this segment, so that it need not be put again.
    pub fn contains(&self, hash: &Hash) -> bool {
        self.chunks.contains_key(hash) || self.head.has(hash)
    }

    /// Whether every chunk of a content is.
    pub(in crate::state) fn has(&self, extents: &[Extent]) -> bool {
        extents.iter().all(|extent| match extent {
            Extent::Data { chunk, .. } => self.contains(chunk),
            Extent::Hole { .. } => true,
        })
    }

    /// Adds a chunk of at most [`MAX_CHUNK`] bytes, unless it is known already.
    pub fn put(&mut self, bytes: &[u8]) -> Result<Hash, SegmentError> {
        let hash = Hash::of(bytes);
        if !self.contains(&hash) {
            self.store(hash, bytes)?;
        }
        Ok(hash)
    }

    /// Adds a chunk that is in the store already, to have it here from now on.
    pub(in crate::state) fn gather(&mut self, hash: Hash, bytes: &[u8]) -> Result<(), SegmentError> {
        if !self.chunks.contains_key(&hash) {
            self.store(hash, bytes)?;
        }
        Ok(())
    }

    fn store(&mut self, hash: Hash, bytes: &[u8]) -> Result<(), SegmentError> {
        assert!(bytes.len() <= MAX_CHUNK, "a chunk of {} bytes", bytes.len());
        let (at, len) = match self.append(CHUNK, bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Err(SegmentError::NoRoom { dir: self.dir.clone() });
            }
            done => done.map_err(|source| self.fail(source))?,
        };
        let chunk = Chunk {
            hash,
            raw_len: bytes.len() as u32,
            at: Location {
                commit: self.id,
                offset: at,
                len,
            },
        };
        self.chunks.insert(hash, chunk);
        Ok(())
    }

    fn fail(&self, source: io::Error) -> SegmentError {
        SegmentError::Spool {
            dir: self.dir.clone(),
            source,
        }
    }

    fn packed(&mut self, purpose: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let packed = self.pack.compress(plain)?;
        Ok(match self.key {
            Some(key) => key.seal(purpose, &packed),
            None => packed,
        })
    }

    /// Compresses, seals and appends; returns where and how long.
    fn append(&mut self, purpose: &[u8], plain: &[u8]) -> io::Result<(u64, u32)> {
        let packed = self.packed(purpose, plain)?;
        if !self.out.fits(packed.len() as u64)? {
            return Err(ErrorKind::StorageFull.into());
        }
        let at = self.out.len;
        self.out.write(&packed)?;
        Ok((at, packed.len() as u32))
    }

    /// Whether `delta` makes a tree of the head's that can be restored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, delta: &Delta) -> Result<(), BadTree> {
        let raw_len = |hash: &Hash| {
            self.chunks
                .get(hash)
                .or_else(|| self.head.chunk(hash))
                .map(|chunk| chunk.raw_len)
        };
        check::delta(self.head.tree(), delta, &raw_len)
    }

    /// Ends the segment with the tree that `delta` makes of the head's. Of `meta`, the id, the parent and the
    /// totals are filled in here.
    pub fn finish(mut self, mut meta: Meta, delta: Delta) -> Result<Segment, SegmentError> {
        self.check(&delta)?;
        meta.id = self.id;
        meta.parent = self.head.id();
        (meta.files, meta.bytes) = self.head.totals_after(&delta);
        let chain = self.head.chain();
        let chain = chain.filter(|chain| chain.checkpoint.generation == self.id.generation && !chain.is_due());
        let base = chain.map(|chain| chain.checkpoint);
        let content = match chain {
            Some(chain) => Content::delta(self.head, &chain.changed, &delta),
            None => Content::whole(self.head, &delta),
        };
        let tree_at = self.out.len;
        let (info, tree_raw) = self.write_tree(&content, meta.clone(), base)?;
        let tree_len = self.out.len - tree_at;
        at_most("bytes of names and places", tree_raw, MAX_TREE)?;
        self.write_end(&info, tree_at, tree_len)?;
        let SegmentWriter { out, dir, chunks, .. } = self;
        let len = out.len;
        let file = out.finish().map_err(|source| SegmentError::Spool { dir, source })?;
        drop(content);
        Ok(Segment {
            meta,
            file,
            len,
            tree_len,
            checkpoint: base.is_none(),
            needs: info.needs().collect(),
            delta,
            chunks,
        })
    }

    /// Returns with the info the plain bytes of the tree.
    fn write_tree(
        &mut self,
        content: &Content,
        meta: Meta,
        base: Option<CommitId>,
    ) -> Result<(Info, u64), SegmentError> {
        let find = |hash: &Hash| self.chunks.get(hash).or_else(|| self.head.chunk(hash)).copied();
        let mut hashes = content.chunks();
        if base.is_some() {
            // Where the checkpoint says these are they may be no longer.
            let moved = self.head.chain().into_iter().flat_map(|chain| &chain.moved);
            let gathered = self.chunks.keys().filter(|hash| self.head.chunk(hash).is_some());
            let listed: HashSet<Hash> = hashes.iter().copied().collect();
            let moved: BTreeSet<Hash> = moved
                .chain(gathered)
                .filter(|hash| !listed.contains(hash))
                .copied()
                .collect();
            hashes.extend(moved);
        }
        let chunks: Vec<Chunk> = hashes.iter().filter_map(find).collect();
        let sizes: HashMap<CommitId, u64> = self.head.sources().map(|source| (source.commit, source.size)).collect();
        let mut sources: BTreeSet<CommitId> = chunks.iter().map(|chunk| chunk.at.commit).collect();
        if base.is_some() {
            // Chunks that are not listed here again are where the checkpoint says.
            let stay = self
                .head
                .chunks()
                .filter(|chunk| !self.chunks.contains_key(&chunk.hash) && self.head.has(&chunk.hash));
            sources.extend(stay.map(|chunk| chunk.at.commit));
        }
        sources.remove(&self.id);
        let size = |commit: CommitId| sizes.get(&commit).copied().unwrap_or(0);
        let sources: Vec<Source> = std::iter::once(self.id)
            .chain(sources)
            .map(|commit| Source {
                commit,
                size: size(commit),
            })
            .collect();
        let places = sources
            .iter()
            .enumerate()
            .map(|(at, source)| (source.commit, at))
            .collect();
        at_most(
            "files and pieces of them",
            chunks.len() as u64 + content.pieces(),
            MAX_PIECES,
        )?;
        let (encoder, lines) = Encoder::chunks(&chunks, &places);
        let removed = content.remove.iter().map(|path| Encoder::remove(path));
        let entries = content
            .entries
            .iter()
            .flat_map(|(path, entry, parts)| encoder.entry(path, entry, parts));
        let blocks = self
            .write_lines(lines.chain(removed).chain(entries))
            .map_err(|source| self.fail(source))?;
        let info = Info {
            meta,
            checkpoint: base,
            sources,
            blocks: blocks.count,
            tree: Hash::from_bytes(blocks.sum.finalize().into()),
        };
        Ok((info, blocks.raw))
    }

    fn write_lines(&mut self, lines: impl Iterator<Item = Line>) -> io::Result<Blocks> {
        let mut blocks = Blocks {
            plain: Vec::new(),
            sum: Sha256::new(),
            count: 0,
            raw: 0,
        };
        for line in lines {
            blocks.line(self, &line)?;
        }
        blocks.flush(self)?;
        Ok(blocks)
    }

    fn write_end(&mut self, info: &Info, tree_at: u64, tree_len: u64) -> Result<(), SegmentError> {
        let plain = serde_json::to_vec(info).map_err(|error| self.fail(error.into()))?;
        at_most("bytes of description", plain.len() as u64, MAX_INFO)?;
        self.write_info(&plain, tree_at, tree_len)
            .map_err(|source| self.fail(source))
    }

    fn write_info(&mut self, plain: &[u8], tree_at: u64, tree_len: u64) -> io::Result<()> {
        let stored = self.packed(&purpose(INFO, self.id, 0), plain)?;
        self.out.write(&stored)?;
        let trailer = Trailer {
            version: VERSION,
            id: self.id,
            key: self.key.map(Key::id),
            tree_at,
            tree_len,
            info_len: stored.len() as u64,
            info_raw: plain.len() as u64,
            body: Hash::from_bytes(self.out.sum.clone().finalize().into()),
        };
        self.out.write(&trailer.encode(&stored))
    }
}

fn at_most(what: &'static str, found: u64, most: u64) -> Result<(), SegmentError> {
    match found > most {
        true => Err(SegmentError::TooMuch { what, found, most }),
        false => Ok(()),
    }
}

/// Lines on their way into blocks.
struct Blocks {
    plain: Vec<u8>,
    sum: Sha256,
    count: u32,
    /// Plain bytes of all.
    raw: u64,
}

impl Blocks {
    fn line(&mut self, writer: &mut SegmentWriter, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.plain, line)?;
        self.plain.push(b'\n');
        while self.plain.len() >= BLOCK {
            let rest = self.plain.split_off(BLOCK);
            self.flush(writer)?;
            self.plain = rest;
        }
        Ok(())
    }

    fn flush(&mut self, writer: &mut SegmentWriter) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let packed = writer.packed(&purpose(TREE, writer.id, self.count), &self.plain)?;
        for part in [
            &(packed.len() as u32).to_le_bytes()[..],
            &(self.plain.len() as u32).to_le_bytes(),
            &packed,
        ] {
            self.sum.update(part);
            writer.out.write(part)?;
        }
        self.count += 1;
        self.raw += self.plain.len() as u64;
        self.plain.clear();
        Ok(())
    }
}

/// What a segment says of the tree: entries in path order, with their extents in terms of the checkpoint's.
#[derive(Default)]
struct Content<'a> {
    remove: Vec<&'a TreePath>,
    entries: Vec<(&'a TreePath, &'a Entry, Vec<Part>)>,
}

impl<'a> Content<'a> {
    fn whole(head: &'a Head, delta: &'a Delta) -> Content<'a> {
        let gone: BTreeSet<&TreePath> = delta.remove.iter().collect();
        let stays = head.tree().iter().filter(|(path, _)| !gone.contains(path));
        let mut entries: BTreeMap<&TreePath, &Entry> = stays.collect();
        entries.extend(delta.upsert.iter().map(|(path, entry)| (path, entry)));
        let mut content = Content::default();
        entries
            .into_iter()
            .for_each(|(path, entry)| content.add(path, entry, None));
        content
    }

    /// What differs from the checkpoint; `changed` has the checkpoint's entries of what has changed up to now.
    fn delta(head: &'a Head, changed: &'a BTreeMap<TreePath, Option<Entry>>, delta: &'a Delta) -> Content<'a> {
        let earlier = changed.keys().map(|path| (path, head.tree().get(path)));
        let mut now: BTreeMap<&TreePath, Option<&Entry>> = earlier.collect();
        now.extend(delta.remove.iter().map(|path| (path, None)));
        now.extend(delta.upsert.iter().map(|(path, entry)| (path, Some(entry))));
        let mut content = Content::default();
        for (path, entry) in now {
            let base = match changed.get(path) {
                Some(base) => base.as_ref(),
                None => head.tree().get(path),
            };
            match entry {
                Some(entry) if base != Some(entry) => content.add(path, entry, base),
                None if base.is_some() => content.remove.push(path),
                _ => {}
            }
        }
        content
    }

    fn add(&mut self, path: &'a TreePath, entry: &'a Entry, base: Option<&Entry>) {
        let old = base.map_or(&[][..], |base| extents_of(&base.kind));
        self.entries.push((path, entry, reuse(extents_of(&entry.kind), old)));
    }

    /// Entries, and extents of them.
    fn pieces(&self) -> u64 {
        let parts = self.entries.iter().flat_map(|(_, _, parts)| parts);
        let extents = parts.map(|part| match part {
            Part::Same { count, .. } => *count as u64,
            Part::New(_) => 1,
        });
        self.entries.len() as u64 + extents.sum::<u64>()
    }

    /// The chunks that need a line, in the order in which they are first used.
    fn chunks(&self) -> Vec<Hash> {
        let mut seen = HashSet::new();
        let parts = self.entries.iter().flat_map(|(_, _, parts)| parts);
        let hashes = parts.filter_map(|part| match part {
            Part::New(Extent::Data { chunk, .. }) => Some(*chunk),
            _ => None,
        });
        hashes.filter(|hash| seen.insert(*hash)).collect()
    }
}
