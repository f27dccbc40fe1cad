//! Reading everything, to know today whether it could be restored tomorrow.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use serde::Serialize;

use super::{
    fetch::{self, Fetcher, Read},
    head::Head,
    history::History,
    model::{Chunk, CommitId},
    parallel,
    restore::Progress,
    segment::reader::ReadError,
};

/// What is wrong with a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flaw {
    pub id: CommitId,
    pub why: String,
}

/// Checks that each of `ids` can be restored: its tree, every byte of its object, and every chunk it needs, wherever
/// that is, against its hash. Chunks that several need are read once. Fails only where the store or the key does.
pub fn verify(history: &History, ids: &[CommitId], progress: &Progress) -> Result<Vec<Flaw>, ReadError> {
    let mut flaws = BTreeMap::new();
    let mut chunks = BTreeMap::new();
    for id in ids {
        let read = history
            .opened(*id)
            .and_then(|opened| opened.verify_body())
            .and_then(|()| history.load(*id));
        match read {
            Ok(head) => chunks.extend(head.chunks().map(|chunk| (fetch::order(chunk), *chunk))),
            Err(error) => drop(flaws.insert(*id, why(error)?)),
        }
    }
    let chunks: Vec<Chunk> = chunks.into_values().collect();
    let raw = |chunks: &[Chunk]| chunks.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
    progress.total.store(raw(&chunks), Ordering::Relaxed);
    let bad = Mutex::new(BTreeMap::new());
    parallel::for_each(&fetch::plan(&chunks), || {
        let mut fetcher = Fetcher::new(history);
        let (chunks, bad) = (&chunks, &bad);
        move |read: &Read| {
            let chunks = &chunks[read.chunks.clone()];
            if damaged(&mut fetcher, chunks)?.is_some() {
                // Somewhere among them: find out which.
                for chunk in chunks {
                    if let Some(why) = damaged(&mut fetcher, &[*chunk])? {
                        let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                        bad.insert(fetch::order(chunk), why);
                    }
                }
            }
            progress.done.fetch_add(raw(chunks), Ordering::Relaxed);
            Ok::<(), ReadError>(())
        }
    })?;
    let bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Who needs what is not kept in mind for all there is, and so looked up again where something is damaged.
    let unsure = ids.iter().filter(|_| !bad.is_empty());
    let unsure: Vec<CommitId> = unsure.filter(|id| !flaws.contains_key(*id)).copied().collect();
    for id in unsure {
        let flaw = match history.load(id) {
            Ok(head) => head.chunks().find_map(|chunk| bad.get(&fetch::order(chunk)).cloned()),
            Err(error) => Some(why(error)?),
        };
        flaws.extend(flaw.map(|why| (id, why)));
    }
    Ok(flaws.into_iter().map(|(id, why)| Flaw { id, why }).collect())
}

/// Fails unless every object that a tree needs is there, without reading more of them than their ends.
pub fn is_whole(history: &History, head: &Head) -> Result<(), ReadError> {
    let needed: Vec<CommitId> = head.needs().into_iter().collect();
    parallel::for_each(&needed, || |id: &CommitId| history.info(*id).map(drop))
}

/// What is wrong with any of some chunks, if anything is.
pub(super) fn damaged(fetcher: &mut Fetcher, chunks: &[Chunk]) -> Result<Option<String>, ReadError> {
    for read in fetch::plan(chunks) {
        let result = fetcher.fetch(&read, &chunks[read.chunks.clone()], |_, _| Ok::<(), ReadError>(()));
        if let Err(error) = result {
            return why(error).map(Some);
        }
    }
    Ok(None)
}

/// What is said of a damaged object; any other error says nothing about it.
fn why(error: ReadError) -> Result<String, ReadError> {
    match error {
        ReadError::Damaged { .. } => Ok(error.to_string()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::state::tests::kit::Kit;

    #[test]
    fn a_changed_byte_is_put_down_to_every_commit_that_needs_it() {
        let mut kit = Kit::new();
        kit.write("kept", b"in all three");
        kit.write("changed", b"in the first only");
        let first = kit.commit();
        kit.write("changed", b"something else");
        let second = kit.commit();
        let ids = [first, second];
        let verify = || verify(&kit.history, &ids, &Progress::default()).unwrap();
        assert_eq!(verify(), []);
        let object = std::fs::OpenOptions::new()
            .write(true)
            .open(kit.object_path(first))
            .unwrap();
        let whole = std::fs::read(kit.object_path(first)).unwrap();
        let flawed = |content: &[u8]| {
            // Short content is stored as it is within its frame.
            let at = whole
                .windows(content.len())
                .position(|window| window == content)
                .unwrap();
            object.write_all_at(b"?", at as u64).unwrap();
            let flawed: Vec<CommitId> = verify().into_iter().map(|flaw| flaw.id).collect();
            object.write_all_at(&content[..1], at as u64).unwrap();
            flawed
        };
        assert_eq!(flawed(b"in all three"), ids);
        assert_eq!(flawed(b"in the first only"), [first]);
    }
}
