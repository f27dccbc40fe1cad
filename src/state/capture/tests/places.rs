//! What changes its place while it is captured, or cannot be captured where it has come to: it stays in the snapshot.

use super::*;
use crate::state::{capture::look::Unseen, model::Tree};

/// One capture in steps, each as if the watch had told of `paths` by then.
struct Capture<'a> {
    steps: &'a Steps,
    before: Before<'a>,
    look: Look<'a>,
    databases: Databases<'a>,
    notes: Notes,
    writer: SegmentWriter<'a>,
}

impl<'a> Capture<'a> {
    fn new(steps: &'a Steps, roots: &'a [Root]) -> Capture<'a> {
        let head = &steps.kit.head;
        let before = Before {
            tree: head.tree(),
            memory: &steps.memory,
        };
        Capture {
            steps,
            before,
            look: Look::new(roots, before.tree, before.memory, &steps.watch),
            databases: Databases::new(before),
            notes: Notes::default(),
            writer: writer(&steps.kit, head),
        }
    }

    fn look(&mut self, paths: &[&str]) {
        self.look.at(&changes(paths));
        self.databases
            .capture(&mut self.look, &mut self.notes, &mut self.writer)
            .unwrap();
    }

    /// The tree that comes of it, and what else was found out.
    fn tree(self, known: Option<&BTreeSet<TreePath>>) -> (Tree, Notes) {
        let mut writer = self.writer;
        let mut entries = Entries::new(self.before, self.databases.images, self.notes);
        entries.make(self.look, &mut writer).unwrap();
        let (delta, notes) = entries.finish(known, &writer);
        let mut tree = self.before.tree.clone();
        delta.remove.iter().for_each(|path| drop(tree.remove(path)));
        tree.extend(delta.upsert.iter().cloned());
        let id = CommitId {
            generation: self.steps.kit.generation.id(),
            seq: 1,
        };
        let meta = meta(id, None, Reason::Change);
        writer.finish(meta, delta).expect("a tree that can be restored");
        (tree, notes)
    }
}

fn changes(paths: &[&str]) -> Changes {
    let mut changes = Changes::default();
    paths
        .iter()
        .for_each(|path| changes.add(path.as_bytes().to_vec(), Depth::Below));
    changes
}

impl Steps {
    fn mv(&self, from: &str, to: &str) {
        fs::rename(self.kit.live().join(from), self.kit.live().join(to)).unwrap();
    }

    fn with(files: &[(&str, &str)]) -> Steps {
        let mut steps = Steps::new();
        files.iter().for_each(|(path, text)| steps.kit.write(path, text));
        steps.settle();
        steps
    }

    fn kind(&self, path: &str) -> Kind {
        self.kit.head.tree()[path.as_bytes()].kind.clone()
    }
}

#[test]
fn what_is_on_its_way_to_a_third_name_stays_under_its_first() {
    let mut steps = Steps::with(&[("one", "kept"), ("dir/in/file", "kept too"), ("gone", "")]);
    let roots = roots(&steps.kit);
    steps.mv("one", "two");
    steps.mv("dir/in/file", "other");
    fs::remove_file(steps.kit.live().join("gone")).unwrap();
    fs::remove_dir_all(steps.kit.live().join("dir")).unwrap();
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/one", "state/two", "state/dir", "state/other", "state/gone"]);
    steps.mv("two", "three");
    steps.mv("other", "another");
    let (tree, notes) = capture.tree(None);
    for path in ["state/one", "state/dir", "state/dir/in", "state/dir/in/file"] {
        assert!(tree.contains_key(path.as_bytes()), "{path}");
        assert!(notes.again.paths.contains_key(path.as_bytes()), "{path}");
    }
    assert!(!tree.contains_key(&b"state/gone"[..]) && notes.incomplete);
    assert!(notes.update.gone.iter().all(|path| path == b"state/gone"));
    // Another file may get their inodes.
    steps.memory.apply(notes.update);
    assert!(steps.memory.left().is_empty());
}

