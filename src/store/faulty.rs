//! A store that fails on demand, for tests of its users.

use std::{
    fs::{self, File, Metadata},
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::{Backend, Expect, Item, Patience, Store, StoreError, directory::Directory};

/// What every call does from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Blocks until the fault is another one. Where the store is, the kernel knows without asking its server.
    Hang,
    /// Fails with this errno.
    Errno(i32),
    /// Objects of which the name has this in it fail with EIO when they are read; other calls work.
    Unreadable(String),
    /// `put` leaves this many bytes behind and fails with EIO; other calls work.
    CutPut(u64),
}

/// The switch of a faulty store.
#[derive(Clone)]
pub struct Faults(Arc<(Mutex<Fault>, Condvar)>);

impl Faults {
    pub fn set(&self, fault: Fault) {
        *self.0.0.lock().unwrap() = fault;
        self.0.1.notify_all();
    }

    fn suffer(&self, what: &'static str, path: &Path) -> Result<Fault, StoreError> {
        let fault = self
            .0
            .1
            .wait_while(self.0.0.lock().unwrap(), |fault| {
                *fault == Fault::Hang && what != "checking"
            })
            .unwrap();
        let fails = |errno| {
            Err(StoreError::from_io(
                what,
                path.to_owned(),
                io::Error::from_raw_os_error(errno),
            ))
        };
        match &*fault {
            Fault::Errno(errno) => fails(*errno),
            Fault::Unreadable(name) if what == "reading" && path.to_string_lossy().contains(name) => {
                fails(nix::libc::EIO)
            }
            fault => Ok(fault.clone()),
        }
    }
}

/// A store on a plain directory, with a deadline of 100 ms a call, and its switch.
pub fn store(dir: &Path) -> (Store, Faults) {
    let faults = Faults(Arc::new((Mutex::new(Fault::None), Condvar::new())));
    let backend = Faulty {
        inner: Directory::new(dir.to_owned(), Expect::Directory),
        dir: dir.to_owned(),
        faults: faults.clone(),
    };
    let patience = Patience {
        call: Duration::from_millis(100),
        per_mib: Duration::from_secs(1),
    };
    (Store::with(dir, patience, backend), faults)
}

struct Faulty {
    inner: Directory,
    dir: std::path::PathBuf,
    faults: Faults,
}

impl Backend for Faulty {
    fn check(&self) -> Result<(), StoreError> {
        self.faults.suffer("checking", &self.dir)?;
        self.inner.check()
    }

    fn anchor(&self, name: &str) {
        self.inner.anchor(name);
    }

    fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError> {
        self.faults.suffer("listing", &self.dir)?;
        self.inner.list(dir)
    }

    fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError> {
        match self.faults.suffer("writing", &self.dir.join(name))? {
            Fault::CutPut(cut) => {
                self.inner.put(name, body, len)?;
                let path = self.dir.join(name);
                let cut = fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(cut));
                cut.expect("the faulty store cuts its own object");
                Err(StoreError::from_io(
                    "writing",
                    path,
                    io::Error::from_raw_os_error(nix::libc::EIO),
                ))
            }
            _ => self.inner.put(name, body, len),
        }
    }

    fn open(&self, name: &str) -> Result<(File, Metadata), StoreError> {
        self.faults.suffer("opening", &self.dir.join(name))?;
        self.inner.open(name)
    }

    fn read(&self, name: &str, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.faults.suffer("reading", &self.dir.join(name))?;
        self.inner.read(name, file, offset, len)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.faults.suffer("deleting", &self.dir.join(name))?;
        self.inner.delete(name)
    }

    fn delete_dir(&self, name: &str) -> Result<(), StoreError> {
        self.faults.suffer("removing", &self.dir.join(name))?;
        self.inner.delete_dir(name)
    }

    fn operations(&self, len: u64) -> u64 {
        self.inner.operations(len)
    }
}
