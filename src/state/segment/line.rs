//! The tree of a segment as lines of JSON: first the chunks it needs and where they are, then its entries.
//!
//! A content's extents are short lists of numbers: `[length]` is a hole, `[first, count]` are extents that the
//! checkpoint's entry of the same path has, `[chunk, from, length]` are bytes of a chunk, counted in the order of
//! the chunk lines. So one changed page of a large database takes a line or two, not the database's whole table.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use super::{Damage, MAX_CHUNK, MAX_PIECES, reader::stored_max};
use crate::state::model::{Chunk, CommitId, Entry, Extent, Hash, Kind, Location, Tree, TreePath};

/// Most extents on one line; what follows goes on lines of its own.
const EXTENTS: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Chunk(ChunkLine),
    Entry(EntryLine),
    /// More extents of the entry before.
    More(Vec<Vec<u64>>),
    /// A path of the checkpoint that is no more.
    Remove(Text),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ChunkLine {
    sha256: Hash,
    raw: u32,
    /// Place of its object in the info's sources.
    source: usize,
    at: u64,
    len: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct EntryLine {
    path: Text,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_ns: i64,
    #[serde(flatten)]
    kind: KindLine,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum KindLine {
    Dir,
    File {
        len: u64,
        extents: Vec<Vec<u64>>,
    },
    Sqlite {
        len: u64,
        page_size: u32,
        extents: Vec<Vec<u64>>,
    },
    Symlink {
        target: Text,
    },
    Hardlink {
        to: Text,
    },
}

/// Bytes that are nearly always UTF-8.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    Utf8(String),
    Raw { base64: String },
}

impl Text {
    fn of(bytes: &[u8]) -> Text {
        match std::str::from_utf8(bytes) {
            Ok(text) => Text::Utf8(text.to_owned()),
            Err(_) => Text::Raw {
                base64: BASE64.encode(bytes),
            },
        }
    }

    fn bytes(self) -> Result<Vec<u8>, Damage> {
        match self {
            Text::Utf8(text) => Ok(text.into_bytes()),
            Text::Raw { base64 } => BASE64.decode(base64).map_err(|_| malformed("a name is not base64")),
        }
    }
}

fn malformed(what: &str) -> Damage {
    Damage::Malformed(what.to_owned())
}

/// Makes lines, numbering chunks and sources in the order they are first named.
pub struct Encoder {
    chunks: HashMap<Hash, u64>,
}

impl Encoder {
    /// The chunk lines of a tree that needs `chunks`, in that order, from `sources`.
    pub fn chunks<'a>(
        chunks: &'a [Chunk],
        sources: &'a HashMap<CommitId, usize>,
    ) -> (Encoder, impl Iterator<Item = Line> + 'a) {
        let numbers = chunks.iter().zip(0..).map(|(chunk, n)| (chunk.hash, n)).collect();
        let lines = chunks.iter().map(|chunk| {
            Line::Chunk(ChunkLine {
                sha256: chunk.hash,
                raw: chunk.raw_len,
                source: sources[&chunk.at.commit],
                at: chunk.at.offset,
                len: chunk.at.len,
            })
        });
        (Encoder { chunks: numbers }, lines)
    }

    /// The lines of an entry, whose extents are `parts`.
    pub fn entry(&self, path: &[u8], entry: &Entry, parts: &[Part]) -> Vec<Line> {
        let mut more = Vec::new();
        let mut content = || {
            let mut lists: Vec<_> = parts.iter().map(|part| self.part(part)).collect();
            let rest = lists.split_off(EXTENTS.min(lists.len()));
            more.extend(rest.chunks(EXTENTS).map(|lists| Line::More(lists.to_vec())));
            lists
        };
        let kind = match &entry.kind {
            Kind::Dir => KindLine::Dir,
            Kind::File { len, .. } => KindLine::File {
                len: *len,
                extents: content(),
            },
            Kind::Sqlite { len, page_size, .. } => KindLine::Sqlite {
                len: *len,
                page_size: *page_size,
                extents: content(),
            },
            Kind::Symlink { target } => KindLine::Symlink {
                target: Text::of(target),
            },
            Kind::HardLink { to } => KindLine::Hardlink { to: Text::of(to) },
        };
        let first = Line::Entry(EntryLine {
            path: Text::of(path),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime_ns: entry.mtime_ns,
            kind,
        });
        std::iter::once(first).chain(more).collect()
    }

    pub fn remove(path: &[u8]) -> Line {
        Line::Remove(Text::of(path))
    }

    fn part(&self, part: &Part) -> Vec<u64> {
        match *part {
            Part::Same { first, count } => vec![first as u64, count as u64],
            Part::New(Extent::Hole { len }) => vec![len],
            Part::New(Extent::Data { chunk, from, len }) => vec![self.chunks[&chunk], from.into(), len.into()],
        }
    }
}

/// The extents of a file or database.
pub fn extents_of(kind: &Kind) -> &[Extent] {
    match kind {
        Kind::File { extents, .. } | Kind::Sqlite { extents, .. } => extents,
        _ => &[],
    }
}

/// Part of a list of extents, in terms of an older list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Same { first: usize, count: usize },
    New(Extent),
}

