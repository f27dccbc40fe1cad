//! Reading many chunks in few requests.

use std::ops::Range;

use super::{
    crypt::Key,
    head::Head,
    history::History,
    model::{Chunk, CommitId, Extent, Kind},
    segment::{
        Damage,
        reader::{self, ReadError},
    },
};
use crate::store::Object;

/// Chunks this close in an object are read together: on a mount, one more request costs more than these bytes.
const GAP: u64 = 512 << 10;
/// Most bytes read at once; with the number of readers, what is held in memory.
const MAX_READ: u64 = 512 << 10;

/// One read of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub commit: CommitId,
    pub range: Range<u64>,
    /// Its chunks, as places in the list that was planned.
    pub chunks: Range<usize>,
}

/// Puts chunks in the order in which they are best read: each object from front to back.
pub fn order(chunk: &Chunk) -> (CommitId, u64) {
    (chunk.at.commit, chunk.at.offset)
}

/// The reads that get `chunks`, which are in [`order`].
pub fn plan<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> Vec<Read> {
    let mut reads: Vec<Read> = Vec::new();
    for (n, Chunk { at, .. }) in chunks.into_iter().enumerate() {
        let end = at.offset.saturating_add(u64::from(at.len));
        match reads.last_mut() {
            Some(read)
                if read.commit == at.commit
                    && at.offset <= read.range.end.saturating_add(GAP)
                    && end.saturating_sub(read.range.start) <= MAX_READ =>
            {
                read.range.end = read.range.end.max(end);
                read.chunks.end = n + 1;
            }
            _ => reads.push(Read {
                commit: at.commit,
                range: at.offset..end,
                chunks: n..n + 1,
            }),
        }
    }
    reads
}

/// Reads for one thread, keeping the last object open.
pub struct Fetcher<'a> {
    history: &'a History,
    open: Option<(CommitId, Object)>,
}

impl<'a> Fetcher<'a> {
    pub fn new(history: &'a History) -> Fetcher<'a> {
        Fetcher { history, open: None }
    }

    /// Reads, and leaves it packed.
    pub fn read(&mut self, read: &Read) -> Result<Packed, ReadError> {
        let object = match self.open.take() {
            Some((commit, object)) if commit == read.commit => object,
            _ => self.history.get(read.commit)?,
        };
        let name = object.name();
        let bytes = object
            .read(read.range.clone())
            .map_err(|error| ReadError::of_known(name, error))?;
        let packed = Packed {
            object: name.to_owned(),
            read: read.clone(),
            bytes,
        };
        self.open = Some((read.commit, object));
        Ok(packed)
    }

    /// Reads and [unpacks](Packed::unpack).
    pub fn fetch<'c, E: From<ReadError>>(
        &mut self,
        read: &Read,
        chunks: impl IntoIterator<Item = &'c Chunk>,
        each: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read(read)?.unpack(self.history.key(), chunks, each)
    }
}

/// Chunks as they are stored.
pub struct Packed {
    object: String,
    pub read: Read,
    bytes: Vec<u8>,
}

impl Packed {
    /// Calls `each` with the plain bytes of every one of `chunks`, which are those of the read, once they have been found
    /// to match their hashes.
    pub fn unpack<'c, E: From<ReadError>>(
        &self,
        key: Option<&Key>,
        chunks: impl IntoIterator<Item = &'c Chunk>,
        mut each: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (chunk, n) in chunks.into_iter().zip(self.read.chunks.clone()) {
            let start = usize::try_from(chunk.at.offset - self.read.range.start).unwrap_or(usize::MAX);
            let stored = self.bytes.get(start..start.saturating_add(chunk.at.len as usize));
            let plain = match stored {
                Some(stored) => reader::chunk(stored, chunk, key),
                None => Err(Damage::Chunk(chunk.hash)),
            };
            each(n, &plain.map_err(|damage| ReadError::damaged(&self.object, damage))?)?;
        }
        Ok(())
    }
}

/// The bytes of a small file or database of a tree, `None` if there is none or it is longer than `most`.
pub fn file(history: &History, head: &Head, path: &[u8], most: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(Kind::File { len, extents } | Kind::Sqlite { len, extents, .. }) = head.tree().get(path).map(|e| &e.kind)
    else {
        return Ok(None);
    };
    if *len > most {
        return Ok(None);
    }
    let mut fetcher = Fetcher::new(history);
    let mut bytes = Vec::new();
    for extent in extents {
        match *extent {
            Extent::Hole { len } => bytes.extend(std::iter::repeat_n(0, usize::try_from(len).unwrap_or_default())),
            Extent::Data { chunk, from, len } => {
                let chunk = head.chunk(&chunk);
                for read in plan(chunk) {
                    fetcher.fetch(&read, chunk, |_, plain| {
                        bytes.extend(&plain[from as usize..][..len as usize]);
                        Ok::<_, ReadError>(())
                    })?;
                }
            }
        }
    }
    Ok(Some(bytes))
}
