//! Which paths changed: inotify on every directory of the roots.
//!
//! A directory is watched first and then listed, so nothing made in it in between is missed; who lists is the
//! capture, which is why it places the watches (`inotify_add_watch` by `/proc/self/fd`, on the very directory that is
//! open). Events only name paths to look at again. Where events cannot be had (the queue ran over, the limit of
//! watches is reached), the answer is to scan, and to say so.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags as Flags, InitFlags, Inotify, InotifyEvent},
};

use crate::state::{
    changes::{Changes, Depth},
    exclude::excluded,
    model::TreePath,
    walk::{join, split},
};

const EVENTS: Flags = Flags::IN_MODIFY
    .union(Flags::IN_CLOSE_WRITE)
    .union(Flags::IN_ATTRIB)
    .union(Flags::IN_CREATE)
    .union(Flags::IN_DELETE)
    .union(Flags::IN_MOVED_FROM)
    .union(Flags::IN_MOVED_TO)
    .union(Flags::IN_DELETE_SELF)
    .union(Flags::IN_MOVE_SELF)
    .union(Flags::from_bits_retain(nix::libc::IN_EXCL_UNLINK)) // not what is written to deleted files
    .union(Flags::IN_ONLYDIR);

#[derive(Default)]
struct Seen {
    dirs: HashMap<i32, TreePath>,
    watches: BTreeMap<TreePath, nix::sys::inotify::WatchDescriptor>,
    changes: Changes,
    /// The waker has been called, and nobody has taken the changes since.
    woken: bool,
    /// Why some directories are not watched.
    blind: Option<String>,
    /// Why nothing is watched any more.
    failed: Option<String>,
}

struct Shared {
    inotify: Option<Inotify>,
    seen: Mutex<Seen>,
}