/// Says `new` in terms of `old`: greedy, going on where the last match ended, else at the first equal extent.
pub fn reuse(new: &[Extent], old: &[Extent]) -> Vec<Part> {
    let mut places = HashMap::new();
    for (at, extent) in old.iter().enumerate() {
        places.entry(extent).or_insert(at);
    }
    let mut parts: Vec<Part> = Vec::new();
    for extent in new {
        if let Some(Part::Same { first, count }) = parts.last_mut()
            && old.get(*first + *count) == Some(extent)
        {
            *count += 1;
            continue;
        }
        parts.push(match places.get(extent) {
            Some(&first) => Part::Same { first, count: 1 },
            None => Part::New(*extent),
        });
    }
    parts
}

/// Puts a tree together from lines.
pub struct Decoder<'a> {
    sources: &'a [CommitId],
    chunks: Vec<Chunk>,
    tree: Tree,
    /// The entry whose lines are being read, and the extents it may reuse.
    open: Option<(TreePath, Entry, Vec<Extent>)>,
    pieces: u64,
}

impl<'a> Decoder<'a> {
    /// Starts from the checkpoint's tree, an empty one for a checkpoint.
    pub fn new(sources: &'a [CommitId], base: Tree) -> Decoder<'a> {
        Decoder {
            sources,
            chunks: Vec::new(),
            tree: base,
            open: None,
            pieces: 0,
        }
    }

    pub fn line(&mut self, line: &[u8]) -> Result<(), Damage> {
        let line =
            serde_json::from_slice(line).map_err(|error| Damage::Malformed(format!("a line of its tree: {error}")))?;
        match line {
            Line::More(lists) => {
                let (path, mut entry, old) = self.open.take().ok_or_else(|| malformed("extents of nothing"))?;
                let (Kind::File { extents, .. } | Kind::Sqlite { extents, .. }) = &mut entry.kind else {
                    return Err(malformed("extents of what has no content"));
                };
                extents.extend(self.extents(lists, &old)?);
                self.open = Some((path, entry, old));
            }
            Line::Chunk(line) => {
                self.count(1)?;
                let commit = self.sources.get(line.source);
                if line.raw as usize > MAX_CHUNK || u64::from(line.len) > stored_max(line.raw.into()) {
                    return Err(malformed("a chunk too long"));
                }
                self.chunks.push(Chunk {
                    hash: line.sha256,
                    raw_len: line.raw,
                    at: Location {
                        commit: *commit.ok_or_else(|| malformed("a chunk of no source"))?,
                        offset: line.at,
                        len: line.len,
                    },
                });
            }
            Line::Remove(path) => {
                self.close();
                if self.tree.remove(&path.bytes()?).is_none() {
                    return Err(malformed("it removes what is not there"));
                }
            }
            Line::Entry(line) => {
                self.close();
                self.count(1)?;
                let path = line.path.bytes()?;
                let base = self.tree.get(&path);
                let old = base.map_or(&[][..], |base| extents_of(&base.kind)).to_vec();
                let kind = match line.kind {
                    KindLine::Dir => Kind::Dir,
                    KindLine::File { len, extents } => Kind::File {
                        len,
                        extents: self.extents(extents, &old)?,
                    },
                    KindLine::Sqlite {
                        len,
                        page_size,
                        extents,
                    } => Kind::Sqlite {
                        len,
                        page_size,
                        extents: self.extents(extents, &old)?,
                    },
                    KindLine::Symlink { target } => Kind::Symlink {
                        target: target.bytes()?,
                    },
                    KindLine::Hardlink { to } => Kind::HardLink { to: to.bytes()? },
                };
                let entry = Entry {
                    mode: line.mode,
                    uid: line.uid,
                    gid: line.gid,
                    mtime_ns: line.mtime_ns,
                    kind,
                };
                self.open = Some((path, entry, old));
            }
        }
        Ok(())
    }

    /// The tree, and the chunks that were listed.
    pub fn finish(mut self) -> (Tree, Vec<Chunk>) {
        self.close();
        (self.tree, self.chunks)
    }

    fn close(&mut self) {
        if let Some((path, entry, _)) = self.open.take() {
            self.tree.insert(path, entry);
        }
    }

    /// Counts what is about to take memory.
    fn count(&mut self, pieces: u64) -> Result<(), Damage> {
        self.pieces = self.pieces.saturating_add(pieces);
        if self.pieces > MAX_PIECES {
            return Err(malformed("far too many pieces"));
        }
        Ok(())
    }

    fn extents(&mut self, lists: Vec<Vec<u64>>, old: &[Extent]) -> Result<Vec<Extent>, Damage> {
        let small = |n: u64| u32::try_from(n).map_err(|_| malformed("an extent too long"));
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut extents = Vec::with_capacity(lists.len());
        for list in lists {
            self.count(match *list.as_slice() {
                [_, count] => count,
                _ => 1,
            })?;
            match *list.as_slice() {
                [len] => extents.push(Extent::Hole { len }),
                [first, count] => {
                    let first = index(first);
                    let same = old.get(first..first.saturating_add(index(count)));
                    extents.extend(same.ok_or_else(|| malformed("extents that the checkpoint does not have"))?);
                }
                [chunk, from, len] => {
                    let chunk = self
                        .chunks
                        .get(index(chunk))
                        .ok_or_else(|| malformed("a chunk of no line"))?;
                    extents.push(Extent::Data {
                        chunk: chunk.hash,
                        from: small(from)?,
                        len: small(len)?,
                    });
                }
                _ => return Err(malformed("an extent of no kind")),
            }
        }
        Ok(extents)
    }
}
