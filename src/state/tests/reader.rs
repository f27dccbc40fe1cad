//! The format's document against the format: a reader that was written from it restores what moltinit wrote.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::{
    furnish,
    kit::{Kit, picture},
    restored,
};
use crate::{
    neighbour::{run, with_env},
    pid1::{Exit, Spawn},
    state::{crypt::Key, model::CommitId},
};

const PASSPHRASE: &str = "correct horse";

/// Runs the reader; returns the commit that it restored below `to`.
fn read(kit: &Kit, to: &str, commit: Option<CommitId>) -> CommitId {
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
    let spawn = with_env(Spawn::new(argv.into_iter().chain(commit)), "PYTHONPATH", packages);
    let output = run(with_env(spawn, "MOLTINIT_KEY", PASSPHRASE));
    assert_eq!(
        output.exit,
        Exit::Code(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn a_reader_written_from_the_document_restores_every_commit() {
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
    assert_eq!(read(&kit, "newest", None), last);
    assert_eq!(picture(&kit.path("newest/state")), picture(&kit.live()));
    read(&kit, "first", Some(first));
    assert_eq!(picture(&kit.path("first/state")), before);
}

#[test]
fn it_reads_an_encrypted_store_and_falls_back_as_moltinit_does() {
    let mut kit = Kit::with_key(Some(Key::derive(PASSPHRASE, "default")));
    kit.write("file", b"one");
    kit.write("long", "a line\n".repeat(2000));
    let one = kit.commit();
    let expected = picture(&kit.live());
    kit.write("file", b"two");
    let two = kit.commit();
    let object = fs::OpenOptions::new().write(true).open(kit.object_path(two)).unwrap();
    object.write_all_at(b"?", 20).unwrap();
    assert_eq!(read(&kit, "read", None), one);
    assert_eq!(picture(&kit.path("read/state")), expected);
    assert_eq!(restored(kit.recover_to("back")).0.id(), Some(one));
}
