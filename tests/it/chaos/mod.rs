//! An agent that never rests, in containers that end at random: what was reported committed is there in the next one.
//!
//! The gateway is `tests/tools/workload.py`, which holds what it finds when it wakes up against what it did in the life
//! before. A campaign is replayed by its seed, though not to the microsecond:
//!
//! * `MOLTINIT_CHAOS_SEED`: the seed; without it a new one, printed when something is wrong.
//! * `MOLTINIT_CHAOS_ROUNDS`: the number of containers of each campaign.
//! * `MOLTINIT_CHAOS_CHURN_MINUTES`: how long the test for leaks goes on.

mod crash;
mod faults;
mod leaks;
mod neighbours;
mod watcher;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{
    container::{Container, Disk, gateway},
    eventually,
    gateway::Gateway,
};

/// For a boot, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);
/// More than an agent takes that has not been told to.
const AGENT_LIMIT: &str = "memory_max = \"256MiB\"";
/// For an orderly end: a call to the store that hangs is given up after 30 s, and a gateway may drain for 330 s.
const STOP: Duration = Duration::from_secs(600);

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
    /// Further environment of the next container.
    env: Vec<(String, String)>,
    /// Where the state is, if not on the container's disk.
    state: Option<PathBuf>,
    /// The real gateway, beside which the agent works; without it the agent is the gateway.
    gateway: Option<Gateway>,
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
            state: None,
            gateway: None,
        }
    }

    /// Up to that long.
    fn moment(&mut self, at_most_ms: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(0..at_most_ms * 1000))
    }

    /// Starts the next container.
    fn boot(&mut self, store: &Path) -> Boot {
        self.boot_by(&[], store)
    }

    /// The same, by a program that becomes moltinit.
    fn boot_by(&mut self, by: &[&str], store: &Path) -> Boot {
        self.boots += 1;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/workload.py");
        let (seed, boot) = (self.seed.to_string(), self.boots.to_string());
        let state = self.state.clone().unwrap_or_else(|| self.disk.state());
        let ledgers = self.ledgers.path().to_str().unwrap();
        let agent = ["python3", script, ledgers, &seed, &boot, state.to_str().unwrap()];
        let lives = self.lives();
        let mut env = match &self.gateway {
            Some(real) => real.environment_beside(&self.disk, &agent),
            None => gateway(&self.disk, &format!("{agent:?}"), AGENT_LIMIT)
                .map(|(key, value)| (key.to_owned(), value))
                .to_vec(),
        };
        env.extend(self.env.iter().cloned());
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let container = Container::start_by(by, &self.disk, store, &env, &["run"]);
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

    /// SIGTERM, sometimes twice: an orderly end, after which all that this boot's agent did is required.
    fn terminate(&mut self, boot: &mut Boot, story: &str) {
        boot.container.signal(Signal::SIGTERM);
        if self.rng.random_bool(0.3) {
            thread::sleep(self.moment(500));
            // It may have ended by now.
            let _ = kill(boot.container.init, Signal::SIGTERM);
        }
        let status = boot.container.wait(STOP);
        assert_eq!(status.code(), Some(0), "{story}; log: {}", boot.container);
        if self.lives() > boot.lives {
            self.require(&self.lengths());
        }
    }

    /// The last container ends by SIGTERM and is thrown away: then all that was ever done is there.
    fn finish(mut self, store: &Path, renew: impl FnOnce()) {
        let mut last = self.boot(store);
        self.awake(&last);
        self.terminate(&mut last, "the last container");
        self.disk.wipe();
        renew();
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
