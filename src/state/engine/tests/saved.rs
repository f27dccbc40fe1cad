//! The mark that says whether all that is on the disk is in a commit.

use super::{databases::LOCKED, *};
use crate::state::recover::RecoverError;

#[test]
fn the_disk_counts_as_saved_while_commits_work_and_have_everything() {
    let mut kit = Kit::new();
    let mut holder = python(LOCKED, &kit.live().join("db"), 0);
    assert_eq!(holder.line(), "ready");
    let (store, faults) = faulty::store(&kit.path("store"));
    kit.history = History::open(store, "default", None).unwrap();
    let saved = Saved::in_dir(&kit.path("work"));
    let mut live = Live::start(kit);
    assert_eq!(Some(live.commit().id), saved.commit());

    faults.set(Fault::Errno(nix::libc::ENOTCONN));
    live.kit.write("precious", "hours of work");
    live.event(|event| matches!(event, Event::SnapshotFailed { .. }).then_some(()));
    assert_eq!(saved.commit(), None);
    faults.set(Fault::None);
    assert_eq!(Some(live.commit().id), saved.commit());

    holder.tell();
    assert_eq!(holder.line(), "locked");
    assert_eq!(live.commit().warnings.len(), 1);
    assert_eq!(saved.commit(), None);
    holder.kill();
    assert_eq!(Some(live.commit().id), saved.commit());
}

/// Whatever is found on a disk after its supervisor was killed, and however often it starts again.
#[test]
fn what_no_commit_has_is_never_removed() {
    let mut kit = Kit::new();
    kit.write("file", "committed");
    let (store, faults) = faulty::store(&kit.path("store"));
    kit.history = History::open(store, "default", None).unwrap();
    let mut live = Live::start(kit);
    live.commit();
    faults.set(Fault::Errno(nix::libc::ENOTCONN));
    live.kit.write("precious", "hours of work");
    live.event(|event| matches!(event, Event::SnapshotFailed { .. }).then_some(()));
    drop(live.engine);
    let ended = async { while live.events.recv().await.is_some() {} };
    let ended = async { tokio::time::timeout(DEADLINE, ended).await };
    live.runtime.block_on(ended).unwrap();
    faults.set(Fault::None);
    let kit = live.kit;
    let aside = || match kit.recover_to("live").unwrap() {
        Recovered::Restored { placed, .. } => placed.aside[0].clone(),
        Recovered::Empty { .. } => panic!("there is a commit"),
    };
    let kept = aside();
    assert!(kept.to_str().unwrap().ends_with("-unsaved"), "{kept:?}");
    for _ in 0..6 {
        // Nothing has worked on what was restored, which is in the store.
        assert!(!aside().to_str().unwrap().ends_with("-unsaved"));
        assert_eq!(fs::read_to_string(kept.join("precious")).unwrap(), "hours of work");
    }
}

#[test]
fn the_only_copy_of_a_commit_that_is_damaged_is_not_taken_for_a_copy() {
    let kit = Kit::new();
    kit.write("file", "one");
    let live = Live::start(kit);
    live.commit();
    live.kit.write("file", "two");
    let two = live.commit().id;
    live.finish();
    let object = live.kit.object_path(two);
    let whole = fs::read(&object).unwrap();
    fs::write(&object, &whole[..whole.len() - 1]).unwrap();
    let recovered: Result<Recovered, RecoverError> = live.kit.recover_to("live");
    let Recovered::Restored { placed, passed, .. } = recovered.unwrap() else {
        panic!("there is another commit")
    };
    assert_eq!(passed[0].id, two);
    assert!(placed.aside[0].to_str().unwrap().ends_with("-unsaved"), "{placed:?}");
    assert_eq!(fs::read_to_string(placed.aside[0].join("file")).unwrap(), "two");
}