#[test]
fn a_locked_database_that_moved_stays_where_it_was_until_it_can_be_captured() {
    for moved in ["new.db", "there/old.db"] {
        let mut steps = Steps::new();
        let db = steps.database("here/old.db", "delete");
        db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        steps.settle();
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        match moved.split_once('/') {
            Some((dir, _)) => steps.mv("here", dir),
            None => steps.mv("here/old.db", moved),
        }
        for _ in 0..3 {
            let (incomplete, warnings) = steps.capture(all());
            assert!(incomplete && warnings.len() == 1, "{warnings:?}");
            assert!(steps.is_image("state/here/old.db"), "{moved}");
        }
        // Something comes to where it was and goes again.
        steps.kit.write("here/old.db", "");
        fs::remove_file(steps.kit.live().join("here/old.db")).unwrap();
        let changes = changes(&["state/here/old.db"]);
        steps.watch.take();
        assert!(steps.capture(changes).0);
        assert!(steps.is_image("state/here/old.db"), "{moved}");
        db.execute_batch("COMMIT").unwrap();
        assert!(!steps.capture(all()).0);
        assert_eq!(rows(steps.back().join(moved)), 1);
        assert!(!steps.kit.head.tree().contains_key(&b"state/here/old.db"[..]));
    }
}

/// Whether what has gone is still in the tree of each of two captures that do not see what is somewhere else.
fn is_kept(passing: bool) -> [bool; 2] {
    let mut steps = Steps::with(&[("one", "kept")]);
    let roots = roots(&steps.kit);
    fs::remove_file(steps.kit.live().join("one")).unwrap();
    [(); 2].map(|()| {
        let mut capture = Capture::new(&steps, &roots);
        capture.look(&["state/one"]);
        let why = "test".to_owned();
        let unseen = Found::Unknown(Unseen { why, passing });
        capture.look.found.insert(b"state/new".to_vec(), unseen);
        let (tree, notes) = capture.tree(None);
        assert!(notes.incomplete);
        steps.memory.apply(notes.update);
        tree.contains_key(&b"state/one"[..])
    })
}

#[test]
fn nothing_is_removed_while_it_may_be_where_it_cannot_be_seen() {
    assert_eq!(is_kept(true), [true, true]);
    // Where it is so for good, nothing has come since it was noticed.
    assert_eq!(is_kept(false), [true, false]);
}

#[test]
fn where_nothing_is_watched_only_what_was_known_to_be_gone_is_removed() {
    let steps = Steps::with(&[("dir/one", "1"), ("two", "2")]);
    let roots = roots(&steps.kit);
    fs::remove_dir_all(steps.kit.live().join("dir")).unwrap();
    fs::remove_file(steps.kit.live().join("two")).unwrap();
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/dir", "state/dir/one", "state/two"]);
    let known = ["state/two", "state/dir"].map(|path| path.as_bytes().to_vec()).into();
    let (tree, notes) = capture.tree(Some(&known));
    assert!(tree.contains_key(&b"state/dir/one"[..]) && !tree.contains_key(&b"state/two"[..]));
    assert!(notes.incomplete && notes.update.gone.iter().all(|path| path == b"state/two"));
}

#[test]
fn what_leaves_its_place_in_the_last_look_is_left_for_the_next_capture() {
    let mut steps = Steps::with(&[("one", "1"), ("log", "1"), ("dir/file", "1"), ("early", "1")]);
    let roots = roots(&steps.kit);
    let mut capture = Capture::new(&steps, &roots);
    fs::remove_file(steps.kit.live().join("early")).unwrap();
    capture.look(&["state/early"]);
    for name in ["one", "log", "dir"] {
        steps.mv(name, &format!("new-{name}"));
    }
    steps.kit.write("log", "22");
    fs::create_dir(steps.kit.live().join("dir")).unwrap();
    steps.kit.write("more", "1");
    capture
        .look
        .at_last(&changes(&["state/one", "state/log", "state/dir", "state/more"]));
    let (tree, notes) = capture.tree(None);
    for path in ["state/one", "state/log", "state/dir/file", "state/more"] {
        assert!(tree.contains_key(path.as_bytes()), "{path}");
    }
    assert_eq!(tree[&b"state/log"[..]], steps.kit.head.tree()[&b"state/log"[..]]);
    assert!(!tree.contains_key(&b"state/early"[..]) && notes.incomplete);
    steps.memory.apply(notes.update);
    steps.capture(all());
    let back = steps.back();
    for path in ["new-one", "new-log", "new-dir/file", "log", "dir"] {
        assert!(back.join(path).exists(), "{path}");
    }
    assert!(!back.join("one").exists() && !back.join("dir/file").exists());
}

