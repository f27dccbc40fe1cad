//! An agent that never rests, in containers that die at random: what was reported committed is there in the next one.
//!
//! The gateway is `tests/tools/workload.py`, which holds what it finds when it wakes up against what it did in the life
//! before. A campaign is replayed by its seed, though not to the microsecond:
//!
//! * `MOLTINIT_CHAOS_SEED`: the seed; without it a new one, printed when something is wrong.
//! * `MOLTINIT_CHAOS_ROUNDS`: the number of containers of each campaign.

mod crash;
mod faults;
mod leaks;
mod watcher;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{
    container::{Container, Disk, with_gateway_and},
    eventually,
};

/// For a boot, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);

/// A row of containers, one after the other, over one store.
struct Campaign {
    seed: u64,
    rng: StdRng,
    disk: Disk,
    /// What the agent did and what it must find: outlives every container.
    ledgers: tempfile::TempDir,
    boots: u32,
    /// The newest commit that any status has shown.
    reported: String,
    /// Further environment of every container.
    env: Vec<(String, String)>,
}

impl Campaign {
    fn new() -> Campaign {
        let seed = variable("MOLTINIT_CHAOS_SEED").unwrap_or_else(|| rand::random::<u32>().into());
        Campaign {
            seed,
            rng: StdRng::seed_from_u64(seed),
            disk: Disk::new(),
            ledgers: tempfile::tempdir().unwrap(),
            boots: 0,
            reported: String::new(),
            env: Vec::new(),
        }
    }

    /// Up to that long.
    fn moment(&mut self, at_most_ms: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(0..at_most_ms * 1000))
    }

    /// Starts the next container.
    fn boot(&mut self, store: &Path) -> Boot {
        self.boots += 1;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/workload.py");
        let (seed, boot) = (self.seed.to_string(), self.boots.to_string());
        let state = self.disk.state();
        let ledgers = self.ledgers.path().to_str().unwrap();
        let command = ["python3", script, ledgers, &seed, &boot, state.to_str().unwrap()];
        let lives = self.lives();
        let env: Vec<(&str, &str)> = self
            .env
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let container = with_gateway_and(&self.disk, store, &format!("{command:?}"), &env);
        Boot { container, lives }
    }

    /// Waits until the agent of that boot has checked what was restored and is at work.
    ///
    /// # Panics
    /// Something is not as it must be.
    fn awake(&mut self, boot: &Boot) {
        let awake = || {
            self.check();
            (self.lives() > boot.lives).then_some(())
        };
        eventually(format_args!("the agent; log: {}", boot.container), PATIENCE, awake);
        let restored = boot.container.status()["restore"]["commit"].clone();
        let restored = restored.as_str().unwrap_or_default();
        assert!(
            restored >= self.reported.as_str(),
            "{restored:?} is restored, but {} was reported; log: {}",
            self.reported,
            boot.container
        );
    }

    /// # Panics
    /// The agent found what must not be.
    fn check(&self) {
        let found = fs::read_to_string(self.ledgers.path().join("violations")).unwrap_or_default();
        assert!(found.is_empty(), "{found}");
    }

    fn lives(&self) -> usize {
        let names = fs::read_dir(self.ledgers.path()).unwrap().flatten();
        names
            .filter(|entry| entry.path().extension().is_none() && entry.path().is_dir())
            .count()
    }

    fn life(&self) -> PathBuf {
        self.ledgers.path().join(format!("life-{:04}", self.lives()))
    }

    /// How long each ledger of this life is: what the agent has done up to now.
    fn lengths(&self) -> serde_json::Value {
        let entries = fs::read_dir(self.life()).unwrap().flatten();
        entries
            .map(|entry| {
                let length = entry.metadata().unwrap().len();
                (entry.file_name().into_string().unwrap(), length.into())
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// From now on everything up to those lengths has to be in every restore.
    fn require(&self, lengths: &serde_json::Value) {
        let life = self.life();
        fs::write(life.join("floor.new"), lengths.to_string()).unwrap();
        fs::rename(life.join("floor.new"), life.join("floor")).unwrap();
    }

    /// Asks for a snapshot; whether it was reported committed. Then what was done before is required, unless the
    /// answer says by a warning that something is not in.
    fn ask(&self, container: &Container) -> bool {
        let lengths = self.lengths();
        let Some(answer) = container.post("/snapshots").ok().filter(|answer| answer.status == 200) else {
            return false;
        };
        if answer.json()["warnings"].as_array().is_none_or(Vec::is_empty) {
            self.require(&lengths);
        }
        true
    }

    /// Notes the newest commit that the container says it has made.
    fn note_reported(&mut self, container: &Container) {
        if let Ok(answer) = container.get("/status")
            && let Some(commit) = answer.json()["snapshots"]["last"]["commit"].as_str()
        {
            self.reported = commit.to_owned();
        }
    }

    /// The last container ends by SIGTERM: then all that was ever done is there.
    fn finish(mut self, store: &Path) {
        let mut last = self.boot(store);
        self.awake(&last);
        last.container.signal(nix::sys::signal::Signal::SIGTERM);
        let status = last.container.wait(PATIENCE);
        assert_eq!(status.code(), Some(0), "{}", last.container);
        self.require(&self.lengths());
        self.disk.wipe();
        let after = self.boot(store);
        self.awake(&after);
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "container {} of the campaign with MOLTINIT_CHAOS_SEED={}",
                self.boots, self.seed
            );
        }
    }
}

/// A container of a campaign.
struct Boot {
    container: Container,
    /// The lives there were before it.
    lives: usize,
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

fn rounds(otherwise: u64) -> u64 {
    variable("MOLTINIT_CHAOS_ROUNDS").unwrap_or(otherwise)
}

/// Says what a campaign came to; read in `docs/guarantees.md`.
fn sum_up(name: &str, campaign: &Campaign, began: Instant) {
    eprintln!(
        "{name}: seed {}, {} containers, {} lives, {:?}",
        campaign.seed,
        campaign.boots,
        campaign.lives(),
        began.elapsed()
    );
}
