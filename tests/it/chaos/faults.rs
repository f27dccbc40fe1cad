//! Everything around moltinit goes wrong at random, one thing after the other: what was reported committed is there
//! all the same, the probes answer throughout, and nothing is left behind.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, seq::IndexedRandom};

use super::{
    Boot, Campaign, PATIENCE, STOP,
    neighbours::{SmallDisk, use_browser},
    rounds, sum_up,
    watcher::{Over, Watcher},
    world::{CALLBACK_SECRET, Store, World},
};
use crate::support::{
    container::{TOKEN, event},
    eventually, process,
};

/// Of moltinit itself, above what it had when the agent was at work and nothing was wrong yet (G8).
const MOST_MEMORY: u64 = 64 << 20;
/// For every zombie to be reaped, on a machine that does much else (G4: a second).
const REAPED: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    GatewayKilled,
    GatewayStopped,
    GatewayGrows,
    MoltinitStopped,
    FewDescriptors,
    FewWatches,
    StateDiskFull,
    OwnDiskFull,
    ClockJumps,
    ClockWrong,
    BrowserGone,
    StoreHangs,
    StoreCut,
    StoreStopped,
    StoreDies,
    StoreFull,
    StoreProtected,
    StoreUnmounted,
    TornObject,
}

/// Whatever the store is.
const ANYWHERE: &[Fault] = &[
    Fault::GatewayKilled,
    Fault::GatewayStopped,
    Fault::GatewayGrows,
    Fault::MoltinitStopped,
    Fault::FewDescriptors,
    Fault::FewWatches,
    Fault::StateDiskFull,
    Fault::OwnDiskFull,
    Fault::ClockJumps,
    Fault::ClockWrong,
    Fault::BrowserGone,
    Fault::StoreUnmounted,
    Fault::TornObject,
];

/// Of a bucket.
const REMOTE: &[Fault] = &[
    Fault::StoreHangs,
    Fault::StoreCut,
    Fault::StoreStopped,
    Fault::StoreDies,
];

/// Of a disk.
const LOCAL: &[Fault] = &[Fault::StoreFull, Fault::StoreProtected];

impl Fault {
    /// The container cannot get over it, so it is the last thing that happens to it.
    fn is_the_end(self) -> bool {
        matches!(self, Fault::StoreDies | Fault::StoreUnmounted)
    }

    /// It may happen before the agent is at work, too.
    fn may_be_early(self) -> bool {
        REMOTE.contains(&self) && !self.is_the_end()
    }
}

/// Makes the next program, and so moltinit, one of a user namespace of its own, whose limits are its own too.
const ALONE: &[&str] = &["unshare", "--user", "--map-root-user"];

impl Campaign {
    /// The gateway's pid here, if it runs.
    fn gateway_of(&self, boot: &Boot) -> Option<Pid> {
        let status = boot.container.get("/status").ok()?.json();
        let inside = status["services"]["gateway"]["pid"].as_i64()?;
        let outside = process::find_outside(boot.container.init.as_raw(), i32::try_from(inside).ok()?)?;
        Some(Pid::from_raw(outside))
    }

