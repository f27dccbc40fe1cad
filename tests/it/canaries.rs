//! A canary in every variable that holds a secret, everything done that there is to do, and none of them anywhere (G5).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpListener,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use moltinit::config::SECRETS;
use nix::sys::signal::Signal;

use crate::support::{
    PATIENCE,
    container::{Container, Disk},
    eventually, free_port, http, process,
};

/// What a neighbour that means no good writes back: all that it was told.
fn echo() -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = vec![0; 64 << 10];
            let len = stream.read(&mut request).unwrap_or(0);
            heard.store(true, Ordering::Relaxed);
            let head =
                format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(&[head.as_bytes(), &request[..len]].concat());
        }
    });
    (port, asked)
}

/// Collects the arguments of every process below `pid`, until it is told to stop.
struct Arguments {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<BTreeSet<Vec<u8>>>,
}

impl Arguments {
    fn of(pid: i32) -> Arguments {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let seen = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for pid in process::tree(pid) {
                    seen.extend(fs::read(format!("/proc/{pid}/cmdline")));
                }
                thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        Arguments { stop, seen }
    }

    fn end(self) -> BTreeSet<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.join().unwrap()
    }
}

/// Everything that was said, by where.
#[derive(Default)]
struct Said(BTreeMap<String, Vec<u8>>);

impl Said {
    fn add(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        let place = format!("{place} ({})", self.0.len());
        self.0.insert(place, bytes.into());
    }

    fn output(&mut self, place: &str, output: Output) {
        self.add(place, output.stdout);
        self.add(place, output.stderr);
    }
}

#[test]
fn no_secret_is_anywhere() {
    let (port, asked) = echo();
    let disk = Disk::new();
    let callback_key = "whsec_Y2FuYXJ5LWNhbGxiYWNrLXNlY3JldC0wMTIz";
    let secrets: Vec<(&str, String)> = SECRETS
        .iter()
        .map(|name| match *name {
            "MOLTINIT_CALLBACK_SECRET" => (*name, callback_key.to_owned()),
            name => (name, format!("canary.{name}.0123456789")),
        })
        .collect();
    // A gateway that tells everything, and falls over now and then.
    let file = disk.path("moltinit.toml");
    fs::write(
        &file,
        r#"
            [[service]]
            name = "gateway"
            command = ["sh", "-c", "env; env >&2; sleep 0.5; [ -e $HOME/fall ] && rm $HOME/fall && exit 3; exec sleep 100000"]
            ready = { command = ["true"] }
            live = { command = ["sh", "-c", "env; exit 0"], every = "100ms" }
        "#,
    )
    .unwrap();
    let cdp = free_port();
    let (cdp_addr, worker) = (format!("127.0.0.1:{cdp}"), format!("http://127.0.0.1:{port}"));
    let callback = format!("http://user:canary.password@127.0.0.1:{port}/hook?key=canary.query");
    let mut env = vec![
        ("MOLTINIT_CONFIG", file.to_str().unwrap()),
        ("MOLTINIT_LOG", "trace"),
        ("MOLTINIT_CDP_ADDR", &cdp_addr),
        ("WORKER_URL", &worker),
        ("MOLTINIT_CALLBACK_URL", &callback),
        ("AI_GATEWAY_BASE_URL", "https://gateway.example/v1"),
        ("CF_ACCOUNT_ID", "account"),
        ("CF_AI_GATEWAY_ACCOUNT_ID", "account"),
        ("CF_AI_GATEWAY_GATEWAY_ID", "gateway"),
        ("MOLTINIT_STOP_TIMEOUT", "2s"),
    ];
    env.extend(secrets.iter().map(|(name, value)| (*name, value.as_str())));
    fs::create_dir_all(disk.path("home")).unwrap();
    fs::write(disk.path("home/fall"), "").unwrap();
    let mut container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    let arguments = Arguments::of(container.init.as_raw());
    let admin = secrets
        .iter()
        .find(|(name, _)| *name == "MOLTINIT_ADMIN_TOKEN")
        .unwrap()
        .1
        .as_str();
    let ask = |method: &str, path: &str, token: &str, body: &str| {
        http::request(method, container.port, path, Some(token), body)
            .map_or_else(|error| error.to_string(), |answer| answer.body)
    };
    eventually(format_args!("a gateway that is ready; {container}"), PATIENCE, || {
        let status = http::get(container.port, "/status", Some(admin)).ok()?.json();
        (status["ready"] == true && status["services"]["gateway"]["starts"].as_u64() > Some(1)).then_some(())
    });

    let mut said = Said::default();
    fs::write(disk.state().join("note"), "a change").unwrap();
    let made: serde_json::Value = serde_json::from_str(&ask("POST", "/snapshots", admin, "")).unwrap();
    let id = made["id"].as_str().unwrap();
    said.add("a restore", ask("POST", &format!("/snapshots/{id}/restore"), admin, ""));
    for path in [
        "/healthz",
        "/startupz",
        "/readyz",
        "/status",
        "/metrics",
        "/events?after=0",
        "/services/gateway/logs?n=2000",
        "/snapshots",
        "/devices",
        "/nowhere",
    ] {
        said.add(path, ask("GET", path, admin, ""));
        said.add(path, ask("GET", path, "canary.wrong.token", ""));
    }
    said.add(
        "discovery",
        http::get(cdp, "/json/list", None).map_or_else(|error| error.to_string(), |answer| answer.body),
    );
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["logs", "gateway"],
        &["snapshot", "list"],
        &["config", "show"],
        &["config", "check"],
        &["doctor"],
        &["devices", "list"],
        &["restart", "gateway", "--wait"],
        &["snapshot", "verify", "--store", "/nowhere"],
    ] {
        let mut command = disk.command(args);
        command
            .envs(env.iter().copied())
            .env("MOLTINIT_DATA_DIR", disk.path("data"));
        said.output(&args.join(" "), command.output().unwrap());
    }
    eventually("a callback", PATIENCE, || asked.load(Ordering::Relaxed).then_some(()));
    container.signal(Signal::SIGTERM);
    container.wait(PATIENCE);
    said.add("the log", container.log());
    said.add("stdout", fs::read(disk.path("stdout")).unwrap());
    for arguments in arguments.end() {
        said.add("arguments", arguments);
    }
    assert!(container.log().contains("[secret]"), "the gateway has told nothing");
    let tells = ["canary.password", "canary.query", "canary.wrong"];
    let tells = tells.into_iter().chain(secrets.iter().map(|(_, value)| value.as_str()));
    for tell in tells {
        for (place, bytes) in &said.0 {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains(tell), "{tell} is in {place}: {text}");
        }
    }
}
