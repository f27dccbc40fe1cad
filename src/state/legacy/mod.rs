//! Taking over plain backups, as moltworker's cron job left them in the bucket.
//!
//! A backup is looked for by its layout, copied to the local disk ([`copy`]), and committed as the first snapshot of an
//! empty history. From there on it is restored like any other; the backup itself is only ever read.

mod copy;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use ulid::Ulid;

use self::copy::{Copied, Copier};
use super::{
    capture::{self, Captured, Memory},
    changes::Changes,
    head::Head,
    history::History,
    model::{CommitId, Meta, Reason},
    names,
    restore::Progress,
    segment::{SegmentError, SegmentWriter, reader::ReadError},
    watch::Watch,
};
use crate::store::{Store, StoreError};

/// Where the gateway's state has been kept, newest first, and what its configuration was called there.
const STATES: [(&str, &str); 8] = [
    ("openclaw", "openclaw.json"),
    (".openclaw", "openclaw.json"),
    ("moltbot", "moltbot.json"),
    (".moltbot", "moltbot.json"),
    ("clawdbot", "clawdbot.json"),
    (".clawdbot", "clawdbot.json"),
    // The oldest backups have the state beside everything else.
    ("", "moltbot.json"),
    ("", "clawdbot.json"),
];
const CONFIG: &str = "openclaw.json";
const WORKSPACES: [&str; 2] = ["workspace", "clawd"];
const SKILLS: &str = "skills";
/// Says when the backup was made, and that it is one.
const MARKER: &str = ".last-sync";

/// Why a backup was not taken over. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("copying the backup to {}: {source}; see that the disk has room and can be written", path.display())]
    Local { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("not all of the backup's copy could be read, so it is not taken over yet: {0}")]
    Lacking(String),
    #[error("{}: no backup is there: neither `openclaw/openclaw.json` nor an older name of it", .0.display())]
    None(PathBuf),
    #[error("there is a history in the store already; a backup can only be its beginning")]
    History,
}

/// A backup that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Directory of the state; empty where it is beside everything else.
    state: Option<(String, &'static str)>,
    workspace: Option<String>,
    skills: bool,
    /// Names at the top that are not the state's.
    beside: BTreeSet<String>,
}

/// Looks for a backup at the top of a store. `ours` is the name of the instance's own directory.
pub fn find(store: &Store, ours: &str) -> Result<Option<Backup>, StoreError> {
    let top = store.list("")?;
    let has = |name: &str, dir: bool| top.iter().any(|item| item.name == name && item.is_dir == dir);
    let mut state = None;
    for (dir, config) in STATES {
        let found = match dir {
            "" => has(config, false),
            dir => has(dir, true) && store.list(dir)?.iter().any(|item| item.name == config),
        };
        if found {
            state = Some((dir.to_owned(), config));
            break;
        }
    }
    let marked = state.is_some() || has(MARKER, false);
    let workspace = WORKSPACES
        .iter()
        .find(|name| marked && has(name, true))
        .map(|name| (*name).to_owned());
    let mut beside = BTreeSet::from([ours, SKILLS, MARKER].map(str::to_owned));
    beside.extend(WORKSPACES.map(str::to_owned));
    if state.as_ref().is_some_and(|(dir, _)| dir.is_empty()) {
        for dir in top.iter().filter(|item| item.is_dir) {
            if names::is_instance(store, &dir.name)? {
                beside.insert(dir.name.clone());
            }
        }
    }
    let backup = Backup {
        skills: marked && has(SKILLS, true),
        beside,
        state,
        workspace,
    };
    let found = backup.state.is_some() || backup.workspace.is_some() || backup.skills;
    Ok(found.then_some(backup))
}

/// Commits a backup in `from` as the first snapshot of `history`, which has none yet. `work` is a local directory
/// that has room for all of it. `is_apart` says, of the gateway's configuration, whether its workspace lies outside of
/// the state.
pub fn import(
    history: &History,
    from: &Store,
    backup: &Backup,
    work: &Path,
    is_apart: &dyn Fn(Option<&[u8]>) -> bool,
    progress: &Progress,
) -> Result<CommitId, LegacyError> {
    if !history.list()?.0.is_empty() {
        return Err(LegacyError::History);
    }
    let dir = work.join("import");
    let clear = || match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local(&dir, error)),
        _ => Ok(()),
    };
    clear()?;
    let done = Copier::new(from, progress)
        .copy(backup, &dir, is_apart)
        .and_then(|copied| commit(history, copied, &work.join("spool")));
    // Taken over is taken over.
    if let Err(error) = clear() {
        tracing::warn!(%error, "the copy of the backup could not be removed");
    }
    done
}

fn local(path: &Path, source: io::Error) -> LegacyError {
    LegacyError::Local {
        path: path.to_owned(),
        source,
    }
}

