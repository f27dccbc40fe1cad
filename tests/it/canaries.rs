//! A canary in every variable that holds a secret, everything done that there is to do, and none of them anywhere (G5).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use moltinit::config::SECRETS;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio_tungstenite::tungstenite::{
    Message, WebSocket, accept, connect,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::support::{
    PATIENCE,
    container::{Container, Disk},
    eventually, free_port, http, process,
    receiver::CALLBACK_SECRET,
    s3::{BUCKET, S3},
};

/// A neighbour that means no good, as a Worker, a browser, a gateway and a receiver of callbacks: it gives back all that
/// it was told.
struct Echo {
    port: u16,
    /// What it was asked for: `POST /hook`, `GET /cdp`.
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Echo {
    fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let echo = Echo {
            port: listener.local_addr().unwrap().port(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&echo.asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = Arc::clone(&asked);
                thread::spawn(move || answer(stream, &asked));
            }
        });
        echo
    }

    fn wait_for(&self, what: &str) {
        let asked = || self.asked.lock().unwrap().clone();
        eventually(what, PATIENCE, || {
            asked().iter().any(|asked| asked.starts_with(what)).then_some(())
        });
    }
}

fn answer(mut stream: TcpStream, asked: &Mutex<BTreeSet<String>>) {
    let mut request = vec![0; 64 << 10];
    let len = stream.peek(&mut request).unwrap_or(0);
    let text = String::from_utf8_lossy(&request[..len]).into_owned();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    asked.lock().unwrap().insert(words.join(" "));
    if text.to_ascii_lowercase().contains("upgrade: websocket") {
        if let Ok(socket) = accept(stream) {
            converse(socket, text);
        }
        return;
    }
    let _ = stream.read(&mut request);
    let head = format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(&[head.as_bytes(), text.as_bytes()].concat());
}

/// The gateway's protocol begins with a challenge, a browser's with nothing; either is refused with all that was said.
fn converse(mut socket: WebSocket<TcpStream>, mut told: String) {
    let _ = socket.send(Message::text(
        r#"{"type":"event","event":"connect.challenge","payload":{"nonce":"n","ts":1}}"#,
    ));
    if let Ok(Message::Text(text)) = socket.read() {
        told.push_str(&text);
        let of_gateway = json!({ "type": "res", "id": "connect", "ok": false, "error": { "code": "UNAUTHORIZED", "message": told } });
        let of_browser = json!({ "id": 1, "error": { "code": -1, "message": told } });
        for said in [of_gateway, of_browser] {
            let _ = socket.send(Message::text(said.to_string()));
        }
    }
    let reason = told
        .chars()
        .filter(char::is_ascii_graphic)
        .skip(told.len().saturating_sub(100))
        .collect::<String>();
    let close = CloseFrame {
        code: CloseCode::Policy,
        reason: reason.into(),
    };
    let _ = socket.close(Some(close));
    while socket.read().is_ok() {}
}

/// Collects the arguments of every process that these tests have started, until it is told to stop.
struct Arguments {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<BTreeSet<Vec<u8>>>,
}

impl Arguments {
    fn collect() -> Arguments {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let seen = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                for pid in process::tree(std::process::id() as i32) {
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

    /// Every file below a directory.
    fn files(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                self.files(&path);
            } else if kind.is_file() {
                self.add(&path.display().to_string(), fs::read(&path).unwrap_or_default());
            }
        }
    }
}

/// What is known to be a secret, by name: half of them come by file.
fn known() -> impl Iterator<Item = (&'static str, String)> {
    SECRETS.iter().map(|name| match *name {
        "MOLTINIT_CALLBACK_SECRET" => (*name, CALLBACK_SECRET.to_owned()),
        name => (name, format!("canary.{name}.0123456789")),
    })
}

const ADMIN: &str = "canary.MOLTINIT_ADMIN_TOKEN.0123456789";

