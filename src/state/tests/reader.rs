//! The format's document against the format: a reader that was written from it restores what moltinit wrote.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use super::{
    furnish,
    kit::{Kit, picture},
    restored,
};
use crate::{
    pid1::{Spawn, Spawner},
    state::{crypt::Key, model::CommitId},
};

const PASSPHRASE: &str = "correct horse";

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the reader; returns the commit that it restored below `to`.
async fn read(kit: &Kit, to: &str, commit: Option<CommitId>) -> CommitId {
    let packages = std::env::var_os("MOLTINIT_TEST_PYTHONPATH")
        .expect("run the tests with scripts/test, which installs what they need");
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/read-store.py");
    let argv = [
        "python3".into(),
        tool,
        kit.path("store"),
        "default".into(),
        kit.path(to),
    ];
    let commit = commit.map(|id| id.to_string().into());
    let mut spawn = Spawn::new(argv.into_iter().chain(commit));
    let given = [("PYTHONPATH", packages), ("MOLTINIT_KEY", PASSPHRASE.into())];
    spawn
        .env
        .retain(|(name, _)| given.iter().all(|(other, _)| name != other));
    spawn.env.extend(given.map(|(name, value)| (name.into(), value)));
    // By the spawner: other tests of this program have its reaper at work, which takes the status of every child.
    let output = Spawner::start().unwrap().run(spawn, PATIENCE).await.unwrap();
    assert_eq!(output.exit.status(), 0, "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_reader_written_from_the_document_restores_every_commit() {
    let mut kit = Kit::new();
    furnish(&kit);
    let first = kit.commit();
    let before = picture(&kit.live());
    let big = fs::OpenOptions::new().write(true).open(kit.live().join("big")).unwrap();
    big.write_all_at(b"changed", 3_000_000).unwrap();
    fs::remove_file(kit.live().join("link")).unwrap();
    fs::rename(kit.live().join("agents"), kit.live().join("moved")).unwrap();
    kit.commit();
    kit.reboot();
    kit.write("later", b"and another boot");
    let last = kit.commit();
    assert_eq!(read(&kit, "newest", None).await, last);
    assert_eq!(picture(&kit.path("newest/state")), picture(&kit.live()));
    read(&kit, "first", Some(first)).await;
    assert_eq!(picture(&kit.path("first/state")), before);
}

#[tokio::test]
async fn it_reads_an_encrypted_store_and_falls_back_as_moltinit_does() {
    let mut kit = Kit::with_key(Some(Key::derive(PASSPHRASE, "default")));
    kit.write("file", b"one");
    kit.write("long", "a line\n".repeat(2000));
    let one = kit.commit();
    let expected = picture(&kit.live());
    kit.write("file", b"two");
    let two = kit.commit();
    let object = fs::OpenOptions::new().write(true).open(kit.object_path(two)).unwrap();
    object.write_all_at(b"?", 20).unwrap();
    assert_eq!(read(&kit, "read", None).await, one);
    assert_eq!(picture(&kit.path("read/state")), expected);
    assert_eq!(restored(kit.recover_to("back")).0.id(), Some(one));
}
