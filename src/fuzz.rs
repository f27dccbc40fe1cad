//! Entry points for bytes that somebody else wrote. Each takes any bytes, and must neither panic nor take memory out of
//! proportion; some hold more than that. `scripts/fuzz` feeds them without end under libFuzzer, the tests here a bounded
//! number of mutations of the same corpora.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
};

use ulid::Ulid;

use crate::{
    boot::Checked,
    browser,
    config::{self, Config, SECRETS, env::Env},
    gateway::{
        self,
        patch::{Written, patch},
        rpc,
        settings::GatewaySettings,
        version::Generation,
    },
    report::{self, http::Attach},
    state::{
        check,
        crypt::Key,
        model::{Chunk, CommitId, Hash, Location, Tree},
        segment::{
            line::Decoder,
            reader::{self, Opened},
            trailer::{self, Trailer},
        },
        sqlite,
    },
    store::{Store, memory, mounts},
};

/// Plain bytes of a chunk that a reader has been promised.
const RAW: u32 = 1 << 20;

pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 13] = [
    ("segment", segment),
    ("tree", tree),
    ("chunk", chunk),
    ("config", config),
    ("gateway_config", gateway_config),
    ("cdp_frames", browser::fuzz::frames),
    ("cdp_messages", browser::fuzz::messages),
    ("mounts", mounts),
    ("http", report::fuzz::http),
    ("attach", attach),
    ("outbox", |data| on_disk(data, report::fuzz_outbox)),
    ("rpc", rpc::fuzz),
    ("wal", |data| on_disk(data, sqlite::fuzz_wal)),
];

/// One that takes long to make.
static KEY: LazyLock<Key> = LazyLock::new(|| Key::derive("a passphrase", "default"));

fn some_commit() -> CommitId {
    CommitId {
        generation: Ulid::from_parts(1, 1),
        seq: 1,
    }
}

/// Looks at a file of that content.
fn on_disk(data: &[u8], look: fn(&Path)) {
    let name = format!("moltinit-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let dir = std::env::temp_dir().join(name);
    let file = dir.join("file");
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&file, data))
        .expect("a scratch file");
    look(&file);
    fs::remove_dir_all(&dir).expect("a scratch directory");
}

thread_local! {
    /// One that has to do with threads, and so takes long to make.
    static BUCKET: (Store, Arc<Mutex<memory::Bucket>>) = memory::store();
}

/// An object of the store, to somebody without a key and to somebody with one.
fn segment(data: &[u8]) {
    BUCKET.with(|(store, bucket)| {
        let object = ("object".to_owned(), data.to_vec());
        bucket.lock().unwrap().objects.extend([object]);
        segment_to(data, store, None);
        segment_to(data, store, Some(&KEY));
    });
}

/// Found under the name that its trailer has, if it has one.
fn segment_to(data: &[u8], store: &Store, key: Option<&Key>) {
    let len = data.len() as u64;
    let last = &data[data.len().saturating_sub(trailer::LEN as usize)..];
    let id = Trailer::decode(last, len).map_or_else(|_| some_commit(), |trailer| trailer.id);
    let Ok(object) = store.get("object") else { return };
    let Ok(opened) = Opened::open(object, id, key) else {
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
    if let Ok(config) = configured(Some(file), env) {
        let _ = gateway::Gateway::check(&config);
    }
}

fn configured(file: Option<&str>, env: &str) -> Result<Config, config::Problems> {
    let env = env.lines().filter_map(|line| line.split_once('=')).collect();
    let machine = config::Machine {
        home: "/root".into(),
        store_is_mounted: false,
        has_sandbox_server: false,
        has_legacy_workspace: false,
    };
    config::load(file, env, &machine)
}

/// What `moltinit attach` hands over. No secret in it is in what is said of it.
fn attach(data: &[u8]) {
    let Ok(Attach { env }) = serde_json::from_slice(data) else {
        return;
    };
    // Files are not what this is about.
    let env: Env = env.into_iter().filter(|(name, _)| !name.ends_with("_FILE")).collect();
    let known = configured(None, "").expect("a configuration without anything in it");
    if let Err(problems) = known.late(env.clone()).and_then(Checked::of) {
        let said = problems.to_string();
        for name in SECRETS {
            // A shorter one may be a word of ours.
            let secret = env.get(name).filter(|secret| secret.len() > 20);
            assert!(secret.is_none_or(|secret| !said.contains(secret)), "{name}: {said}");
        }
    }
}

/// A gateway's configuration, and after the first zero byte what the environment asks for, as `NAME=value` lines. What
/// has been patched once is left alone by a second time.
fn gateway_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (document, env) = text.split_once('\0').unwrap_or((text, ""));
    let Ok(document) = gateway::document::parse(document) else {
        return;
    };
    if !document.is_object() {
        return;
    }
    let config = configured(None, env).and_then(|config| GatewaySettings::from_env(&config.env, &config));
    let settings = config.unwrap_or_default();
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
    use std::time::{Duration, Instant};

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const ROUNDS: usize = 2_000;
    /// Fewer where they take long.
    const LONGEST: Duration = Duration::from_secs(4);
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
            let began = Instant::now();
            for round in (0..ROUNDS).take_while(|_| began.elapsed() < LONGEST) {
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