/// The watch. Ends with its thread when dropped.
pub struct Watch {
    shared: Arc<Shared>,
    stop: Option<UnixStream>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching nothing. `wake` is called on the watch's own thread when changes wait to be taken, once until
    /// they are. Without inotify the watch is [blind](Watch::blind) but works.
    pub fn start(wake: impl Fn() + Send + 'static) -> Watch {
        let mut seen = Seen::default();
        let parts = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|inotify| Ok((inotify, UnixStream::pair()?)));
        let (inotify, pipe) = match parts {
            Ok((inotify, pipe)) => (Some(inotify), Some(pipe)),
            Err(error) => {
                seen.blind = Some(format!("inotify is not available: {error}"));
                (None, None)
            }
        };
        let shared = Arc::new(Shared {
            inotify,
            seen: Mutex::new(seen),
        });
        let (stop, reader) = match pipe {
            None => (None, None),
            Some((stop, stopped)) => {
                let mine = Arc::clone(&shared);
                let reader = std::thread::Builder::new()
                    .name("state-watch".into())
                    .spawn(move || mine.watch(&stopped, &wake));
                match reader {
                    Ok(reader) => (Some(stop), Some(reader)),
                    Err(error) => {
                        shared.seen().blind = Some(format!("no thread for inotify: {error}"));
                        (None, None)
                    }
                }
            }
        };
        Watch { shared, stop, reader }
    }

    /// Watches the directory that is open as `dir` under the name `path`. A directory that moved since is known by
    /// its new name from here on.
    pub fn dir(&self, path: &[u8], dir: BorrowedFd<'_>) {
        let Some(inotify) = self.shared.inotify.as_ref().filter(|_| self.reader.is_some()) else {
            return;
        };
        let mut seen = self.shared.seen();
        if seen.failed.is_some() {
            return;
        }
        match inotify.add_watch(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str(), EVENTS) {
            Ok(wd) => {
                let before = seen.dirs.insert(wd.as_raw(), path.to_vec());
                if let Some(before) = before.filter(|before| before != path) {
                    seen.watches.remove(&before);
                }
                seen.watches.insert(path.to_vec(), wd);
            }
            Err(Errno::ENOSPC) => {
                seen.blind = Some(
                    "the limit of inotify watches is reached (fs.inotify.max_user_watches); the rest is found by scanning"
                        .into(),
                );
            }
            Err(error) => seen.blind = Some(format!("a directory cannot be watched: {error}")),
        }
    }

    /// Takes what changed, including what the kernel has queued up to this moment.
    pub fn take(&self) -> Changes {
        let mut seen = self.shared.seen();
        self.shared.drain(&mut seen);
        seen.woken = false;
        std::mem::take(&mut seen.changes)
    }

    /// Why some directories are not watched, if so. A full scan places the watches again: [`Watch::forget_blindness`]
    /// before it.
    pub fn blind(&self) -> Option<String> {
        let seen = self.shared.seen();
        seen.failed.clone().or_else(|| seen.blind.clone())
    }

    pub fn forget_blindness(&self) {
        if self.reader.is_some() {
            self.shared.seen().blind = None;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until it is stopped. Whatever else ends it leaves the watch blind, and is said.
    fn watch(&self, stopped: &UnixStream, wake: &impl Fn()) {
        let why = match catch_unwind(AssertUnwindSafe(|| self.read(stopped, wake))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("inotify failed: {error}"),
            Err(_) => "the watch failed".to_owned(),
        };
        {
            let mut seen = self.seen();
            seen.failed = Some(why);
            seen.changes.lost("the watch failed");
            seen.woken = true;
        }
        wake();
    }

    fn read(&self, stopped: &UnixStream, wake: &impl Fn()) -> Result<(), Errno> {
        let Some(inotify) = &self.inotify else { return Ok(()) };
        loop {
            let mut ready = [
                PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
            if ready[1].revents().is_some_and(|events| !events.is_empty()) {
                return Ok(());
            }
            let mut seen = self.seen();
            self.drain(&mut seen);
            let wanted = !seen.changes.is_empty() && !std::mem::replace(&mut seen.woken, true);
            drop(seen);
            if wanted {
                wake();
            }
        }
    }

    fn drain(&self, seen: &mut Seen) {
        let Some(inotify) = &self.inotify else { return };
        while let Ok(events) = inotify.read_events() {
            for event in &events {
                seen.note(inotify, event);
            }
        }
    }
}

impl Seen {
    fn note(&mut self, inotify: &Inotify, event: &InotifyEvent) {
        if event.mask.contains(Flags::IN_Q_OVERFLOW) {
            tracing::warn!(
                "the queue of inotify ran over (fs.inotify.max_queued_events): everything is looked at again"
            );
            self.changes.lost("the queue of inotify ran over");
            return;
        }
        if event.mask.contains(Flags::IN_IGNORED) {
            if let Some(path) = self.dirs.remove(&event.wd.as_raw())
                && self.watches.get(&path) == Some(&event.wd)
            {
                self.watches.remove(&path);
            }
            return;
        }
        let Some(dir) = self.dirs.get(&event.wd.as_raw()) else {
            return;
        };
        let is_dir = event.mask.contains(Flags::IN_ISDIR);
        let path = match &event.name {
            Some(name) => join(dir, name.as_bytes()),
            // Of the directory itself; its parent tells the same by name, but a root has no watched parent.
            None => dir.clone(),
        };
        let (root, rel) = split(&path);
        if !rel.is_empty() && excluded(root, rel, is_dir).is_some() {
            return;
        }
        // What SQLite does to its sidecars whenever a database is opened and closed, by us too: that is no change, and
        // would wake us for ever.
        let sidecar = path.ends_with(b"-wal") || path.ends_with(b"-shm");
        if sidecar && (Flags::IN_CLOSE_WRITE | Flags::IN_ATTRIB).contains(event.mask) {
            return;
        }
        let moved_or_made = Flags::IN_CREATE | Flags::IN_MOVED_TO | Flags::IN_MOVED_FROM | Flags::IN_DELETE;
        let depth = if is_dir && event.mask.intersects(moved_or_made) {
            Depth::Below
        } else if event.mask.contains(Flags::IN_CLOSE_WRITE) {
            Depth::Written
        } else {
            Depth::Itself
        };
        if is_dir && event.mask.contains(Flags::IN_MOVED_FROM) {
            self.unwatch(inotify, &path);
        }
        self.changes.add(path, depth);
    }

    /// The directory at `path` went elsewhere with all below it; if that is in sight, it will be watched there.
    fn unwatch(&mut self, inotify: &Inotify, path: &[u8]) {
        let below = [path, b"/"].concat();
        let gone: Vec<TreePath> = self
            .watches
            .range(path.to_vec()..)
            .map(|(watched, _)| watched)
            .take_while(|watched| watched.starts_with(path))
            .filter(|watched| *watched == path || watched.starts_with(&below))
            .cloned()
            .collect();
        for path in gone {
            if let Some(wd) = self.watches.remove(&path) {
                self.dirs.remove(&wd.as_raw());
                // Fails when the directory is gone already, which ends its watch as well.
                let _ = inotify.rm_watch(wd);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
    };

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        watch: Watch,
        woken: mpsc::Receiver<()>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let (wake, woken) = mpsc::channel();
            let watch = Watch::start(move || {
                let _ = wake.send(());
            });
            let fixture = Fixture {
                dir: tempfile::tempdir().unwrap(),
                watch,
                woken,
            };
            fixture.watch_dir("");
            fixture
        }

        fn watch_dir(&self, rel: &str) {
            let open = fs::File::open(self.dir.path().join(rel)).unwrap();
            let path = if rel.is_empty() {
                b"state".to_vec()
            } else {
                join(b"state", rel.as_bytes())
            };
            self.watch.dir(&path, open.as_fd());
        }

        fn changed(&self) -> Vec<(String, Depth)> {
            let changes = self.watch.take();
            assert_eq!(changes.rescan, None);
            let mut paths: Vec<_> = changes
                .paths
                .into_iter()
                .map(|(path, depth)| (crate::state::walk::show(&path), depth))
                .collect();
            paths.sort();
            paths
        }
    }

    #[test]
    fn what_changed_is_named_and_the_waker_called_once() {
        let f = Fixture::new();
        fs::write(f.dir.path().join("a"), "1").unwrap();
        f.woken.recv().unwrap();
        fs::write(f.dir.path().join("b"), "1").unwrap();
        assert_eq!(
            f.changed(),
            [("state/a".into(), Depth::Written), ("state/b".into(), Depth::Written)]
        );
        assert!(f.woken.try_recv().is_err());
        fs::remove_file(f.dir.path().join("a")).unwrap();
        f.woken.recv().unwrap();
        assert_eq!(f.changed(), [("state/a".into(), Depth::Itself)]);
    }

    #[test]
    fn reading_and_what_is_left_out_are_no_changes() {
        let f = Fixture::new();
        fs::write(f.dir.path().join("a"), "1").unwrap();
        f.changed();
        fs::read(f.dir.path().join("a")).unwrap();
        fs::create_dir(f.dir.path().join("tmp")).unwrap();
        fs::write(f.dir.path().join("x.1.lock"), "").unwrap();
        assert_eq!(f.changed(), []);
    }

    #[test]
    fn a_moved_directory_is_known_by_its_new_name() {
        let f = Fixture::new();
        fs::create_dir_all(f.dir.path().join("a/b")).unwrap();
        f.watch_dir("a");
        f.watch_dir("a/b");
        f.changed();
        fs::rename(f.dir.path().join("a"), f.dir.path().join("c")).unwrap();
        assert_eq!(
            f.changed(),
            [("state/a".into(), Depth::Below), ("state/c".into(), Depth::Below)]
        );
        f.watch_dir("c");
        f.watch_dir("c/b");
        fs::write(f.dir.path().join("c/b/x"), "").unwrap();
        assert_eq!(f.changed(), [("state/c/b/x".into(), Depth::Written)]);
        // Placed again before the move has been heard of: the move must not take the new watch away.
        fs::rename(f.dir.path().join("c"), f.dir.path().join("d")).unwrap();
        f.watch_dir("d");
        f.watch_dir("d/b");
        f.changed();
        fs::write(f.dir.path().join("d/b/y"), "").unwrap();
        assert_eq!(f.changed(), [("state/d/b/y".into(), Depth::Written)]);
    }

    #[test]
    fn a_queue_that_runs_over_calls_for_a_full_look() {
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        fs::write(dir.path().join("b"), "").unwrap();
        let watch = Watch::start(|| {});
        let open = fs::File::open(dir.path()).unwrap();
        watch.dir(b"state", open.as_fd());
        // While somebody holds what was seen, nobody empties the queue. Of equal events in a row one is kept.
        let seen = watch.shared.seen();
        for n in 0..=most {
            fs::set_permissions(dir.path().join(["a", "b"][n % 2]), fs::Permissions::from_mode(0o600)).unwrap();
        }
        drop(seen);
        let changes = watch.take();
        assert!(
            changes.rescan.is_some_and(|why| why.contains("ran over")),
            "{changes:?}"
        );
        assert!(changes.since.is_some());
        assert_eq!(watch.blind(), None);
    }

    #[test]
    fn a_watch_whose_thread_has_failed_says_so_and_wakes() {
        let (wake, woken) = mpsc::channel();
        let first = AtomicBool::new(true);
        let watch = Watch::start(move || {
            let _ = wake.send(());
            assert!(!first.swap(false, Ordering::Relaxed), "a failure");
        });
        let dir = tempfile::tempdir().unwrap();
        watch.dir(b"state", fs::File::open(dir.path()).unwrap().as_fd());
        fs::write(dir.path().join("a"), "").unwrap();
        woken.recv().unwrap();
        woken.recv().unwrap();
        assert!(watch.take().rescan.is_some());
        watch.forget_blindness();
        assert!(watch.blind().is_some_and(|why| why.contains("failed")));
    }
}
