//! A real S3 server with a real s3fs mount of it, and between the two a wire that can be slow, hang or be cut.

use std::{
    fs::{self, File},
    io::Read,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::unistd::Pid;

use super::{PATIENCE, eventually, free_port, http};

pub const BUCKET: &str = "agent";

/// A process that ends with its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// moto's S3 server with one bucket. What is in it outlives every mount.
pub struct S3 {
    _server: Owned,
    pub port: u16,
}

impl S3 {
    pub fn start() -> S3 {
        let packages = std::env::var_os("MOLTINIT_TEST_PYTHONPATH").expect("run the tests by ./scripts/test");
        let port = free_port();
        let server = Command::new("python3")
            .args([
                "-c",
                "from moto.server import main; main()",
                "-H",
                "127.0.0.1",
                "-p",
                &port.to_string(),
            ])
            .env("PYTHONPATH", packages)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let server = Owned(server);
        eventually("the S3 server's bucket", PATIENCE, || {
            http::request("PUT", port, &format!("/{BUCKET}"), None, "")
                .ok()
                .filter(|answer| answer.status == 200)
        });
        S3 { _server: server, port }
    }

    /// The bytes of an object.
    pub fn object(&self, key: &str) -> Vec<u8> {
        self.at(key, &[]).output().expect("curl").stdout
    }

    /// Puts an object, past any mount.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let mut curl = self
            .at(key, &["--upload-file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("curl");
        std::io::Write::write_all(&mut curl.stdin.take().expect("a pipe"), bytes).unwrap();
        let done = curl.wait().unwrap();
        assert!(done.success(), "put {key}: {done}");
    }

    fn at(&self, key: &str, args: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail"])
            .args(args)
            .arg(format!("http://127.0.0.1:{}/{BUCKET}/{key}", self.port));
        curl
    }

    /// The keys in the bucket, as the server has them, in order.
    pub fn keys(&self) -> Vec<String> {
        let listing = http::get(self.port, &format!("/{BUCKET}?list-type=2&max-keys=1000"), None)
            .unwrap()
            .body;
        let keys = listing
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split("</Key>").next());
        keys.map(str::to_owned).collect()
    }
}

/// A wire to the S3 server that can be told to be slow, to hang, or to break.
pub struct Wire {
    _forwarder: Owned,
    port: u16,
    control: u16,
}

impl Wire {
    pub fn to(s3: &S3, delay_ms: u32) -> Wire {
        let (port, control) = (free_port(), free_port());
        let forwarder = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/slow-tcp.py"))
            .args([port.to_string(), s3.port.to_string()])
            .args([
                "--delay-ms".into(),
                delay_ms.to_string(),
                "--control".into(),
                control.to_string(),
            ])
            .spawn()
            .expect("python3");
        let wire = Wire {
            _forwarder: Owned(forwarder),
            port,
            control,
        };
        eventually("the wire", PATIENCE, || TcpStream::connect(("127.0.0.1", control)).ok());
        wire
    }

    /// `hang`, `cut` or `ok`.
    pub fn tell(&self, word: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.control)).unwrap();
        std::io::Write::write_all(&mut stream, word.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

/// An s3fs mount of the bucket.
pub struct Mount {
    s3fs: Child,
    pub path: PathBuf,
}

impl Mount {
    /// Mounts the bucket on `dir/data`, with the options that Cloudflare's Sandbox SDK gives.
    pub fn of(s3: &S3, dir: &Path) -> Mount {
        Mount::at_port(s3.port, dir)
    }

    pub fn through(wire: &Wire, dir: &Path) -> Mount {
        Mount::at_port(wire.port, dir)
    }

    fn at_port(port: u16, dir: &Path) -> Mount {
        let path = dir.join("data");
        fs::create_dir_all(&path).unwrap();
        let passwords = dir.join("passwd-s3fs");
        fs::write(&passwords, "key:secret").unwrap();
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
        let options = format!(
            "passwd_file={},url=http://127.0.0.1:{port},use_path_request_style,nomixupload,\
             stat_cache_expire=60,enable_noobj_cache,multipart_size=5,retries=2",
            passwords.display()
        );
        let s3fs = Command::new("s3fs")
            .args([BUCKET, path.to_str().unwrap(), "-f", "-o", &options])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("s3fs.log")).unwrap())
            .spawn()
            .expect("s3fs");
        let mount = Mount { s3fs, path };
        eventually("the s3fs mount", PATIENCE, || mount.is_there().then_some(()));
        mount
    }

    pub fn s3fs(&self) -> Pid {
        Pid::from_raw(self.s3fs.id() as i32)
    }

    /// s3fs dies as it is: every call on the mount fails from now on.
    pub fn kill(&mut self) {
        self.s3fs.kill().unwrap();
    }

    pub fn is_there(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = self.path.to_str().unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that it cannot hang, and before s3fs ends, so that no dead mount is left.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = self.s3fs.kill();
        let _ = self.s3fs.wait();
    }
}