/// What is one by the look of its name, or within an address.
const LOOKS: [(&str, &str, &str); 8] = [
    ("OPENROUTER_API_KEY", "", "canary.openrouter.0123"),
    ("GITHUB_TOKEN", "", "canary.github.0123"),
    ("SMTP_PASSWORD", "", "canary.smtp.0123"),
    ("STRIPE_WEBHOOK_SECRET", "", "canary.stripe.0123"),
    (
        "DATABASE_URL",
        "postgres://agent:{}@db.example/x",
        "canary.database.0123",
    ),
    ("HTTPS_PROXY", "http://agent:{}@127.0.0.1:9", "canary.proxy.0123"),
    (
        "AI_GATEWAY_BASE_URL",
        "https://agent:{}@gateway.example/v1",
        "canary.base.0123",
    ),
    (
        "SENTRY_DSN",
        "https://{}@sentry.example/1",
        "canary.of.sentry.as.a.user.0123",
    ),
];

#[test]
fn no_secret_is_anywhere() {
    let arguments = Arguments::collect();
    let (echo, s3) = (Echo::start(), S3::start());
    let disk = Disk::new();
    fs::create_dir_all(disk.path("secrets")).unwrap();
    // A gateway that tells everything, and falls over now and then.
    let file = disk.path("moltinit.toml");
    let script = "env; env >&2; sleep 0.5; [ -e $HOME/fall ] && rm $HOME/fall && exit 3; exec sleep 100000";
    fs::write(
        &file,
        format!(
            r#"
            [[service]]
            name = "gateway"
            command = ["sh", "-c", "{script}", "gateway", "--port", "{}"]
            ready = {{ command = ["true"] }}
            live = {{ command = ["sh", "-c", "env; exit 0"], every = "100ms" }}
            env = {{ OWN_TOKEN = "canary.own.0123", OWN = "plain" }}
            "#,
            echo.port
        ),
    )
    .unwrap();
    let cdp = free_port();
    let mut env = BTreeMap::new();
    let mut put = |name: &str, value: String| drop(env.insert(name.to_owned(), value));
    put("MOLTINIT_CONFIG", file.display().to_string());
    put("MOLTINIT_LOG", "trace".to_owned());
    put("MOLTINIT_CDP_ADDR", format!("127.0.0.1:{cdp}"));
    put("MOLTINIT_STOP_TIMEOUT", "2s".to_owned());
    put("MOLTINIT_MOUNT", "s3fs".to_owned());
    put("R2_BUCKET_NAME", BUCKET.to_owned());
    put("R2_ENDPOINT", format!("http://127.0.0.1:{}", s3.port));
    put("WORKER_URL", format!("http://127.0.0.1:{}", echo.port));
    put(
        "MOLTINIT_CALLBACK_URL",
        format!(
            "http://user:canary.password@127.0.0.1:{}/hook?key=canary.query",
            echo.port
        ),
    );
    for name in ["CF_ACCOUNT_ID", "CF_AI_GATEWAY_ACCOUNT_ID", "CF_AI_GATEWAY_GATEWAY_ID"] {
        put(name, "account".to_owned());
    }
    let mut tells: Vec<String> = [
        "canary.password",
        "canary.query",
        "canary.wrong",
        "canary.own",
        "canary.late",
    ]
    .map(str::to_owned)
    .to_vec();
    for (at, (name, value)) in known().enumerate() {
        // The container's own variable would be in the way.
        if at % 2 == 0 && name != "MOLTINIT_ADMIN_TOKEN" {
            let path = disk.path("secrets").join(name);
            fs::write(
                &path,
                format!(
                    "{value}
"
                ),
            )
            .unwrap();
            put(&format!("{name}_FILE"), path.display().to_string());
        } else {
            put(name, value.clone());
        }
        tells.push(value);
    }
    for (name, address, secret) in LOOKS {
        let value = if address.is_empty() {
            secret.to_owned()
        } else {
            address.replace("{}", secret)
        };
        put(name, value);
        tells.push(secret.to_owned());
    }
    let env: Vec<(&str, &str)> = env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut said = Said::default();
    let command = |args: &[&str]| {
        let mut command = disk.command(args);
        command
            .envs(env.iter().copied())
            .env("MOLTINIT_DATA_DIR", disk.path("data"));
        command
    };

    // An older agent's backup, taken over before there is anything.
    fs::create_dir_all(disk.path("backup/clawdbot")).unwrap();
    fs::write(disk.path("backup/clawdbot/clawdbot.json"), "{}").unwrap();
    fs::create_dir_all(disk.path("imported")).unwrap();
    let [backup, imported] = ["backup", "imported"].map(|name| disk.path(name).display().to_string());
    let import = command(&["import", "--from", &backup, "--store", &imported])
        .output()
        .unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    said.output("import", import);

    fs::create_dir_all(disk.path("home")).unwrap();
    fs::write(disk.path("home/fall"), "").unwrap();
    let boot = || {
        let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
        eventually(format_args!("a gateway that is ready; {container}"), PATIENCE, || {
            let status = http::get(container.port, "/status", Some(ADMIN)).ok()?.json();
            (status["ready"] == true && !disk.path("home/fall").exists()).then_some(())
        });
        container
    };
    let container = boot();
    let ask = |method: &str, path: &str, token: &str, body: &str| {
        http::request(method, container.port, path, Some(token), body)
            .map_or_else(|error| error.to_string(), |answer| answer.body)
    };
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "a change").unwrap();
    let made: serde_json::Value = serde_json::from_str(&ask("POST", "/snapshots", ADMIN, "")).unwrap();
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}; {container}"));
    said.add("a restore", ask("POST", &format!("/snapshots/{id}/restore"), ADMIN, ""));
    for path in [
        "/healthz",
        "/startupz",
        "/readyz",
        "/status",
        "/metrics",
        "/events?after=0",
        "/services/gateway/logs?n=2000",
        "/services/mount/logs?n=2000",
        "/snapshots",
        "/devices",
        "/nowhere",
    ] {
        said.add(path, ask("GET", path, ADMIN, ""));
        said.add(path, ask("GET", path, "canary.wrong.token", ""));
    }
    said.add("an approval", ask("POST", "/devices/r/approve", ADMIN, ""));
    said.add(
        "discovery",
        http::get(cdp, "/json/list", None).map_or_else(|error| error.to_string(), |answer| answer.body),
    );
    let token = "canary.MOLTINIT_CDP_TOKEN.0123456789";
    let session = connect(format!("ws://127.0.0.1:{cdp}/devtools/browser/one?token={token}"));
    if let Ok((mut session, _)) = session {
        let _ = session.send(Message::text(r#"{"id":1,"method":"Target.getTargets"}"#));
        while session.read().is_ok() {}
    }
    echo.wait_for("GET /cdp");
    let wrong = connect(format!(
        "ws://127.0.0.1:{cdp}/devtools/browser/one?token=canary.wrong.token"
    ));
    said.add(
        "a browser's refusal",
        wrong.err().map(|error| error.to_string()).unwrap(),
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
        &["devices", "approve", "r"],
        &["devices", "approve", "--all"],
        &["skills", "install"],
        &["restart", "gateway", "--wait"],
        &["snapshot", "verify", "--store", "/nowhere"],
    ] {
        said.output(&args.join(" "), command(args).output().unwrap());
    }
    echo.wait_for("POST /hook");

    // One that comes later.
    let mut script = command(&["attach", "gateway"])
        .env("LATE_API_KEY", "canary.late.0123456789")
        .spawn()
        .unwrap();
    eventually("the late key", PATIENCE, || {
        container.log().contains("LATE_API_KEY=[secret]").then_some(())
    });
    kill(Pid::from_raw(script.id() as i32), Signal::SIGTERM).unwrap();
    script.wait().unwrap();

    said.add("the log", container.log());
    said.add("stdout", fs::read(disk.path("stdout")).unwrap());
    assert!(
        container.log().contains("OPENROUTER_API_KEY=[secret]"),
        "the gateway has told nothing"
    );
    container.kill();
    said.files(&disk.path("data"));
    said.files(&disk.path("run"));

    let mut container = boot();
    container.signal(Signal::SIGTERM);
    container.wait(PATIENCE);
    said.add("the second log", container.log());
    said.add("stdout", fs::read(disk.path("stdout")).unwrap());
    said.files(&disk.path("data"));
    said.files(&disk.path("run"));
    for arguments in arguments.end() {
        said.add("arguments", arguments);
    }
    for wanted in ["outbox.sqlite", "arguments", "devices approve"] {
        assert!(said.0.keys().any(|place| place.contains(wanted)), "nothing of {wanted}");
    }
    for tell in tells {
        for (place, bytes) in &said.0 {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains(&tell), "{tell} is in {place}: {text}");
        }
    }
}
