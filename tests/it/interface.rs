//! The HTTP interface of the real binary: it is as it says of itself, and its probes answer whatever goes on.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    container::{Container, Disk, TOKEN, stand_in},
    eventually, http,
    receiver::CALLBACK_SECRET,
    s3::{Mount, S3, Wire},
};

/// Takes out of the description what never comes to an end, or not soon, and is right in that.
fn shortened(mut description: Value) -> Value {
    for path in ["/events", "/operations/{id}"] {
        let mut all = parameters(&mut description, path).iter_mut();
        let wait = all.find(|one| one["name"] == "wait").unwrap();
        wait["schema"]["pattern"] = json!("^([0-9]{1,2}ms|0)$");
    }
    parameters(&mut description, "/services/{name}/logs").retain(|one| one["name"] != "follow");
    description
}

fn parameters<'a>(description: &'a mut Value, path: &str) -> &'a mut Vec<Value> {
    description["paths"][path]["get"]["parameters"].as_array_mut().unwrap()
}

#[test]
fn the_server_is_as_its_description_says() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    let description = disk.path("openapi.json");
    let document = shortened(container.get("/openapi.json").unwrap().json());
    fs::write(&description, document.to_string()).unwrap();
    let packages = std::env::var_os("MOLTINIT_TEST_PYTHONPATH").expect("run the tests by ./scripts/test");
    let output = Command::new("python3")
        .args(["-m", "schemathesis.cli", "run", "--no-color"])
        .arg(description)
        .args(["--url", &format!("http://127.0.0.1:{}", container.port)])
        .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", "all", "--max-examples", "20", "--seed", "1"])
        // A probe that says no is no error of the server.
        .args(["--exclude-checks", "not_a_server_error", "--request-timeout", "30"])
        .arg("--generation-deterministic")
        .env("PYTHONPATH", packages)
        .current_dir(disk.dir.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    assert_eq!(container.get("/healthz").unwrap().status, 200);
}

/// So many connections that somebody holds open, none of which comes to anything.
fn slow_clients(port: u16, count: usize) -> Vec<TcpStream> {
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let begun = [
        String::new(),
        "GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_owned(),
        format!("POST /snapshots HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: 1000\r\n\r\nhalf"),
        // What there is to read is not read.
        format!("GET /services/gateway/logs?n=10000&follow=true HTTP/1.1\r\nHost: x\r\n{bearer}\r\n"),
        format!("GET /events?after=0&boot={EARLIER} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n"),
    ];
    let connect = |begun: &String| {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        stream.write_all(begun.as_bytes()).unwrap();
        stream
    };
    begun.iter().cycle().take(count).map(connect).collect()
}

/// A boot before the first.
const EARLIER: &str = "00000000000000000000000001";
/// What the event log holds at most.
const BOUND: u64 = 10_000;

/// Puts as many undelivered events into the log as it takes.
fn fill_outbox(disk: &Disk) {
    let log = Connection::open(disk.path("run/outbox.sqlite")).unwrap();
    let fill = "WITH RECURSIVE numbers(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM numbers WHERE seq < ?2)
        INSERT INTO events (boot, seq, type, time, instance, data)
        SELECT ?1, seq, 'service.exited', '2026-11-23T12:00:00Z', 'default', '{\"service\":\"gateway\"}' FROM numbers";
    log.execute(fill, (EARLIER, BOUND)).unwrap();
}

/// A gateway that burns both cores, a service that never comes up, and a receiver of callbacks that is not there.
fn burdened(disk: &Disk, mount: &Mount) -> Container {
    let file = disk.path("moltinit.toml");
    fs::write(
        &file,
        r#"
            [[service]]
            name = "gateway"
            command = ["sh", "-c", "yes >/dev/null & exec yes >/dev/null"]
            ready = { command = ["true"] }
            live = { command = ["true"] }

            [[service]]
            name = "hopeless"
            command = ["sh", "-c", "echo it is of no use; exit 1"]
            backoff = { first = "200ms", base = "200ms", max = "200ms", reset_after = "1h" }
            crash_loop = { restarts = 100000, within = "1h" }
        "#,
    )
    .unwrap();
    let env = [
        ("MOLTINIT_CONFIG", file.to_str().unwrap()),
        ("MOLTINIT_CALLBACK_URL", "http://127.0.0.1:9/hook"),
        ("MOLTINIT_CALLBACK_SECRET", CALLBACK_SECRET),
    ];
    Container::start(disk, &mount.path, &env, &["run"])
}

/// A container with a hanging mount cannot end, whatever became of the test.
struct Unhung<'a>(&'a Wire);

impl Drop for Unhung<'_> {
    fn drop(&mut self) {
        self.0.tell("ok");
    }
}

#[test]
fn probes_answer_while_everything_else_is_stuck() {
    /// For any of them: far more than it takes on a busy machine, far less than what anything else waits for.
    const SLOWEST: Duration = Duration::from_secs(5);
    /// For half of them. Under 50 ms is what is promised; burners and tests share the cores.
    const MEDIAN: Duration = Duration::from_millis(250);

    let s3 = S3::start();
    let wire = Wire::to(&s3, 0);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::through(&wire, dir.path());
    let disk = Disk::new();
    let first = burdened(&disk, &mount);
    first.wait_for("/startupz", PATIENCE);
    first.kill();
    fill_outbox(&disk);

    let container = burdened(&disk, &mount);
    let _unhung = Unhung(&wire);
    container.wait_for("/startupz", PATIENCE);
    eventually(format_args!("a full outbox; log: {container}"), PATIENCE, || {
        let events = container.status()["events"].clone();
        let full = events["dropped"].as_u64()? > 0 && events["undelivered"].as_u64()? > BOUND * 9 / 10;
        full.then_some(())
    });
    wire.tell("hang");
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "a change").unwrap();
    let behind = || container.status()["snapshots"]["behind_seconds"].as_u64().unwrap();
    eventually("a change that waits", PATIENCE, || (behind() >= 2).then_some(()));

    let mut took = Vec::new();
    for _ in 0..4 {
        let _held = slow_clients(container.port, 200);
        for _ in 0..25 {
            for probe in ["/healthz", "/readyz", "/startupz", "/status"] {
                let began = Instant::now();
                let answer = http::get(container.port, probe, Some(TOKEN)).unwrap();
                assert!(matches!(answer.status, 200 | 503), "{probe}: {answer:?}");
                took.push(began.elapsed());
            }
        }
    }
    took.sort();
    let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{} answers: median {median:?}, slowest {slowest:?}", took.len());
    assert!(
        median < MEDIAN && slowest < SLOWEST,
        "median {median:?}, slowest {slowest:?}"
    );
    let status = container.status();
    assert!(behind() >= 2, "the mount does not hang");
    assert!(status["services"]["gateway"]["pid"].is_i64(), "nobody burns anything");
    assert!(status["events"]["undelivered"].as_u64().unwrap() > BOUND * 9 / 10);
    assert_eq!(status["callbacks"]["state"], "retrying");
}
