//! The end of PID 1 at random moments: in a boot, in a restore, at work, in a commit, in an end; mostly by SIGKILL,
//! sometimes by SIGTERM.

use std::{path::Path, thread, time::Instant};

use nix::sys::signal::Signal;
use rand::RngExt;

use super::{Campaign, PATIENCE, rounds, sum_up};
use crate::support::{
    eventually,
    gateway::Gateway,
    process,
    s3::{Mount, S3},
};

/// How long a boot may go on until it is ended, and one with the real gateway.
const EARLY_MS: u64 = 1000;
const EARLY_REAL_MS: u64 = 10_000;

impl Campaign {
    /// One container from its start to its end.
    fn live_and_die(&mut self, store: &Path) {
        let mut boot = self.boot(store);
        let early_ms = match self.gateway {
            Some(_) => EARLY_REAL_MS,
            None => EARLY_MS,
        };
        let (early, orderly) = (self.rng.random_bool(0.3), self.rng.random_bool(0.25));
        if early && orderly {
            // The kernel keeps from a PID 1 what it has not asked for yet.
            eventually("moltinit to heed SIGTERM", PATIENCE, || {
                process::heeds(boot.container.init.as_raw(), Signal::SIGTERM).then_some(())
            });
            thread::sleep(self.moment(early_ms));
            self.terminate(&mut boot, "early");
        } else if early {
            thread::sleep(self.moment(early_ms));
            boot.container.kill();
        } else {
            self.awake(&boot);
            if self.gateway.is_some() {
                thread::sleep(self.moment(EARLY_REAL_MS));
            }
            for _ in 0..self.rng.random_range(0..3) {
                thread::sleep(self.moment(600));
                assert!(self.ask(&boot.container), "no snapshot; log: {}", boot.container);
            }
            thread::sleep(self.moment(1200));
            self.note_reported(&boot.container);
            let (moment, in_a_commit) = (self.moment(100), self.rng.random());
            if orderly {
                self.terminate(&mut boot, "at work");
            } else {
                thread::scope(|scope| {
                    if in_a_commit {
                        scope.spawn(|| self.ask(&boot.container));
                        thread::sleep(moment);
                    }
                    boot.container.signal(Signal::SIGKILL);
                });
            }
            drop(boot);
        }
        self.check();
        // Mostly the container is thrown away; sometimes only everything in it has died.
        if self.rng.random_bool(0.8) {
            self.disk.wipe();
        }
    }
}

fn campaign(name: &str, store: &Path, kills: u64) {
    run(name, Campaign::new(), store, kills);
}

fn run(name: &str, mut campaign: Campaign, store: &Path, kills: u64) {
    let began = Instant::now();
    for _ in 0..kills {
        campaign.live_and_die(store);
    }
    sum_up(name, &campaign, began);
    campaign.finish(store, || {});
}

#[test]
fn kills_at_any_moment_lose_nothing_of_a_directory() {
    let store = tempfile::tempdir().unwrap();
    campaign("kills on a directory", store.path(), rounds(24));
}

#[test]
fn kills_at_any_moment_lose_nothing_of_s3() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    campaign("kills on s3fs", &mount.path, rounds(8));
}

/// The same with the real gateway, whose databases the agent looks at as well.
#[test]
fn kills_at_any_moment_lose_nothing_beside_the_real_gateway() {
    let store = tempfile::tempdir().unwrap();
    let mut real = Campaign::new();
    real.gateway = Some(Gateway::latest());
    run("kills beside the real gateway", real, store.path(), rounds(2));
}
