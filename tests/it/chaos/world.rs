//! What a container has around it, and what can be done to it there.

use std::{fs, path::PathBuf};

use rand::RngExt;

use super::{
    Campaign,
    neighbours::{Clock, Full, SmallDisk, fickle_browser, moody_receiver},
};
use crate::support::{
    free_port,
    s3::{Mount, S3, Wire},
};

pub const CALLBACK_SECRET: &str = "whsec_Y2hhb3MtY2FuYXJ5LW9mLWNhbGxiYWNrcw==";

/// Where the snapshots are.
pub enum Store {
    /// In a bucket at the end of a wire, which this host mounts.
    Bucket {
        s3: S3,
        wire: Wire,
        host: Option<(Mount, tempfile::TempDir)>,
    },
    Disk(SmallDisk),
}

impl Store {
    pub fn bucket() -> Store {
        let s3 = S3::start();
        let wire = Wire::to(&s3, 5);
        Store::Bucket { s3, wire, host: None }
    }

    /// Where it is, and works.
    pub fn path(&mut self) -> PathBuf {
        match self {
            Store::Disk(disk) => disk.root().to_owned(),
            Store::Bucket { wire, host, .. } => {
                let (mount, _) = host.get_or_insert_with(|| {
                    let dir = tempfile::tempdir().unwrap();
                    (Mount::through(wire, dir.path()), dir)
                });
                mount.path.clone()
            }
        }
    }

    /// The last of its segments, whole.
    fn segment(&self) -> Option<Vec<u8>> {
        match self {
            Store::Bucket { s3, .. } => {
                let keys = s3.keys();
                Some(s3.object(keys.iter().rfind(|key| key.ends_with(".seg"))?))
            }
            Store::Disk(disk) => {
                let mut below = vec![disk.path("default/v1")];
                while let Some(path) = below.pop() {
                    match fs::read_dir(&path) {
                        Ok(entries) => below.extend(entries.flatten().map(|entry| entry.path())),
                        Err(_) if path.extension().is_some_and(|kind| kind == "seg") => return fs::read(path).ok(),
                        Err(_) => {}
                    }
                }
                None
            }
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        match self {
            Store::Bucket { s3, .. } => s3.put(key, bytes),
            Store::Disk(disk) => {
                let path = disk.path(key);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                // Where there is no room it is torn all the more.
                let _ = fs::write(path, bytes);
            }
        }
    }
}

/// A store, a disk for the state and one for moltinit itself, the time, a browser, and a receiver of callbacks.
pub struct World {
    pub store: Store,
    pub state: SmallDisk,
    pub own: SmallDisk,
    /// What is full until something else happens, or to the end.
    pub full: Option<Full>,
    pub clock: Clock,
    pub cdp: u16,
    receiver: u16,
    browser: u16,
}

impl World {
    pub fn new(seed: u64, store: Store) -> World {
        World {
            store,
            state: SmallDisk::new(1024),
            own: SmallDisk::new(1024),
            full: None,
            clock: Clock::new(),
            cdp: 0,
            receiver: moody_receiver(seed),
            browser: fickle_browser(seed),
        }
    }

    /// A container's, which finds the same as the one before at the same places.
    pub fn environment(&mut self) -> Vec<(String, String)> {
        self.cdp = free_port();
        let path = |disk: &SmallDisk, name| disk.path(name).to_str().unwrap().to_owned();
        let mut env = self.clock.environment().to_vec();
        env.extend([
            ("MOLTINIT_CALLBACK_URL", format!("http://127.0.0.1:{}/", self.receiver)),
            ("MOLTINIT_CALLBACK_SECRET", CALLBACK_SECRET.to_owned()),
            ("MOLTINIT_CDP_UPSTREAM", format!("ws://127.0.0.1:{}/", self.browser)),
            ("MOLTINIT_CDP_ADDR", format!("127.0.0.1:{}", self.cdp)),
            ("MOLTINIT_DATA_DIR", path(&self.own, "data")),
            ("MOLTINIT_RUN_DIR", path(&self.own, "run")),
            ("OPENCLAW_STATE_DIR", path(&self.state, "state")),
        ]);
        env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// All is well again, and the disks are new ones.
    pub fn renew(&mut self) {
        self.full = None;
        self.clock.shift(0);
        self.state.wipe();
        self.own.wipe();
    }

    /// What a writer leaves that dies in a generation of its own: an object without its end, and one without anything.
    pub fn tear(&self, campaign: &mut Campaign) {
        let Some(whole) = self.store.segment() else { return };
        let now = ulid::Ulid::generate().timestamp_ms();
        let generation = ulid::Ulid::from_parts(now, campaign.rng.random());
        let name = match campaign.reported.as_str() {
            "" => generation.to_string(),
            base => format!("{generation}.from.{base}"),
        };
        let cut = campaign.rng.random_range(0..=whole.len().saturating_sub(1));
        for (seq, part) in [(0, &whole[..cut]), (1, &[][..])] {
            self.store.put(&format!("default/v1/{name}/000000/{seq:08}.seg"), part);
        }
    }
}
