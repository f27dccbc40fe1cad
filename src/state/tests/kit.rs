//! For tests: a store in a scratch directory, and commits of real directories, read in the plainest way.

use std::{
    collections::HashMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use ulid::Ulid;

use crate::state::{
    chunk,
    compact::compact,
    crypt::Key,
    diff,
    head::Head,
    history::{Generation, History},
    model::{CommitId, Entry, Extent, Kind, Meta, Reason, Tree},
    recover::{RecoverError, Recovered, recover},
    restore::Progress,
    segment::{Segment, SegmentError, SegmentWriter},
};
use crate::store::{Expect, Patience, Store};

/// A store, a live directory (the root `state`) and a place to restore to, gone when dropped.
pub struct Kit {
    dir: tempfile::TempDir,
    pub history: History,
    pub generation: Generation,
    pub head: Head,
}

impl Kit {
    pub fn new() -> Kit {
        Kit::with_key(None)
    }

    pub fn with_key(key: Option<Key>) -> Kit {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Expect::Directory, Patience::default());
        let history = History::open(store, "default", key).unwrap();
        let generation = history.begin(Ulid::generate(), None);
        fs::create_dir_all(dir.path().join("live")).unwrap();
        Kit {
            dir,
            history,
            generation,
            head: Head::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn live(&self) -> PathBuf {
        self.path("live")
    }

    /// Writes a file of the live directory, with its parents.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.live().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn object_path(&self, id: CommitId) -> PathBuf {
        self.path("store").join(self.history.object(id).unwrap())
    }

    /// Looks at the store with fresh eyes, as the next boot does.
    pub fn reopened(&self) -> History {
        History::open(self.history.store().clone(), "default", self.history.key().cloned()).unwrap()
    }

    /// Restarts: forgets everything, goes on from what `recover` puts into `live`.
    pub fn reboot(&mut self) {
        self.history = self.reopened();
        let head = match self.recover_to("live").unwrap() {
            Recovered::Restored { head, .. } => *head,
            Recovered::Empty { .. } => Head::default(),
        };
        self.generation = self.history.begin(Ulid::generate(), head.id());
        self.head = head;
    }

    pub fn recover_to(&self, name: &str) -> Result<Recovered, RecoverError> {
        let targets = [("state".to_owned(), self.path(name))];
        recover(
            &self.reopened(),
            &|_| Ok(targets.to_vec()),
            &self.path("work"),
            &Progress::default(),
        )
    }

    pub fn segment(&mut self, reason: Reason) -> Result<Segment, SegmentError> {
        let id = self.generation.next_id();
        let live = self.live();
        let spool = self.path("spool");
        let mut writer = SegmentWriter::new(&self.head, &spool, id, self.history.key())?;
        let tree = scan(&live, &mut writer);
        let delta = diff::delta(self.head.tree(), &tree);
        writer.finish(meta(id, self.generation.base(), reason), delta)
    }

    /// Commits the live directory.
    pub fn commit(&mut self) -> CommitId {
        let segment = self.segment(Reason::Change).unwrap();
        let id = segment.id();
        self.history.commit(&segment).unwrap();
        self.head.advance(segment);
        id
    }
}

impl Kit {
    /// Gathers what is scattered, if it is.
    pub fn compact(&mut self) -> Option<CommitId> {
        let id = self.generation.next_id();
        let meta = meta(id, self.generation.base(), Reason::Compact);
        let segment = compact(&self.history, &self.head, &self.path("spool"), id, meta).unwrap()?;
        self.history.commit(&segment).unwrap();
        self.head.advance(segment);
        Some(id)
    }
}

pub fn meta(id: CommitId, base: Option<CommitId>, reason: Reason) -> Meta {
    Meta {
        id,
        parent: None,
        base,
        time: Timestamp::now(),
        reason,
        moltinit: "test".to_owned(),
        gateway: None,
        files: 0,
        bytes: 0,
        suspicious: None,
        warnings: Vec::new(),
    }
}

/// A directory of nobody in particular.
pub fn dir() -> Entry {
    Entry {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        kind: Kind::Dir,
    }
}

/// Reads a directory into a tree under the root `state`, putting every chunk.
pub fn scan(dir: &Path, writer: &mut SegmentWriter) -> Tree {
    let mut tree = Tree::new();
    visit(dir, b"state".to_vec(), &mut tree, &mut |path| {
        let mut extents = Vec::new();
        chunk::split(fs::File::open(path).unwrap(), |bytes| {
            let len = bytes.len() as u32;
            chunk::push(
                &mut extents,
                if bytes.iter().all(|&b| b == 0) {
                    Extent::Hole { len: len.into() }
                } else {
                    Extent::Data {
                        chunk: writer.put(bytes).unwrap(),
                        from: 0,
                        len,
                    }
                },
            );
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
        extents
    });
    links(dir, &mut tree);
    tree
}

fn visit(path: &Path, name: Vec<u8>, tree: &mut Tree, read: &mut dyn FnMut(&Path) -> Vec<Extent>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = if meta.is_dir() {
        for child in fs::read_dir(path).unwrap() {
            let child = child.unwrap();
            let name = [&name, &b"/"[..], child.file_name().as_bytes()].concat();
            visit(&child.path(), name, tree, read);
        }
        Kind::Dir
    } else if meta.is_symlink() {
        let target = fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec();
        Kind::Symlink { target }
    } else {
        Kind::File {
            len: meta.len(),
            extents: read(path),
        }
    };
    let entry = Entry {
        mode: if meta.is_symlink() {
            0o777
        } else {
            meta.permissions().mode() & 0o7777
        },
        uid: meta.uid(),
        gid: meta.gid(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        kind,
    };
    tree.insert(name, entry);
}

/// Makes hard links of the later names of files that have several.
fn links(dir: &Path, tree: &mut Tree) {
    let mut first = HashMap::new();
    for (path, entry) in tree
        .iter_mut()
        .filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }))
    {
        let below = std::ffi::OsStr::from_bytes(path.strip_prefix(b"state/").unwrap());
        let meta = fs::symlink_metadata(dir.join(below)).unwrap();
        if meta.nlink() > 1 {
            let to = first.entry(meta.ino()).or_insert_with(|| path.clone());
            if to != path {
                entry.kind = Kind::HardLink { to: to.clone() };
            }
        }
    }
}

/// What is in a directory, in a form to compare: everything a snapshot keeps, with contents.
pub fn picture(dir: &Path) -> Vec<(Vec<u8>, Entry, Vec<u8>)> {
    let mut tree = Tree::new();
    visit(dir, b"state".to_vec(), &mut tree, &mut |_| Vec::new());
    links(dir, &mut tree);
    let content = |path: &[u8]| match path.strip_prefix(b"state/") {
        Some(below) => fs::read(dir.join(std::ffi::OsStr::from_bytes(below))).unwrap_or_default(),
        None => Vec::new(),
    };
    tree.into_iter()
        .map(|(path, entry)| {
            let bytes = if matches!(entry.kind, Kind::File { .. }) {
                content(&path)
            } else {
                Vec::new()
            };
            (path, entry, bytes)
        })
        .collect()
}
