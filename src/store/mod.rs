//! A directory of immutable objects, mounted or plain, that may hang, vanish, fill up or be swapped at any moment.
//!
//! An object is written once, whole, and never renamed, appended to or overwritten; on s3fs anything else would
//! be a copy of it all. Every call blocks its caller until the store answered or the call's deadline passed, and
//! the work itself happens on a few threads that may be lost to a hung mount ([`pool`]). Call it from threads
//! that may wait, never from the runtime's.

mod directory;
mod error;
#[cfg(test)]
pub mod faulty;
#[cfg(any(test, fuzzing))]
pub mod memory;
pub mod mounts;
mod place;
mod pool;
pub mod s3fs;

use std::{
    fs::{File, Metadata},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use error::StoreError;
use pool::{NoAnswer, Pool};

/// What kind of place the store's directory has to be. Wherever it is at the first call, there it has to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Any directory; made when it is missing.
    Directory,
    /// A directory that is there already; a missing one is a mistake in its name.
    Existing,
    /// On a mount at this point or below it: the store's directory itself or one above it. Where no such mount is, every
    /// call fails with [`StoreError::NotAMount`] and nothing is written.
    MountAt(PathBuf),
}

/// A name in a listing; sorts by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub name: String,
    pub is_dir: bool,
}

/// How long a call may take before it is given up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Any call, whatever it moves.
    pub call: Duration,
    /// On top of it, for each MiB that is read or written.
    pub per_mib: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            call: Duration::from_secs(30),
            per_mib: Duration::from_secs(2),
        }
    }
}

/// The blocking calls behind a [`Store`]; each but `anchor` may take for ever.
trait Backend: Send + Sync + 'static {
    fn anchor(&self, _name: &str) {}
    fn check(&self) -> Result<(), StoreError>;
    fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError>;
    fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError>;
    fn open(&self, name: &str) -> Result<(File, Metadata), StoreError>;
    fn read(&self, name: &str, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, StoreError>;
    fn delete(&self, name: &str) -> Result<(), StoreError>;
    fn delete_dir(&self, name: &str) -> Result<(), StoreError>;
    /// See [`Store::operations`]. Does not block.
    fn operations(&self, len: u64) -> u64;
}

/// Calls in flight at one time: enough to hide an object store's latency while restoring.
const THREADS: usize = 8;

/// A handle on the store, cheap to clone. Names are relative, with `/` between their parts.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    patience: Patience,
    backend: Arc<dyn Backend>,
    pool: Arc<Pool>,
    mounts: Arc<mounts::Table>,
}

impl Store {
    /// A store in `dir`, which is not touched before the first call.
    pub fn open(dir: &Path, expect: Expect, patience: Patience) -> Store {
        Store::with(dir, patience, directory::Directory::new(dir.to_owned(), expect))
    }

    fn with(dir: &Path, patience: Patience, backend: impl Backend) -> Store {
        Store {
            root: dir.to_owned(),
            patience,
            backend: Arc::new(backend),
            pool: Arc::new(Pool::new(THREADS)),
            mounts: Arc::new(mounts::Table::open()),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Calls that were given up and have not returned yet.
    pub fn stuck(&self) -> usize {
        self.pool.stuck()
    }

    /// Whether the directory is on the mount where it has to be. Every other call checks it too.
    pub fn check(&self) -> Result<(), StoreError> {
        self.call("checking", "", 0, |backend, _| backend.check())
    }

    /// From now on the store is known by an object that is in it. Where the mounts have changed and it is not there any
    /// more, something else is in the store's place, and every call fails with [`StoreError::Swapped`].
    pub fn anchor(&self, name: &str) {
        self.backend.anchor(name);
    }

    /// What is directly in `dir`, sorted; nothing if there is certainly no such directory.
    pub fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError> {
        self.call("listing", dir, 0, |backend, dir| backend.list(dir))
    }

    /// Writes the first `len` bytes of `body` as a new object, and returns when the store has taken them for good.
    ///
    /// After an error the object may or may not be there, even appear later: give the name up and use another.
    pub fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError> {
        let body = body.try_clone().map_err(|source| StoreError::Io {
            what: "spooling",
            path: self.root.join(name),
            source,
        })?;
        self.call("writing", name, len, move |backend, name| backend.put(name, &body, len))
    }

    /// Writing operations (class A, as buckets charge them) that a new object of `len` bytes takes.
    pub fn operations(&self, len: u64) -> u64 {
        self.backend.operations(len)
    }

    /// Opens an object for reading. [`StoreError::NotFound`] is certain.
    pub fn get(&self, name: &str) -> Result<Object, StoreError> {
        let (file, meta) = self.call("opening", name, 0, |backend, name| backend.open(name))?;
        Ok(Object {
            store: self.clone(),
            name: name.to_owned(),
            meta,
            file: Some(Arc::new(file)),
        })
    }

    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.call("deleting", name, 0, |backend, name| backend.delete(name))
    }

    /// Removes a directory if it is empty, and leaves it if it is not.
    pub fn delete_dir(&self, name: &str) -> Result<(), StoreError> {
        self.call("removing", name, 0, |backend, name| backend.delete_dir(name))
    }

    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        name: &str,
        bytes: u64,
        job: impl FnOnce(&dyn Backend, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let after = self.patience.call + self.patience.per_mib * mib;
        let backend = Arc::clone(&self.backend);
        let owned = name.to_owned();
        let path = || self.root.join(name);
        self.pool.look_at_mounts(self.mounts.changes());
        match self.pool.call(after, move || job(&*backend, &owned)) {
            Ok(answer) => answer,
            Err(NoAnswer::TimedOut) => Err(StoreError::TimedOut {
                what,
                path: path(),
                after,
            }),
            Err(NoAnswer::Stuck(stuck)) => Err(StoreError::Stuck {
                what,
                path: path(),
                stuck,
            }),
        }
    }
}

/// An object open for reading. What it holds cannot change, only be cut short or damaged.
pub struct Object {
    store: Store,
    name: String,
    meta: Metadata,
    file: Option<Arc<File>>,
}

impl Object {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn len(&self) -> u64 {
        self.meta.len()
    }

    /// What the store says of it beside its bytes. Of little worth on a bucket that others wrote to.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// True of an object that is just being written, or whose writer died.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in `range`, fewer if the object ends before it does.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let bytes = range.end.min(self.len()).saturating_sub(range.start);
        let Some(file) = self.file.clone() else {
            return Ok(Vec::new());
        };
        self.store.call("reading", &self.name, bytes, move |backend, name| {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            backend.read(name, &file, range.start, len)
        })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // Closing a file is a call on the mount like any other, and can hang like any other.
        let file = self.file.take();
        self.store.pool.send(move || drop(file));
    }
}

#[cfg(test)]
mod tests;
