//! The main job with nothing faked: an S3 server, an s3fs mount of it, moltinit as PID 1, the real gateway. The
//! container is thrown away, and the next one has everything.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use ulid::Ulid;

use crate::support::{
    PATIENCE,
    container::{Container, Disk},
    eventually,
    gateway::Gateway,
    s3::{Mount, S3},
};

/// The gateway takes 10 s to start on an idle machine; this one may be busy.
const BOOT: Duration = Duration::from_secs(300);

/// One life of a container. The gateway keeps some of its state by the path it is at, which is the same in each.
struct Life {
    disk: Disk,
    store: PathBuf,
    gateway: Gateway,
    container: Container,
}

impl Life {
    fn start(disk: Disk, store: &Path) -> Life {
        let gateway = Gateway::latest();
        let env = gateway.environment(&disk);
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let container = Container::start(&disk, store, &env, &["run"]);
        container.wait_for("/readyz", BOOT);
        Life {
            disk,
            store: store.to_owned(),
            gateway,
            container,
        }
    }

    fn add_job(&self, name: &str) {
        let job = json!({
            "name": name,
            "schedule": { "kind": "cron", "expr": "0 7 * * *" },
            "sessionTarget": "main",
            "wakeMode": "next-heartbeat",
            "payload": { "kind": "systemEvent", "text": name },
        });
        self.gateway.call("cron.add", &job);
    }

    fn has_job(&self, name: &str) -> bool {
        let jobs = self.gateway.call("cron.list", &json!({}));
        jobs["jobs"].as_array().unwrap().iter().any(|job| job["name"] == name)
    }

    /// Waits until every change up to now is in the store, by itself: the kernel tells of changes in their order, so a
    /// snapshot that has the last one, with none pending, has them all.
    fn wait_until_durable(&self) {
        let last = format!("last-change-{}", Ulid::generate());
        fs::write(self.workspace().join(&last), "").unwrap();
        eventually(
            format_args!("{last} in a snapshot; log: {}", self.container),
            PATIENCE,
            || {
                let snapshots = self.container.status()["snapshots"].clone();
                let commit = snapshots["last"]["commit"].as_str()?;
                (snapshots["pending_paths"] == 0 && self.files(commit).contains(&last)).then_some(())
            },
        );
    }

    /// The files of a snapshot, as a person would list them.
    fn files(&self, commit: &str) -> String {
        let store = self.store.to_str().unwrap();
        let output = self
            .disk
            .command(&["snapshot", "show", "--store", store, commit])
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn restored(&self) -> Value {
        self.container.status()["restore"].clone()
    }

    fn last_commit(&self) -> String {
        self.container.status()["snapshots"]["last"]["commit"]
            .as_str()
            .expect("a commit")
            .to_owned()
    }

    fn snapshots(&self) -> Vec<Value> {
        self.container.get("/snapshots").unwrap().json()["snapshots"]
            .as_array()
            .unwrap()
            .clone()
    }

    fn workspace(&self) -> PathBuf {
        self.disk.state().join("workspace")
    }
}

/// The gateway's database as it was put back, before anything opened it for writing again.
fn check_database(state: &Path) {
    let file = state.join("state/openclaw.sqlite");
    let database = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let verdict: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}

/// A tree with a bit of everything a workspace may hold.
fn fill(workspace: &Path) {
    fs::create_dir_all(workspace.join("notes/deep/er")).unwrap();
    fs::write(workspace.join("notes/edited.md"), "first version").unwrap();
    fs::write(workspace.join("notes/deleted.md"), "to be deleted").unwrap();
    fs::write(workspace.join("notes/deep/er/log.jsonl"), "{\"line\":1}\n").unwrap();
    fs::write(workspace.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(workspace.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("notes/edited.md", workspace.join("link")).unwrap();
}

fn append(file: &Path, text: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn change(workspace: &Path) {
    fs::write(workspace.join("notes/edited.md"), "second version").unwrap();
    fs::remove_file(workspace.join("notes/deleted.md")).unwrap();
    append(&workspace.join("notes/deep/er/log.jsonl"), "{\"line\":2}\n");
}

fn check_changed(workspace: &Path) {
    assert_eq!(
        fs::read_to_string(workspace.join("notes/edited.md")).unwrap(),
        "second version"
    );
    assert!(!workspace.join("notes/deleted.md").exists());
    let log = fs::read_to_string(workspace.join("notes/deep/er/log.jsonl")).unwrap();
    assert_eq!(log, "{\"line\":1}\n{\"line\":2}\n");
    let mode = fs::metadata(workspace.join("run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
    assert_eq!(
        fs::read_link(workspace.join("link")).unwrap(),
        Path::new("notes/edited.md")
    );
}

fn generation(commit: &str) -> &str {
    commit.split('-').next().unwrap()
}

fn killed_and_back(store: &Path) {
    let first = Life::start(Disk::new(), store);
    assert_eq!(
        first.restored()["commit"],
        Value::Null,
        "the first boot has nothing to restore"
    );
    fill(&first.workspace());
    first.wait_until_durable();

    first.add_job("water the plants");
    change(&first.workspace());
    first.wait_until_durable();
    let last = first.last_commit();
    first.container.kill();

    // A new container: the disk is gone, the store is not.
    let second = Life::start(first.disk.wiped(), store);
    assert_eq!(second.restored()["commit"], last.as_str());
    check_changed(&second.workspace());
    check_database(&second.disk.state());
    assert!(second.has_job("water the plants"));

    second.add_job("feed the cat");
    second.wait_until_durable();
    let further = second.last_commit();
    assert_ne!(generation(&further), generation(&last), "a boot starts a generation");
    let snapshots = second.snapshots();
    let mut of_second = snapshots
        .iter()
        .filter(|meta| meta["id"].as_str().unwrap().starts_with(generation(&further)));
    let begin = of_second.next().expect("the second generation's first commit");
    assert_eq!(begin["parent"], last.as_str());
    assert_eq!(begin["base"], last.as_str());
}

#[test]
fn a_killed_container_comes_back_whole_from_a_directory() {
    let store = tempfile::tempdir().unwrap();
    killed_and_back(store.path());
}

#[test]
fn a_killed_container_comes_back_whole_from_s3() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    killed_and_back(&mount.path);
    assert!(s3.keys().iter().any(|key| key.ends_with(".seg")), "{:?}", s3.keys());
}

#[test]
fn what_changed_right_before_the_stop_is_in() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    let mut first = Life::start(Disk::new(), &mount.path);
    fill(&first.workspace());
    first.wait_until_durable();

    first.add_job("water the plants");
    change(&first.workspace());
    std::thread::sleep(Duration::from_millis(100));
    first.container.signal(Signal::SIGTERM);
    let status = first.container.wait(BOOT);
    assert_eq!(status.code(), Some(0), "{}", first.container.log());

    let second = Life::start(first.disk.wiped(), &mount.path);
    check_changed(&second.workspace());
    check_database(&second.disk.state());
    assert!(second.has_job("water the plants"));
}
