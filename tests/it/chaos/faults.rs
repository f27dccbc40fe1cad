//! Everything around moltinit goes wrong at random, one thing after the other: what was reported committed is there
//! all the same, the probes answer throughout, and nothing is left behind.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    Boot, Campaign, PATIENCE, rounds, sum_up,
    watcher::{Over, Watcher},
};
use crate::support::{
    container::TOKEN,
    eventually, process,
    s3::{Mount, S3, Wire},
};

const CALLBACK_SECRET: &str = "whsec_Y2hhb3MtY2FuYXJ5LW9mLWNhbGxiYWNrcw==";
/// Of moltinit itself, in a debug build with everything that can be outstanding (G8: 64 MiB above idle).
const MOST_MEMORY: u64 = 128 << 20;
/// A call to the store that hangs is given up after 30 s.
const STOP: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy)]
enum Fault {
    GatewayKilled,
    GatewayStopped,
    MoltinitStopped,
    FewDescriptors,
    StoreHangs,
    StoreCut,
    StoreDies,
    StoreUnmounted,
    TornObject,
}

const FAULTS: &[Fault] = &[
    Fault::GatewayKilled,
    Fault::GatewayStopped,
    Fault::MoltinitStopped,
    Fault::FewDescriptors,
    Fault::StoreHangs,
    Fault::StoreCut,
    Fault::StoreDies,
    Fault::StoreUnmounted,
    Fault::TornObject,
];

/// The bucket, and this host's mount of it.
struct World {
    s3: S3,
    wire: Wire,
    host: Option<(Mount, tempfile::TempDir)>,
}

impl World {
    fn new() -> World {
        let s3 = S3::start();
        let wire = Wire::to(&s3, 5);
        World { s3, wire, host: None }
    }

    /// A mount that works.
    fn store(&mut self) -> PathBuf {
        let (mount, _) = self.host.get_or_insert_with(|| {
            let dir = tempfile::tempdir().unwrap();
            (Mount::through(&self.wire, dir.path()), dir)
        });
        mount.path.clone()
    }

    /// What a writer leaves that dies in a generation of its own: an object without its end, and one without anything.
    fn tear(&self, campaign: &mut Campaign) {
        let keys = self.s3.keys();
        let Some(whole) = keys.iter().rfind(|key| key.ends_with(".seg")) else {
            return;
        };
        let bytes = self.s3.object(whole);
        let generation = ulid::Ulid::generate();
        let base = campaign.reported.clone();
        let name = match base.is_empty() {
            true => generation.to_string(),
            false => format!("{generation}.from.{base}"),
        };
        let cut = campaign.rng.random_range(0..=bytes.len().saturating_sub(1));
        for (seq, part) in [(0, &bytes[..cut]), (1, &[][..])] {
            self.s3.put(&format!("default/v1/{name}/000000/{seq:08}.seg"), part);
        }
    }
}

impl Campaign {
    /// The gateway's pid here, if it runs.
    fn gateway(&self, boot: &Boot) -> Option<Pid> {
        let status = boot.container.get("/status").ok()?.json();
        let inside = status["services"]["gateway"]["pid"].as_i64()?;
        Some(Pid::from_raw(process::outside(
            boot.container.init.as_raw(),
            i32::try_from(inside).ok()?,
        )))
    }

    /// Lets `fault` happen and, where it is one that passes, pass. False where the store is lost to this container.
    fn inflict(&mut self, fault: Fault, boot: &Boot, world: &mut World, watcher: &Watcher) -> bool {
        let moment = self.moment(1500);
        let init = boot.container.init;
        match fault {
            Fault::GatewayKilled | Fault::GatewayStopped => {
                let Some(gateway) = self.gateway(boot) else { return true };
                // It may have ended by itself just now.
                if let Fault::GatewayKilled = fault {
                    let _ = kill(gateway, Signal::SIGKILL);
                } else {
                    let _ = kill(gateway, Signal::SIGSTOP);
                    thread::sleep(moment);
                    let _ = kill(gateway, Signal::SIGCONT);
                }
            }
            Fault::MoltinitStopped => watcher.excused(|| {
                kill(init, Signal::SIGSTOP).unwrap();
                thread::sleep(moment);
                kill(init, Signal::SIGCONT).unwrap();
                eventually("a probe after SIGCONT", PATIENCE, || {
                    boot.container.get("/healthz").ok()
                });
            }),
            Fault::FewDescriptors => watcher.excused(|| {
                let before = descriptors(init);
                limit_descriptors(init, "24");
                thread::sleep(moment);
                limit_descriptors(init, &before);
                eventually("a probe with descriptors", PATIENCE, || {
                    boot.container.get("/healthz").ok()
                });
            }),
            Fault::StoreHangs | Fault::StoreCut => {
                world
                    .wire
                    .tell(if let Fault::StoreHangs = fault { "hang" } else { "cut" });
                thread::sleep(moment);
                world.wire.tell("ok");
            }
            Fault::StoreDies => {
                world.host.as_mut().expect("a mount").0.kill();
                return false;
            }
            Fault::StoreUnmounted => {
                let store = world.store();
                let done = Command::new("nsenter")
                    .args(["--mount", "--pid", "--target", &init.to_string(), "umount", "--lazy"])
                    .arg(&store)
                    .status()
                    .unwrap();
                assert!(done.success(), "nsenter umount: {done}");
                return false;
            }
            Fault::TornObject => world.tear(self),
        }
        true
    }

