//! A store in memory that counts what a bucket would charge for, for simulations.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs::{File, Metadata},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Backend, Item, Patience, Store, StoreError};

/// What is in the store, and what it took.
#[derive(Debug, Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Vec<u8>>,
    dirs: BTreeSet<String>,
    /// Class A operations (PUT, LIST) that s3fs makes of the calls. A new object is looked for (LIST) and written (PUT);
    /// a new directory is an object; reading a directory is a LIST for each thousand names, and to remove one it is
    /// looked into twice (LIST). Deleting is free.
    pub class_a: u64,
}

/// A store and the bucket behind it.
pub fn store() -> (Store, Arc<Mutex<Bucket>>) {
    let bucket = Arc::<Mutex<Bucket>>::default();
    let memory = Memory(Arc::clone(&bucket));
    (Store::with(Path::new("/memory"), Patience::default(), memory), bucket)
}

struct Memory(Arc<Mutex<Bucket>>);

fn not_found(name: &str) -> StoreError {
    StoreError::NotFound {
        path: PathBuf::from(name),
    }
}

impl Backend for Memory {
    fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError> {
        let mut bucket = self.0.lock().unwrap();
        let below = format!("{dir}/");
        let mut items = BTreeSet::new();
        for name in bucket.objects.keys().chain(&bucket.dirs) {
            if let Some(rest) = name.strip_prefix(&below) {
                let (name, is_dir) = match rest.split_once('/') {
                    Some((name, _)) => (name, true),
                    None => (rest, bucket.dirs.contains(name)),
                };
                items.insert(Item {
                    name: name.to_owned(),
                    is_dir,
                });
            }
        }
        bucket.class_a += 1 + items.len() as u64 / 1000;
        Ok(items.into_iter().collect())
    }

    fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError> {
        let mut bytes = vec![0; len as usize];
        body.read_exact_at(&mut bytes, 0).unwrap();
        let mut bucket = self.0.lock().unwrap();
        for (at, _) in name.match_indices('/') {
            if bucket.dirs.insert(name[..at].to_owned()) {
                bucket.class_a += 2;
            }
        }
        bucket.class_a += super::s3fs::operations(len);
        let before = bucket.objects.insert(name.to_owned(), bytes);
        assert!(before.is_none(), "{name} was overwritten");
        Ok(())
    }

    fn open(&self, name: &str) -> Result<(File, Metadata), StoreError> {
        let bucket = self.0.lock().unwrap();
        let bytes = bucket.objects.get(name).ok_or_else(|| not_found(name))?;
        let anonymous: &CStr = c"object";
        let mut file = File::from(
            memfd_create(anonymous, MFdFlags::MFD_CLOEXEC)
                .map_err(io::Error::from)
                .unwrap(),
        );
        file.write_all(bytes).unwrap();
        let meta = file.metadata().unwrap();
        Ok((file, meta))
    }

    fn read(&self, _: &str, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap();
        Ok(bytes)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let found = self.0.lock().unwrap().objects.remove(name);
        found.map(drop).ok_or_else(|| not_found(name))
    }

    fn delete_dir(&self, name: &str) -> Result<(), StoreError> {
        let mut bucket = self.0.lock().unwrap();
        bucket.class_a += 2;
        let below = format!("{name}/");
        let is_empty = !bucket
            .objects
            .keys()
            .chain(&bucket.dirs)
            .any(|name| name.starts_with(&below));
        if is_empty {
            bucket.dirs.remove(name);
        }
        Ok(())
    }

    fn operations(&self, len: u64) -> u64 {
        super::s3fs::operations(len)
    }
}