#[test]
fn a_directory_that_is_replaced_between_two_looks_leaves_nothing_of_what_was_in_it() {
    let steps = Steps::with(&[("dir/sub/file", "1"), ("other/file", "1")]);
    let roots = roots(&steps.kit);
    let mut capture = Capture::new(&steps, &roots);
    fs::create_dir(steps.kit.live().join("dir/new")).unwrap();
    steps.kit.write("other/sub/file", "1");
    capture.look(&["state/dir/new", "state/other/sub"]);
    steps.mv("dir", "dir-moved");
    steps.mv("other", "other-moved");
    fs::create_dir(steps.kit.live().join("dir")).unwrap();
    steps.kit.write("other", "a file now");
    capture.look(&["state/dir", "state/dir-moved", "state/other", "state/other-moved"]);
    let (tree, notes) = capture.tree(None);
    let paths: Vec<_> = tree.keys().map(|path| crate::state::walk::show(path)).collect();
    let expected = [
        "state",
        "state/dir",
        "state/dir-moved",
        "state/dir-moved/new",
        "state/dir-moved/sub",
        "state/dir-moved/sub/file",
        "state/other",
        "state/other-moved",
        "state/other-moved/file",
        "state/other-moved/sub",
        "state/other-moved/sub/file",
    ];
    assert_eq!(paths, expected);
    assert!(!notes.incomplete);
}

#[test]
fn a_file_that_cannot_be_read_is_not_taken_for_another_that_was_at_its_name() {
    let mut steps = Steps::with(&[("a", "of a"), ("b", "of b")]);
    let (live, roots) = (steps.kit.live(), roots(&steps.kit));
    let read = |steps: &Steps, tree: &Tree, path: &str| match &tree[path.as_bytes()].kind {
        Kind::HardLink { to } => panic!("{path} is a link to {}", crate::state::walk::show(to)),
        kind => (*kind == steps.kind("state/a"), *kind == steps.kind("state/b")),
    };
    // The first becomes another name of the second, and neither can be read.
    fs::remove_file(live.join("a")).unwrap();
    fs::hard_link(live.join("b"), live.join("a")).unwrap();
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/a", "state/b"]);
    fs::remove_file(live.join("a")).unwrap();
    fs::remove_file(live.join("b")).unwrap();
    let (tree, notes) = capture.tree(None);
    assert_eq!(read(&steps, &tree, "state/a"), (true, false));
    assert_eq!(read(&steps, &tree, "state/b"), (false, true));
    assert!(notes.incomplete);
    // Both are names of one file; another takes the place of the first, and the second cannot be read.
    steps.kit.write("a", "of both");
    fs::hard_link(live.join("a"), live.join("b")).unwrap();
    steps.settle();
    assert!(matches!(steps.kind("state/b"), Kind::HardLink { .. }));
    steps.kit.write("new", "another");
    steps.mv("new", "a");
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/a"]);
    fs::remove_file(live.join("b")).unwrap();
    let (tree, ..) = capture.tree(None);
    assert_eq!(tree[&b"state/b"[..]].kind, steps.kind("state/a"));
    assert_ne!(tree[&b"state/a"[..]].kind, steps.kind("state/a"));
}

#[test]
fn the_other_names_of_a_replaced_file_are_looked_at_even_where_the_file_is_not_remembered() {
    let mut steps = Steps::with(&[("a", "of both")]);
    fs::hard_link(steps.kit.live().join("a"), steps.kit.live().join("b")).unwrap();
    steps.settle();
    steps.memory.apply(Update {
        unsure: vec![b"state/a".to_vec()],
        ..Update::default()
    });
    steps.kit.write("new", "another");
    steps.mv("new", "a");
    steps.watch.take();
    steps.capture(changes(&["state/a", "state/new"]));
    assert_eq!(fs::read_to_string(steps.back().join("b")).unwrap(), "of both");
}

#[test]
fn what_takes_the_place_of_a_database_that_has_been_captured_is_captured() {
    let mut steps = Steps::new();
    let (a, b) = (steps.database("a", "delete"), steps.database("b", "delete"));
    b.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    steps.kit.write("c", "no database");
    steps.database("d", "delete");
    steps.settle();
    a.execute_batch("CREATE TABLE more(v)").unwrap();
    let roots = roots(&steps.kit);
    let mut capture = Capture::new(&steps, &roots);
    Connection::open(steps.kit.live().join("d"))
        .unwrap()
        .execute_batch("CREATE TABLE more(v)")
        .unwrap();
    capture.look(&["state/a", "state/d"]);
    steps.mv("b", "a");
    steps.mv("c", "d");
    capture.look(&["state/a", "state/b", "state/c", "state/d"]);
    let (tree, ..) = capture.tree(None);
    assert_eq!(tree[&b"state/a"[..]].kind, steps.kind("state/b"));
    assert_eq!(tree[&b"state/d"[..]].kind, steps.kind("state/c"));
    assert_eq!(tree.len(), 3);
}

