//! What the gateway reads at its start, read ahead of it. A container has nothing of its image in memory when it begins, and
//! Node reads ten thousand small files one after the other.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc::O_NONBLOCK,
};
use tracing::debug;

/// Beside what Node has compiled: the files that a start reads, a path a line, in that order; those in the same directory
/// by their path in it. `scripts/warm-openclaw` writes it.
const LIST: &str = "files";
/// Each waits for one file at a time.
const READERS: usize = 4;

/// Has the kernel read what the list in `compiled` names, in the background; where there is none, nothing. What fails here
/// the gateway reads by itself.
pub fn read(compiled: &Path) -> Vec<JoinHandle<()>> {
    let Ok(list) = File::open(compiled.join(LIST)) else {
        return Vec::new();
    };
    let compiled = compiled.to_owned();
    let lines = BufReader::new(list).lines().map_while(Result::ok);
    let files = Arc::new(Mutex::new(lines.map(move |line| compiled.join(line))));
    let begin = |_| {
        let files = Arc::clone(&files);
        let next = move || files.lock().unwrap_or_else(PoisonError::into_inner).next();
        let reader = move || std::iter::from_fn(next).for_each(|file: PathBuf| read_one(&file));
        let begun = thread::Builder::new().name("ahead".into()).spawn(reader);
        begun
            .inspect_err(|error| debug!(%error, "the gateway's files are not read ahead of it"))
            .ok()
    };
    (0..READERS).filter_map(begin).collect()
}

fn read_one(file: &Path) {
    // A pipe would wait for somebody to write.
    let open = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(file);
    let asked = open.map(|open| posix_fadvise(open, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED));
    if !matches!(asked, Ok(Ok(()))) {
        debug!(file = %file.display(), "cannot be read ahead");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// That what can be read is in memory afterwards shows in `tests/it/services.rs`.
    #[test]
    fn what_cannot_be_read_is_passed_over_and_nothing_is_waited_for() {
        let compiled = tempfile::tempdir().unwrap();
        let at = |name: &str| compiled.path().join(name);
        assert!(read(compiled.path()).is_empty(), "there is no list");
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        fs::write(at(LIST), b"pipe\n\ngone\n/proc/self/mem\n\xff\n").unwrap();
        let readers = read(compiled.path());
        assert_eq!(readers.len(), READERS);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    }
}