    /// One container in which things go wrong, from its start to its end by either signal.
    fn suffer(&mut self, world: &mut World) {
        let store = world.store();
        let mut boot = self.boot(&store);
        self.awake(&boot);
        let (watcher, faults) = (Watcher::default(), self.rng.random_range(1..=3));
        let mut faults: Vec<Fault> = (0..faults)
            .map(|_| *FAULTS.choose(&mut self.rng).expect("faults"))
            .collect();
        // What the container cannot get over is the last thing.
        let ends = |fault: &Fault| matches!(fault, Fault::StoreDies | Fault::StoreUnmounted);
        let last = faults.iter().position(ends).map_or(faults.len(), |at| at + 1);
        faults.truncate(last);
        let story = format!("{faults:?} (seed {}, container {})", self.seed, self.boots);
        let mut durable = true;
        let (answered, wrong) = thread::scope(|scope| {
            let watched = watcher.watch(scope, boot.container.port);
            let over = Over(&watcher);
            for fault in faults {
                thread::sleep(self.moment(700));
                durable &= self.inflict(fault, &boot, world, &watcher);
                if durable && self.rng.random() {
                    self.ask(&boot.container);
                }
                self.note_reported(&boot.container);
                self.check();
            }
            self.look_over(&boot, &story);
            drop(over);
            watched.join().unwrap()
        });
        assert!(wrong.is_empty(), "{story}: {wrong:#?}\n{}", boot.container);
        assert!(answered > 0, "{story}: no probe was answered");
        self.end(&mut boot, durable, &story);
        drop(boot);
        if !durable {
            world.host = None;
        }
        self.disk.wipe();
    }

    /// What has to hold at any time.
    fn look_over(&self, boot: &Boot, story: &str) {
        let init = boot.container.init.as_raw();
        eventually(format_args!("no zombie; {story}"), PATIENCE, || {
            process::tree(init)
                .into_iter()
                .all(|pid| !process::is_in_state(pid, 'Z'))
                .then_some(())
        });
        let resident = process::resident(init);
        assert!(resident < MOST_MEMORY, "{story}: {resident} bytes resident");
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

    /// SIGTERM or SIGKILL; after an orderly end with a store all that was done is required.
    fn end(&mut self, boot: &mut Boot, durable: bool, story: &str) {
        thread::sleep(self.moment(500));
        if self.rng.random() {
            boot.container.signal(Signal::SIGKILL);
            boot.container.wait(PATIENCE);
            return;
        }
        boot.container.signal(Signal::SIGTERM);
        let status = boot.container.wait(STOP);
        if durable {
            assert_eq!(status.code(), Some(0), "{story}\n{}", boot.container);
            self.require(&self.lengths());
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

/// A receiver of callbacks that does whatever comes to its mind.
fn moody_receiver(seed: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut rng = StdRng::seed_from_u64(seed);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = match rng.random_range(0..6) {
                0 => "500 Internal Server Error",
                1 => "429 Too Many Requests\r\nRetry-After: 1",
                2 => "307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/",
                3 => "204 No Content",
                4 if rng.random_bool(0.1) => "410 Gone",
                _ => "200 OK",
            };
            let slow = Duration::from_millis(if rng.random_bool(0.2) { 700 } else { 0 });
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 8192]);
                thread::sleep(slow);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            });
        }
    });
    port
}

#[test]
fn whatever_goes_wrong_around_it_is_survived() {
    let began = Instant::now();
    let mut campaign = Campaign::new();
    let receiver = moody_receiver(campaign.seed);
    campaign.env = vec![
        ("MOLTINIT_CALLBACK_URL".into(), format!("http://127.0.0.1:{receiver}/")),
        ("MOLTINIT_CALLBACK_SECRET".into(), CALLBACK_SECRET.into()),
    ];
    let mut world = World::new();
    for _ in 0..rounds(6) {
        campaign.suffer(&mut world);
    }
    sum_up("faults on s3fs", &campaign, began);
    let store = world.store();
    campaign.finish(&store);
}
