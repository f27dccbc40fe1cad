//! Entry points for bytes that somebody else wrote. Each takes any bytes, and must neither panic nor take memory out of
//! proportion; some hold more than that. `scripts/fuzz` feeds them without end under libFuzzer, the tests here a bounded
//! number of mutations of the same corpora.

use std::{collections::BTreeMap, sync::Arc};

use ulid::Ulid;

use crate::{
    browser, config,
    gateway::{
        self,
        patch::{Written, patch},
        settings::GatewaySettings,
        version::Generation,
    },
    state::{
        check,
        model::{Chunk, CommitId, Hash, Location, Tree},
        segment::{
            line::Decoder,
            reader::{self, Opened},
            trailer::{self, Trailer},
        },
    },
    store::{memory, mounts},
};

/// Plain bytes of a chunk that a reader has been promised.
const RAW: u32 = 1 << 20;

pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 8] = [
    ("segment", segment),
    ("tree", tree),
    ("chunk", chunk),
    ("config", config),
    ("gateway_config", gateway_config),
    ("cdp_frames", browser::fuzz::frames),
    ("cdp_messages", browser::fuzz::messages),
    ("mounts", mounts),
];

fn some_commit() -> CommitId {
    CommitId {
        generation: Ulid::from_parts(1, 1),
        seq: 1,
    }
}

/// An object of the store: found under the name that its trailer has, if it has one.
fn segment(data: &[u8]) {
    let len = data.len() as u64;
    let last = &data[data.len().saturating_sub(trailer::LEN as usize)..];
    let id = Trailer::decode(last, len).map_or_else(|_| some_commit(), |trailer| trailer.id);
    let (store, bucket) = memory::store();
    bucket
        .lock()
        .unwrap()
        .objects
        .insert("object".to_owned(), data.to_vec());
    let Ok(object) = store.get("object") else { return };
    let Ok(opened) = Opened::open(object, id, None) else {
        return;
    };
    let sound = opened.verify_body().is_ok();
    if let Ok((tree, chunks)) = opened.tree(Tree::new()) {
        let lengths: BTreeMap<Hash, u32> = chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)).collect();
        let _ = (sound, check::tree(&tree, &|hash| lengths.get(hash).copied()));
    }
}

/// The lines of a tree, without the hashes that keep them from being changed.
fn tree(data: &[u8]) {
    let sources = [some_commit()];
    let mut decoder = Decoder::new(&sources, Tree::new());
    if data.split(|&byte| byte == b'\n').all(|line| decoder.line(line).is_ok()) {
        let (tree, chunks) = decoder.finish();
        let lengths: BTreeMap<Hash, u32> = chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)).collect();
        if check::tree(&tree, &|hash| lengths.get(hash).copied()).is_ok() {
            for path in tree.keys() {
                assert!(!path.starts_with(b"/") && path.split(|&byte| byte == b'/').all(|name| name != b".."));
            }
        }
    }
}

/// Stored bytes that are said to unpack to a chunk.
fn chunk(data: &[u8]) {
    let chunk = Chunk {
        hash: Hash::of(b"what was written"),
        raw_len: RAW,
        at: Location {
            commit: some_commit(),
            offset: 0,
            len: u32::try_from(data.len()).unwrap_or(u32::MAX),
        },
    };
    assert!(reader::chunk(data, &chunk, None).is_err(), "nothing else hashes to it");
}

/// A file, and after the first zero byte `NAME=value` lines.
fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, env) = text.split_once('\0').unwrap_or((&text, ""));
    let env = env.lines().filter_map(|line| line.split_once('=')).collect();
    let machine = config::Machine {
        home: "/root".into(),
        store_is_mounted: false,
        has_sandbox_server: false,
        has_legacy_workspace: false,
    };
    if let Ok(config) = config::load(Some(file), env, &machine) {
        let _ = gateway::Gateway::check(&config);
    }
}

/// A gateway's configuration. What has been patched once is left alone by a second time.
fn gateway_config(data: &[u8]) {
    let Ok(Some(document)) = std::str::from_utf8(data).map(|text| gateway::document::parse(text).ok()) else {
        return;
    };
    if !document.is_object() {
        return;
    }
    let settings = GatewaySettings::default();
    for generation in [Generation::Early, Generation::Current] {
        let once = patch(document.clone(), &Written::default(), &settings, generation);
        let twice = patch(once.value.clone(), &once.written, &settings, generation);
        assert_eq!((&once.value, twice.changes.len()), (&twice.value, 0));
    }
}

/// `/proc/self/mountinfo`, in which an agent may have a say by the names of its mounts.
fn mounts(data: &[u8]) {
    let _ = mounts::parse(data);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const ROUNDS: usize = 2_000;
    /// What a format means something by.
    const TOKENS: [&[u8]; 12] = [
        b"\0",
        b"\n",
        b"\"",
        b"{",
        b"[",
        b"..",
        b"/",
        b"\\u0000",
        b"-1",
        b"18446744073709551616",
        b"null",
        b"\xff",
    ];

    fn mutate(seed: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=bytes.len());
            match random.random_range(0..6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
                1 if at < bytes.len() => bytes[at] = random.random(),
                2 => bytes.truncate(at),
                3 => {
                    let token = TOKENS[random.random_range(0..TOKENS.len())];
                    bytes.splice(at..at, token.iter().copied());
                }
                4 => {
                    let from = random.random_range(0..=other.len());
                    let to = random.random_range(from..=other.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    let end = random.random_range(at..=bytes.len());
                    bytes.drain(at..end);
                }
            }
        }
        bytes
    }

    #[test]
    fn nothing_that_somebody_else_wrote_does_harm() {
        let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus"));
        for (name, target) in TARGETS {
            let mut paths: Vec<_> = fs::read_dir(corpus.join(name))
                .unwrap_or_else(|error| panic!("the corpus of {name}: {error}"))
                .map(|entry| entry.unwrap().path())
                .collect();
            paths.sort();
            let seeds: Vec<Arc<[u8]>> = paths.iter().map(|path| fs::read(path).unwrap().into()).collect();
            seeds.iter().for_each(|seed| target(seed));
            let mut random = StdRng::seed_from_u64(20_261_123);
            for round in 0..ROUNDS {
                let [seed, other] = [round, random.random_range(0..seeds.len())].map(|at| &seeds[at % seeds.len()]);
                target(&mutate(seed, other, &mut random));
            }
        }
    }

    /// A configuration is the agent's to write, and PID 1 reads it: recursion without a bound would be its end.
    #[test]
    fn what_is_nested_without_end_is_refused() {
        for (_, target) in TARGETS {
            for open in ["[", "{\"a\":", "{a:", "a=[", "[[a."] {
                target(open.repeat(200_000).as_bytes());
            }
        }
    }
}
