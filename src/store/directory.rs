//! The store's calls on a real directory, mounted or plain. Every function here may block for ever; only the
//! threads of [`super::pool`] call them.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::{
    Backend, Expect, Item, StoreError,
    mounts::{self, Mount},
    place::Place,
    s3fs,
};

/// A directory, and the place that it has to be in.
pub struct Directory {
    place: Place,
}

const COPY: usize = 1 << 20;

impl Directory {
    pub fn new(root: PathBuf, expect: Expect) -> Directory {
        Directory {
            place: Place::new(root, expect),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.root().join(name)
    }

    /// What `act` makes of `path`; `None` if that is not there, as opposed to not known.
    fn known<T>(
        &self,
        what: &'static str,
        path: &Path,
        act: impl Fn(&Path) -> io::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let fail = |error| StoreError::from_io(what, path.to_owned(), error);
        // Twice: having listed it, a mount may know better.
        for _ in 0..2 {
            match act(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(Some).map_err(fail),
            }
            if self.place.is_absent(path).map_err(fail)? {
                // Of the store, and not of what is in its place now.
                return self.place.check().map(|()| None);
            }
        }
        Err(StoreError::Unsure { path: path.to_owned() })
    }

    /// The directories above an object, made one by one. The mount's own is never made: that would be the plain
    /// directory that swallows commits.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let mut dir = self.place.top().to_owned();
        let below = path.strip_prefix(&dir).unwrap_or(path);
        for part in below.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let create = || OpenOptions::new().write(true).create_new(true).open(path);
        match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parents(path)?;
                create()
            }
            other => other,
        }
    }

    fn write(&self, file: File, body: &File, len: u64) -> io::Result<()> {
        let mut file = file;
        let mut buffer = vec![0; COPY.min(usize::try_from(len).unwrap_or(COPY))];
        let mut at = 0;
        while at < len {
            let want = usize::try_from(len - at).unwrap_or(COPY).min(buffer.len());
            body.read_exact_at(&mut buffer[..want], at)?;
            file.write_all(&buffer[..want])?;
            at += want as u64;
        }
        match file.sync_all() {
            Err(error) if !matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOSYS)) => {
                return Err(error);
            }
            _ => {}
        }
        // s3fs reports a failed upload from `close`, and dropping a `File` would not tell.
        nix::unistd::close(file.into_raw_fd())?;
        Ok(())
    }
}

fn entries(path: &Path) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Names of ours are ASCII; of whatever else lies in the bucket it is enough that it is seen.
        let name = entry.file_name().to_string_lossy().into_owned();
        // Where the listing does not tell, it is looked at, and that says nothing of the directory.
        let kind = entry.file_type().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!("`{name}` is listed and cannot be looked at")),
            _ => error,
        })?;
        let is_dir = kind.is_dir();
        items.push(Item { name, is_dir });
    }
    items.sort();
    Ok(items)
}

impl Backend for Directory {
    fn check(&self) -> Result<(), StoreError> {
        self.place.check()
    }

    fn anchor(&self, name: &str) {
        self.place.anchor(name);
    }

    fn list(&self, dir: &str) -> Result<Vec<Item>, StoreError> {
        self.place.check()?;
        Ok(self.known("listing", &self.path(dir), entries)?.unwrap_or_default())
    }

    fn put(&self, name: &str, body: &File, len: u64) -> Result<(), StoreError> {
        let path = self.path(name);
        let fail = |error| StoreError::from_io("writing", path.clone(), error);
        self.place.check()?;
        let file = self.create(&path).map_err(fail)?;
        let mount = mounts::of(&file);
        // A new name is durable once its directory is; an object store has no such thing.
        let sync_parent = !mount.as_ref().is_ok_and(Mount::is_fuse);
        // Asked of the file itself: no mount can go away between this look and the writing.
        let written = self.place.must_be_on(mount).and_then(|_| {
            self.write(file, body, len).map_err(fail)?;
            match path.parent() {
                Some(parent) if sync_parent => File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail),
                _ => Ok(()),
            }
        });
        if written.is_err() {
            // Ours, and not whole: readers would only pass over it. Best effort, the store is in trouble already.
            let _ = fs::remove_file(&path);
        }
        written
    }

    fn open(&self, name: &str) -> Result<(File, Metadata), StoreError> {
        self.place.check()?;
        let path = self.path(name);
        let open = |path: &Path| {
            // No object of a store is a link, and none is a pipe to wait for.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
            let meta = file.metadata()?;
            Ok((file, meta))
        };
        self.known("opening", &path, open)?.ok_or(StoreError::NotFound { path })
    }

    fn read(&self, name: &str, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::from_io("reading", self.path(name), error)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        self.place.check()?;
        fs::remove_file(&path).map_err(|error| StoreError::from_io("deleting", path.clone(), error))
    }

    fn delete_dir(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        self.place.check()?;
        match fs::remove_dir(&path) {
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOTEMPTY | nix::libc::EEXIST)) => Ok(()),
            other => other.map_err(|error| StoreError::from_io("removing", path.clone(), error)),
        }
    }

    fn operations(&self, len: u64) -> u64 {
        if self.place.is_fuse() { s3fs::operations(len) } else { 1 }
    }
}