/// Commits directories that nobody else uses as the first snapshot.
fn commit(history: &History, copied: Copied, spool: &Path) -> Result<CommitId, LegacyError> {
    let Copied { roots, left_out } = copied;
    let mut generation = history.begin(Ulid::generate(), None);
    let id = generation.next_id();
    let head = Head::default();
    let (mut memory, watch) = (Memory::default(), Watch::start(|| {}));
    let capture = |memory: &Memory| {
        let mut changes = Changes::default();
        changes.lost("a backup is taken over");
        let mut writer = SegmentWriter::new(&head, spool, id, history.key())?;
        writer.take_all_room();
        let captured = capture::capture(&roots, &head, memory, &watch, &mut changes, &mut writer, None)?;
        Ok::<_, SegmentError>((writer, captured))
    };
    let (mut writer, mut captured) = capture(&memory)?;
    if captured.lacking {
        // What SQLite cannot make sense of is stored as bytes the second time.
        memory.apply(capture::Update {
            troubles: captured.update.troubles,
            ..capture::Update::default()
        });
        (writer, captured) = capture(&memory)?;
    }
    let Captured {
        delta, update, lacking, ..
    } = captured;
    let warnings = memory.warnings(&update);
    if lacking {
        return Err(LegacyError::Lacking(warnings.join("; ")));
    }
    let meta = Meta {
        id,
        parent: None,
        base: None,
        time: Timestamp::now(),
        reason: Reason::Import,
        moltinit: env!("CARGO_PKG_VERSION").into(),
        gateway: None,
        files: 0,
        bytes: 0,
        suspicious: None,
        warnings: left_out.into_iter().chain(warnings).collect(),
    };
    let segment = writer.finish(meta, delta)?;
    history.commit(&segment)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;
    use crate::{
        state::{
            recover::{Recovered, recover},
            tests::kit::picture,
        },
        store::{Expect, Patience},
    };

    struct Bucket {
        dir: tempfile::TempDir,
    }

    impl Bucket {
        fn with(files: &[(&str, &str)]) -> Bucket {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join("bucket").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            fs::create_dir_all(dir.path().join("bucket")).unwrap();
            Bucket { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn store(&self) -> Store {
            Store::open(&self.path("bucket"), Expect::Existing, Patience::default())
        }

        fn history(&self) -> History {
            History::open(self.store(), "default", None).unwrap()
        }

        fn import(&self, apart: bool) -> Option<Result<CommitId, LegacyError>> {
            let backup = find(&self.store(), "default").unwrap()?;
            Some(import(
                &self.history(),
                &self.store(),
                &backup,
                &self.path("work"),
                &|_| apart,
                &Progress::default(),
            ))
        }

        fn restore(&self) {
            let targets = ["state", "workspace"].map(|root| (root.to_owned(), self.path(root)));
            let recovered = recover(
                &self.history(),
                &|_| Ok(targets.to_vec()),
                &self.path("work"),
                &Progress::default(),
            );
            assert!(matches!(recovered.unwrap(), Recovered::Restored { .. }));
        }

        /// The names and texts below what is restored.
        fn restored(&self) -> Vec<(String, String)> {
            self.restore();
            let mut found = Vec::new();
            for root in ["state", "workspace"].iter().filter(|root| self.path(root).exists()) {
                for (path, entry, bytes) in picture(&self.path(root)) {
                    if entry.mode & 0o077 != 0 {
                        panic!("{:?} is open to others", String::from_utf8_lossy(&path));
                    }
                    if let crate::state::model::Kind::File { .. } = entry.kind {
                        let path = String::from_utf8(path).unwrap().replacen("state", root, 1);
                        found.push((path, String::from_utf8(bytes).unwrap()));
                    }
                }
            }
            found.sort();
            found
        }
    }

    fn expect(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn a_backup_becomes_the_first_snapshot_and_stays_as_it_is() {
        let bucket = Bucket::with(&[
            (".last-sync", "2026-02-01T00:00:00+00:00"),
            ("openclaw/openclaw.json", "{}"),
            ("openclaw/agents/main/sessions/a.jsonl", "line\n"),
            ("openclaw/.last-sync", "x"),
            ("workspace/MEMORY.md", "remember"),
            ("skills/mine/SKILL.md", "a skill"),
            ("unrelated/file", "not ours"),
        ]);
        let before = picture(&bucket.path("bucket"));
        let id = bucket.import(true).unwrap().unwrap();
        let of_backup = |path: &[u8]| !path.starts_with(b"state/default") && path != b"state";
        let after = picture(&bucket.path("bucket"))
            .into_iter()
            .filter(|(path, ..)| of_backup(path));
        assert!(after.eq(before.into_iter().filter(|(path, ..)| of_backup(path))));
        let (info, _) = bucket.history().info(id).unwrap();
        assert_eq!((info.meta.reason, info.meta.files), (Reason::Import, 4));
        assert!(info.meta.warnings.is_empty(), "{:?}", info.meta.warnings);
        let expected = [
            ("state/agents/main/sessions/a.jsonl", "line\n"),
            ("state/openclaw.json", "{}"),
            ("workspace/MEMORY.md", "remember"),
            ("workspace/skills/mine/SKILL.md", "a skill"),
        ];
        assert_eq!(bucket.restored(), expect(&expected));
        assert!(!bucket.path("work/import").exists());
        assert!(matches!(bucket.import(true), Some(Err(LegacyError::History))));
    }

    #[test]
    fn what_two_parts_of_a_backup_have_is_as_the_later_has_it() {
        let bucket = Bucket::with(&[
            ("openclaw/openclaw.json", "{}"),
            ("openclaw/workspace/a", "of the state"),
            ("openclaw/workspace/skills/x/SKILL.md", "old"),
            ("openclaw/workspace/dir/x", "1"),
            ("openclaw/workspace/file", "1"),
            ("workspace/a", "of the workspace"),
            ("workspace/dir", "a file"),
            ("workspace/file/x", "in a directory"),
            ("skills/x/SKILL.md", "new"),
        ]);
        let id = bucket.import(false).unwrap().unwrap();
        let expected = [
            ("state/openclaw.json", "{}"),
            ("state/workspace/a", "of the workspace"),
            ("state/workspace/dir/x", "1"),
            ("state/workspace/file", "1"),
            ("state/workspace/skills/x/SKILL.md", "new"),
        ];
        assert_eq!(bucket.restored(), expect(&expected));
        let warnings = bucket.history().info(id).unwrap().0.meta.warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn a_database_that_sqlite_cannot_read_is_taken_over_as_it_is() {
        let bucket = Bucket::with(&[("openclaw/openclaw.json", "{}")]);
        let path = bucket.path("bucket/openclaw/db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t(v)").unwrap();
        drop(db);
        // A format of the schema that is none yet.
        let mut bytes = fs::read(&path).unwrap();
        bytes[47] = 9;
        fs::write(&path, &bytes).unwrap();
        let id = bucket.import(true).unwrap().unwrap();
        let warnings = bucket.history().info(id).unwrap().0.meta.warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains("stored as they are"),
            "{warnings:?}"
        );
        bucket.restore();
        assert_eq!(fs::read(bucket.path("state/db")).unwrap(), bytes);
    }

    #[test]
    fn older_layouts_are_known() {
        let older = [
            ("clawdbot/clawdbot.json", "{ \"old\": 1 }"),
            ("clawdbot/memory", "m"),
            ("workspace/a", "1"),
        ];
        let bucket = Bucket::with(&older);
        bucket.import(false).unwrap().unwrap();
        let expected = [
            ("state/memory", "m"),
            ("state/openclaw.json", "{ \"old\": 1 }"),
            ("state/workspace/a", "1"),
        ];
        assert_eq!(bucket.restored(), expect(&expected));
        let oldest = [
            ("clawdbot.json", "{}"),
            ("sessions/s", "1"),
            ("sessions/v1/x", "1"),
            (
                "another/v1/01JZZZZZZZZZZZZZZZZZZZZZZZ/000000/00000001.seg",
                "another agent's",
            ),
            ("skills/x/SKILL.md", "x"),
            (".last-sync", ""),
        ];
        let bucket = Bucket::with(&oldest);
        bucket.import(true).unwrap().unwrap();
        let expected = [
            ("state/openclaw.json", "{}"),
            ("state/sessions/s", "1"),
            ("state/sessions/v1/x", "1"),
            ("workspace/skills/x/SKILL.md", "x"),
        ];
        assert_eq!(bucket.restored(), expect(&expected));
    }

    #[test]
    fn what_is_no_backup_is_left_alone() {
        for files in [
            &[][..],
            &[("workspace/file", "somebody's")],
            &[("openclaw/readme", "no configuration")],
            &[("default/v1/x", "")],
        ] {
            assert!(Bucket::with(files).import(true).is_none(), "{files:?}");
        }
    }

    #[test]
    fn links_in_a_backup_lead_nowhere() {
        let bucket = Bucket::with(&[("openclaw/openclaw.json", "{}")]);
        let secret = bucket.path("secret");
        fs::write(&secret, "of the machine").unwrap();
        std::os::unix::fs::symlink(&secret, bucket.path("bucket/openclaw/link")).unwrap();
        std::os::unix::fs::symlink(bucket.path(""), bucket.path("bucket/openclaw/dir")).unwrap();
        nix::unistd::mkfifo(&bucket.path("bucket/openclaw/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(bucket.path("bucket/openclaw").join(OsStr::from_bytes(b"odd-\xff")), "1").unwrap();
        let id = bucket.import(true).unwrap().unwrap();
        assert_eq!(bucket.restored(), expect(&[("state/openclaw.json", "{}")]));
        let warnings = bucket.history().info(id).unwrap().0.meta.warnings;
        for name in ["openclaw/link", "openclaw/dir", "openclaw/pipe", "openclaw/odd-"] {
            assert!(
                warnings.iter().any(|line| line.starts_with(name)),
                "{name} in {warnings:?}"
            );
        }
    }
}
