//! SIGKILL of PID 1 at random moments: in a boot, in a restore, at work, in a commit.

use std::{path::Path, thread, time::Instant};

use nix::sys::signal::Signal;
use rand::RngExt;

use super::{Campaign, rounds, sum_up};
use crate::support::s3::{Mount, S3};

/// How long a boot may go on until it is killed.
const EARLY_MS: u64 = 1000;

impl Campaign {
    /// One container from its start to its SIGKILL.
    fn live_and_die(&mut self, store: &Path) {
        let boot = self.boot(store);
        if self.rng.random_bool(0.3) {
            thread::sleep(self.moment(EARLY_MS));
            boot.container.kill();
        } else {
            self.awake(&boot);
            for _ in 0..self.rng.random_range(0..3) {
                thread::sleep(self.moment(600));
                assert!(self.ask(&boot.container), "no snapshot; log: {}", boot.container);
            }
            thread::sleep(self.moment(1200));
            self.note_reported(&boot.container);
            let (moment, in_a_commit) = (self.moment(100), self.rng.random());
            thread::scope(|scope| {
                if in_a_commit {
                    scope.spawn(|| self.ask(&boot.container));
                    thread::sleep(moment);
                }
                boot.container.signal(Signal::SIGKILL);
            });
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
    let began = Instant::now();
    let mut campaign = Campaign::new();
    for _ in 0..kills {
        campaign.live_and_die(store);
    }
    sum_up(name, &campaign, began);
    campaign.finish(store);
}

#[test]
fn kills_at_any_moment_lose_nothing_of_a_directory() {
    let store = tempfile::tempdir().unwrap();
    campaign("kills on a directory", store.path(), rounds(30));
}

#[test]
fn kills_at_any_moment_lose_nothing_of_s3() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::of(&s3, dir.path());
    campaign("kills on s3fs", &mount.path, rounds(10));
}