    /// Lets `fault` happen and, where it is one that passes, pass. False where the store is lost to this container.
    fn inflict(&mut self, fault: Fault, boot: &Boot, world: &mut World, watcher: &Watcher) -> bool {
        let moment = self.moment(1500);
        let init = boot.container.init;
        match fault {
            // It may have ended by itself just now.
            Fault::GatewayKilled => {
                if let Some(gateway) = self.gateway_of(boot) {
                    let _ = kill(gateway, Signal::SIGKILL);
                }
            }
            Fault::GatewayStopped => self.while_stopped(boot, || thread::sleep(moment)),
            Fault::GatewayGrows => {
                let starts = || boot.container.status()["services"]["gateway"]["starts"].as_u64();
                let before = starts();
                if let Some(gateway) = self.gateway_of(boot) {
                    let _ = kill(gateway, Signal::SIGUSR1);
                    eventually(format_args!("another agent; {}", boot.container), PATIENCE, || {
                        (starts() > before).then_some(())
                    });
                }
            }
            Fault::MoltinitStopped => watcher.excused(|| {
                kill(init, Signal::SIGSTOP).unwrap();
                thread::sleep(moment);
                kill(init, Signal::SIGCONT).unwrap();
                answers(boot);
            }),
            Fault::FewDescriptors => watcher.excused(|| {
                let before = descriptors(init);
                limit_descriptors(init, "24");
                thread::sleep(moment);
                limit_descriptors(init, &before);
                answers(boot);
            }),
            // From now on what changes in a new directory is to be found without being told.
            Fault::FewWatches => limit_watches(init),
            Fault::StateDiskFull => {
                let state = &world.state;
                self.while_stopped(boot, || {
                    let _full = state.fill();
                    self.ask(&boot.container);
                });
            }
            Fault::OwnDiskFull => {
                world.full = Some(world.own.fill());
                self.ask(&boot.container);
                thread::sleep(moment);
                if self.rng.random() {
                    world.full = None;
                }
            }
            Fault::ClockJumps => {
                world.clock.shift(self.days());
                thread::sleep(moment);
                self.ask(&boot.container);
                world.clock.shift(0);
            }
            // Has been since the start.
            Fault::ClockWrong => {}
            Fault::BrowserGone => (0..3).for_each(|_| use_browser(world.cdp)),
            Fault::StoreHangs | Fault::StoreCut | Fault::StoreStopped | Fault::StoreDies => {
                let Store::Bucket { wire, host, .. } = &mut world.store else {
                    unreachable!("{fault:?} on a disk");
                };
                let (mount, _) = host.as_mut().expect("a mount");
                match fault {
                    Fault::StoreHangs => wire.tell("hang"),
                    Fault::StoreCut => wire.tell("cut"),
                    Fault::StoreStopped => kill(mount.s3fs(), Signal::SIGSTOP).unwrap(),
                    _ => {
                        mount.kill();
                        return false;
                    }
                }
                thread::sleep(moment);
                wire.tell("ok");
                let _ = kill(mount.s3fs(), Signal::SIGCONT);
            }
            Fault::StoreFull | Fault::StoreProtected => {
                let Store::Disk(disk) = &world.store else {
                    unreachable!("{fault:?} on a bucket");
                };
                let _full = match fault {
                    Fault::StoreFull => disk.fill(),
                    _ => disk.protect(),
                };
                self.ask(&boot.container);
                thread::sleep(moment);
            }
            Fault::StoreUnmounted => {
                let store = world.store.path();
                let done = Command::new("nsenter")
                    .args(["--mount", "--pid", "--target", &init.to_string(), "umount", "--lazy"])
                    .arg(&store)
                    .status()
                    .unwrap();
                assert!(done.success(), "nsenter umount: {done}");
                event(&boot.container, "store.unavailable");
                let beneath = format!("/proc/{init}/root{}", store.display());
                let names: Vec<_> = fs::read_dir(&beneath).unwrap().flatten().collect();
                assert!(names.is_empty(), "written where the mount was: {names:?}");
                return false;
            }
            Fault::TornObject => world.tear(self),
        }
        true
    }

    fn while_stopped(&self, boot: &Boot, act: impl FnOnce()) {
        let Some(gateway) = self.gateway_of(boot) else { return };
        // It may have ended by itself just now.
        let _ = kill(gateway, Signal::SIGSTOP);
        act();
        let _ = kill(gateway, Signal::SIGCONT);
    }

    fn days(&mut self) -> i64 {
        *[-400, -2, 2, 40].choose(&mut self.rng).expect("days")
    }

    /// What is to happen to a container, in order.
    fn fate(&mut self, world: &World) -> Vec<Fault> {
        let of_store = match world.store {
            Store::Bucket { .. } => REMOTE,
            Store::Disk(_) => LOCAL,
        };
        let all = [ANYWHERE, of_store].concat();
        let count = self.rng.random_range(1..=3);
        let mut faults: Vec<Fault> = (0..count)
            .map(|_| *all.choose(&mut self.rng).expect("faults"))
            .collect();
        let last = faults.iter().position(|fault| fault.is_the_end());
        faults.truncate(last.map_or(faults.len(), |at| at + 1));
        faults
    }

    /// One container in which things go wrong, from its start to its end by either signal.
    fn suffer(&mut self, world: &mut World) {
        let store = world.store.path();
        self.env = world.environment();
        let faults = self.fate(world);
        let early = faults[0].may_be_early() && self.rng.random();
        let when = if early { ", the first of it in the boot" } else { "" };
        let story = format!("{faults:?}{when} (seed {}, container {})", self.seed, self.boots + 1);
        eprintln!("{story}");
        if faults.contains(&Fault::ClockWrong) {
            world.clock.shift(self.days());
        }
        let alone = faults.contains(&Fault::FewWatches);
        let mut boot = self.boot_by(if alone { ALONE } else { &[] }, &store);
        let watcher = Watcher::default();
        if early {
            thread::sleep(self.moment(700));
            self.inflict(faults[0], &boot, world, &watcher);
        }
        self.awake(&boot);
        let idle = process::resident(boot.container.init.as_raw());
        let mut durable = true;
        let (answered, wrong) = thread::scope(|scope| {
            let watched = watcher.watch(scope, boot.container.port);
            let over = Over(&watcher);
            for fault in faults.into_iter().skip(early.into()) {
                thread::sleep(self.moment(700));
                world.full = None;
                durable &= self.inflict(fault, &boot, world, &watcher);
                if durable && self.rng.random() {
                    self.ask(&boot.container);
                }
                self.note_reported(&boot.container);
                self.check();
            }
            self.look_over(&boot, idle, &story);
            drop(over);
            watched.join().unwrap()
        });
        assert!(wrong.is_empty(), "{story}: {wrong:#?}\n{}", boot.container);
        assert!(answered > 0, "{story}: no probe was answered");
        self.end(&mut boot, durable, &story);
        drop(boot);
        if !durable && let Store::Bucket { host, .. } = &mut world.store {
            *host = None;
        }
        self.disk.wipe();
        world.renew();
    }