#[test]
fn what_is_only_called_like_a_sidecar_stays() {
    let mut steps = Steps::with(&[("a-shm/note", "1"), ("c-shm/note", "1")]);
    std::os::unix::fs::symlink("elsewhere", steps.kit.live().join("b-shm")).unwrap();
    let databases = ["a", "b", "c"].map(|name| steps.database(name, "delete"));
    steps.settle();
    for db in &databases {
        db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    }
    // One of them becomes what it is called like.
    fs::remove_dir_all(steps.kit.live().join("c-shm")).unwrap();
    steps.kit.write("c-shm", "");
    steps.watch.take();
    assert_eq!(steps.capture(all()), (false, vec![]));
    for path in ["state/a-shm", "state/a-shm/note", "state/b-shm"] {
        assert!(steps.kit.head.tree().contains_key(path.as_bytes()), "{path}");
    }
    assert!(!steps.kit.head.tree().contains_key(&b"state/c-shm"[..]));
    assert_eq!(["a", "b", "c"].map(|name| rows(steps.back().join(name))), [1; 3]);
}

#[test]
fn what_does_not_fit_into_a_snapshot_is_named_and_holds_up_nothing() {
    let steps = Steps::with(&[("dir/file", "1")]);
    let roots = roots(&steps.kit);
    steps.kit.write("other", "1");
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/other"]);
    let dir = *steps.memory.stat(b"state/dir").unwrap();
    capture.look.found.insert(b"state/none/dir".to_vec(), Found::At(dir));
    let (tree, notes) = capture.tree(None);
    assert!(tree.contains_key(&b"state/other"[..]) && !tree.contains_key(&b"state/none/dir"[..]));
    assert!(notes.incomplete && notes.again.paths.contains_key(&b"state/none/dir"[..]));
    let (path, why) = &notes.update.troubles[0];
    assert!(path == b"state/none/dir" && why.ends_with("left out"), "{why}");
    assert!(notes.update.stats.iter().all(|(path, _)| path != b"state/none/dir"));
}

#[test]
fn the_time_of_a_directory_waits_for_a_commit_that_is_made_for_something_else() {
    let mut steps = Steps::with(&[("dir/file", "1")]);
    let dir = fs::File::open(steps.kit.live().join("dir")).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    dir.set_modified(time).unwrap();
    sleep(Duration::from_millis(100));
    let times = |steps: &Steps| steps.kit.head.tree()[&b"state/dir"[..]].mtime_ns;
    let before = times(&steps);
    steps.capture(all());
    assert_eq!(times(&steps), before);
    steps.kit.write("other", "1");
    steps.capture(all());
    assert_eq!(times(&steps), 1_500_000_000 * 1_000_000_000);
}

/// Its directory is still open, and what is in it goes on elsewhere.
#[test]
fn what_a_file_becomes_after_its_directory_has_moved_is_not_found_where_that_was() {
    let mut steps = Steps::new();
    steps.kit.write("top/dir/file", "first");
    steps.capture(all());
    steps.kit.write("top/dir/file", "second");
    let roots = roots(&steps.kit);
    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/top/dir/file"]);
    let live = steps.kit.live();
    fs::rename(live.join("top"), live.join("moved")).unwrap();
    fs::write(live.join("moved/dir/file"), "of another place").unwrap();
    let (tree, notes) = capture.tree(None);
    let path = b"state/top/dir/file".to_vec();
    assert!(
        matches!(tree[&path].kind, Kind::File { len: 5, .. }),
        "{:?}",
        tree[&path]
    );
    assert!(notes.update.unsure.contains(&path) || notes.again.paths.contains_key(&path));

    let mut capture = Capture::new(&steps, &roots);
    capture.look(&["state/top", "state/moved"]);
    let (tree, _) = capture.tree(None);
    assert!(!tree.contains_key(&path));
    assert!(matches!(
        tree[&b"state/moved/dir/file"[..]].kind,
        Kind::File { len: 16, .. }
    ));
}
