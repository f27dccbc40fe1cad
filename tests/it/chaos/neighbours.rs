//! Neighbours of a container that are not as they should be: disks, a clock, a receiver of callbacks, a browser.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::statvfs::statvfs;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::PATIENCE;
use crate::support::{compile, eventually};

/// A disk that can be filled: a file system of its own in memory, gone with this.
pub struct SmallDisk {
    point: tempfile::TempDir,
    mib: u64,
}

impl SmallDisk {
    /// Takes no memory but for what is on it.
    pub fn new(mib: u64) -> SmallDisk {
        let point = tempfile::tempdir().unwrap();
        assert!(mount(&format!("size={mib}m"), point.path()), "mount");
        SmallDisk { point, mib }
    }

    pub fn root(&self) -> &Path {
        self.point.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Leaves no room, until what this gives is dropped.
    pub fn fill(&self) -> Full {
        // What is written meanwhile would be more than there may be.
        eventually("a full disk", PATIENCE, || {
            let has = statvfs(self.root()).unwrap();
            let used = (has.blocks() - has.blocks_free()) * has.fragment_size();
            mount(&format!("remount,size={}", used.max(1)), self.root()).then_some(())
        });
        self.until_dropped()
    }

    /// Lets nobody write, until what this gives is dropped.
    pub fn protect(&self) -> Full {
        // Nobody may have a file open to write just then.
        eventually("a write-protected disk", PATIENCE, || {
            mount("remount,ro", self.root()).then_some(())
        });
        self.until_dropped()
    }

    fn until_dropped(&self) -> Full {
        Full {
            point: self.root().to_owned(),
            mib: self.mib,
        }
    }

    pub fn wipe(&self) {
        for entry in fs::read_dir(self.root()).unwrap().flatten() {
            let gone = match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
            gone.unwrap();
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.root()).status();
    }
}

/// A disk without room, or that lets nobody write.
pub struct Full {
    point: PathBuf,
    mib: u64,
}

impl Drop for Full {
    fn drop(&mut self) {
        mount(&format!("remount,rw,size={}m", self.mib), &self.point);
    }
}

fn mount(options: &str, point: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(point);
    mount.stderr(Stdio::null()).status().unwrap().success()
}

/// What moltinit and everything under it takes for the time of day.
pub struct Clock {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Clock {
    pub fn new() -> Clock {
        let dir = tempfile::tempdir().unwrap();
        let library = compile("clock", &["-O1", "-shared", "-fPIC"], dir.path());
        let clock = Clock { dir, library };
        clock.shift(0);
        clock
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("off")
    }

    pub fn shift(&self, days: i64) {
        // In place: it is mapped.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.file())
            .unwrap();
        file.write_all_at(&(days * 86_400).to_ne_bytes(), 0).unwrap();
    }

    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [("LD_PRELOAD", text(&self.library)), ("CHAOS_CLOCK", text(&self.file()))]
    }
}

/// A server of one answer a connection. The answer is made by `answer`; none: the connection is closed.
fn serve(seed: u64, mut answer: impl FnMut(&mut StdRng) -> (Duration, Option<String>) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut rng = StdRng::seed_from_u64(seed);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (slow, answer) = answer(&mut rng);
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 8192]);
                thread::sleep(slow);
                if let Some(answer) = answer {
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                }
            });
        }
    });
    port
}

/// A receiver of callbacks that does whatever comes to its mind.
pub fn moody_receiver(seed: u64) -> u16 {
    serve(seed, |rng| {
        let answer = match rng.random_range(0..6) {
            0 => "500 Internal Server Error",
            1 => "429 Too Many Requests\r\nRetry-After: 1",
            2 => "307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/",
            3 => "204 No Content",
            4 if rng.random_bool(0.1) => "410 Gone",
            _ => "200 OK",
        };
        let slow = Duration::from_millis(if rng.random_bool(0.2) { 700 } else { 0 });
        (slow, Some(answer.to_owned()))
    })
}

/// A browser that is never there.
pub fn fickle_browser(seed: u64) -> u16 {
    serve(seed, |rng| {
        let answer = match rng.random_range(0..4) {
            0 => None,
            1 => Some("403 Forbidden"),
            2 => Some("503 Service Unavailable"),
            _ => Some("101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade"),
        };
        (
            Duration::from_millis(rng.random_range(0..300)),
            answer.map(str::to_owned),
        )
    })
}

/// Asks for a browser at the local port as an agent does.
///
/// # Panics
/// It is neither accepted nor refused, or left without an end.
pub fn use_browser(cdp: u16) {
    let connect = || TcpStream::connect(("127.0.0.1", cdp)).ok();
    let mut stream = eventually("the browser port", PATIENCE, connect);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        stream,
        "GET /devtools/browser HTTP/1.1\r\nHost: 127.0.0.1:{cdp}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    // `{"id":1}` as a text frame, with a mask of zeros.
    stream
        .write_all(&[&[0x81, 0x88, 0, 0, 0, 0], b"{\"id\":1}".as_slice()].concat())
        .unwrap();
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    // Until the end, or the first byte of a Close frame after the head of the answer.
    loop {
        let count = match stream.read(&mut piece) {
            // What it has not read of ours when it hangs up is answered so.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            read => read.expect("an end of a session whose browser is gone"),
        };
        said.extend_from_slice(&piece[..count]);
        let body = said.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if count == 0 || body.is_some_and(|body| said.get(body) == Some(&0x88)) {
            break;
        }
    }
    assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
}