    /// What has to hold at any time.
    fn look_over(&self, boot: &Boot, idle: u64, story: &str) {
        let init = boot.container.init.as_raw();
        eventually(format_args!("no zombie; {story}"), REAPED, || {
            process::tree(init)
                .into_iter()
                .all(|pid| !process::is_in_state(pid, 'Z'))
                .then_some(())
        });
        let resident = process::resident(init);
        assert!(
            resident < idle + MOST_MEMORY,
            "{story}: {resident} bytes resident, {idle} before"
        );
        let shown = [
            boot.container.log(),
            boot.container.status().to_string(),
            boot.container.get("/events?after=0").unwrap().body,
        ];
        for secret in [TOKEN, CALLBACK_SECRET, "chaos-canary-of-callbacks"] {
            assert!(
                !shown.iter().any(|text| text.contains(secret)),
                "{story}: {secret} is shown"
            );
        }
        let boot_id = boot.container.status()["boot"]["id"].clone();
        let events = boot.container.get("/events?after=0").unwrap().json();
        let seqs: Vec<u64> = events["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["boot"] == boot_id)
            .map(|event| event["seq"].as_u64().unwrap())
            .collect();
        assert!(!seqs.is_empty(), "{story}: no events");
        assert!(seqs.windows(2).all(|two| two[0] + 1 == two[1]), "{story}: {seqs:?}");
    }

    /// SIGTERM or SIGKILL; after an orderly end all that was done is required. Where the store is gone for good, which
    /// takes a minute to be given up, the exit code has to say that it is not there.
    fn end(&mut self, boot: &mut Boot, durable: bool, story: &str) {
        thread::sleep(self.moment(500));
        if durable && self.rng.random() {
            self.terminate(boot, story);
        } else if !durable && self.rng.random_bool(0.3) {
            boot.container.signal(Signal::SIGTERM);
            let status = boot.container.wait(STOP);
            assert_eq!(status.code(), Some(69), "{story}; log: {}", boot.container);
        } else {
            boot.container.signal(Signal::SIGKILL);
            boot.container.wait(PATIENCE);
        }
    }
}

/// The soft limit of open files.
fn descriptors(pid: Pid) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

fn limit_descriptors(pid: Pid, soft: &str) {
    let done = Command::new("prlimit")
        .args([format!("--pid={pid}"), format!("--nofile={soft}:")])
        .status()
        .unwrap();
    assert!(done.success(), "prlimit: {done}");
}

/// Takes no further inotify watch from its user namespace.
fn limit_watches(init: Pid) {
    let done = Command::new("nsenter")
        .args(["--user", "--target", &init.to_string()])
        .args(["sh", "-c", "echo 0 >/proc/sys/user/max_inotify_watches"])
        .status()
        .unwrap();
    assert!(done.success(), "nsenter: {done}");
}

fn answers(boot: &Boot) {
    eventually("a probe", PATIENCE, || boot.container.get("/healthz").ok());
}

fn campaign(name: &str, store: Store, otherwise: u64) {
    let began = Instant::now();
    let mut campaign = Campaign::new();
    let mut world = World::new(campaign.seed, store);
    campaign.state = Some(world.state.path("state"));
    for _ in 0..rounds(otherwise) {
        campaign.suffer(&mut world);
    }
    sum_up(name, &campaign, began);
    let store = world.store.path();
    campaign.env = world.environment();
    campaign.finish(&store, || world.renew());
}

#[test]
fn whatever_goes_wrong_around_it_is_survived() {
    campaign("faults on s3fs", Store::bucket(), 6);
}

#[test]
fn whatever_goes_wrong_with_its_disks_is_survived() {
    campaign("faults on a disk", Store::Disk(SmallDisk::new(8192)), 5);
}
