//! Which configurations have worked and which have not. Kept beside the state, so it is in every snapshot too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{document, patch::Written, version::Version};

/// More than that many refused configurations are not a record, and the oldest are forgotten.
const REFUSED_MAX: usize = 64;
/// Keys in which the gateway and its doctor note when they last ran.
const NOTES: [&str; 2] = ["meta", "wizard"];

/// What a configuration means to one version of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    pub fn of(config: &Value, version: Option<Version>) -> Digest {
        let mut config = config.clone();
        if let Some(object) = config.as_object_mut() {
            for key in NOTES {
                object.shift_remove(key);
            }
        }
        let version = version.map(|version| version.to_string()).unwrap_or_default();
        let hash = Sha256::digest(format!("{version}\n{}", document::render(&config)));
        Digest(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The record, in a directory of its own.
pub struct Record {
    good: PathBuf,
    /// The digest of the above, with the version that it has worked with.
    good_digest: PathBuf,
    refused: PathBuf,
    written: PathBuf,
    /// What is on disk, and what only this run suspects.
    known_refused: Vec<Digest>,
}

impl Record {
    /// Reads the record in `dir`; one that cannot be read is an empty one.
    pub fn open(dir: &Path) -> Record {
        let refused = dir.join("refused-configs");
        let text = fs::read_to_string(&refused).unwrap_or_default();
        Record {
            good: dir.join("last-good.json"),
            good_digest: dir.join("last-good.digest"),
            written: dir.join("written.json"),
            refused,
            known_refused: text.lines().map(|line| Digest(line.to_owned())).collect(),
        }
    }

    /// The last configuration that a gateway was well with.
    pub fn good(&self) -> Option<Value> {
        document::read(&self.good).ok().flatten().map(|document| document.value)
    }

    /// Whether it is the last good one, under the version that it was good with.
    pub fn is_good(&self, digest: &Digest) -> bool {
        fs::read_to_string(&self.good_digest).is_ok_and(|known| known.trim_end() == digest.0)
    }

    /// A gateway is well with this text, which means that.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_good(&self, text: &str, digest: &Digest) -> io::Result<()> {
        for (path, text) in [(&self.good, text), (&self.good_digest, &*format!("{}\n", digest.0))] {
            if !fs::read_to_string(path).is_ok_and(|known| known == text) {
                keep(path, text)?;
            }
        }
        Ok(())
    }

    /// What was written into the present configuration.
    pub fn written(&self) -> Written {
        Written::parse(&fs::read_to_string(&self.written).unwrap_or_default())
    }

    /// # Errors
    /// It cannot be written.
    pub fn keep_written(&self, written: &Written) -> io::Result<()> {
        keep(&self.written, &written.render())
    }

    pub fn is_refused(&self, digest: &Digest) -> bool {
        self.known_refused.contains(digest)
    }

    /// Never to be tried again by this run and, when the gateway itself has named it invalid, by none.
    pub fn refuse(&mut self, digest: Digest, certain: bool) {
        if self.is_refused(&digest) {
            return;
        }
        if certain && let Err(error) = self.write_refused(&digest) {
            warn!("cannot remember that a configuration was refused: {error}");
        }
        self.known_refused.push(digest);
    }

    fn write_refused(&self, digest: &Digest) -> io::Result<()> {
        let text = fs::read_to_string(&self.refused).unwrap_or_default();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.push(&digest.0);
        let kept = &lines[lines.len().saturating_sub(REFUSED_MAX)..];
        keep(&self.refused, &(kept.join("\n") + "\n"))
    }
}

fn keep(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    document::write(path, text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_is_of_the_meaning_and_the_version() {
        let of = |config: Value, version| Digest::of(&config, Version::parse(version));
        let first = of(json!({ "a": 1, "wizard": { "lastRunAt": 1 } }), "2026.9.6");
        assert_eq!(first, of(json!({ "meta": 5, "a": 1 }), "2026.9.6"));
        assert_ne!(first, of(json!({ "a": 2 }), "2026.9.6"));
        assert_ne!(first, of(json!({ "a": 1 }), "2026.9.7"));
    }

    #[test]
    fn what_was_refused_for_certain_is_remembered_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("gateway");
        let digest = |n: i32| Digest::of(&json!({ "n": n }), None);
        let mut record = Record::open(&dir);
        record.refuse(digest(1), true);
        record.refuse(digest(2), false);
        assert!(record.is_refused(&digest(1)) && record.is_refused(&digest(2)));
        let mut record = Record::open(&dir);
        assert!(record.is_refused(&digest(1)) && !record.is_refused(&digest(2)));
        for n in 100..200 {
            record.refuse(digest(n), true);
        }
        let record = Record::open(&dir);
        assert!(!record.is_refused(&digest(1)) && record.is_refused(&digest(199)));
    }

    #[test]
    fn the_last_good_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::open(dir.path());
        assert_eq!(record.good(), None);
        let keep = |n: i32| {
            let digest = Digest::of(&json!({ "a": n }), None);
            record.keep_good(&format!("{{ a: {n} }}"), &digest).unwrap();
            digest
        };
        let (first, second) = (keep(1), keep(2));
        assert!(record.is_good(&second) && !record.is_good(&first));
        assert_eq!(Record::open(dir.path()).good(), Some(json!({ "a": 2 })));
        fs::write(dir.path().join("last-good.json"), "torn {").unwrap();
        assert_eq!(record.good(), None);
    }
}
