//! The whole module through its real edges: sockets, SQLite, a callback receiver.

mod delivery;
mod documents;
mod interface;
mod secrets;
mod tools;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use ulid::Ulid;

use super::{
    Callback, Place, Report, SOCKET, Settings,
    client::{Attached, Client, ClientError, Events, Lines, Outcome, Snapshots},
    control::{Action, Answer, Control, Devices, LogLine, Piece, Refusal, Stream},
    status::Status,
};
use crate::{
    config::secret::{Mask, Secret},
    event::{self, Event, Phase, ServiceState},
    state::model::{CommitId, Meta, Reason},
};

const TOKEN: &str = "correct horse battery staple";

/// A supervisor of which only the manners are real.
struct Fake;

fn line(text: &str) -> LogLine {
    LogLine {
        time: jiff::Timestamp::UNIX_EPOCH,
        stream: Stream::Stdout,
        text: text.to_owned(),
    }
}

fn commit() -> CommitId {
    CommitId {
        generation: Ulid::nil(),
        seq: 1,
    }
}

fn meta() -> Meta {
    Meta {
        id: commit(),
        parent: None,
        base: None,
        time: jiff::Timestamp::UNIX_EPOCH,
        reason: Reason::Manual,
        moltinit: "0".into(),
        gateway: None,
        files: 1,
        bytes: 2,
        suspicious: None,
        warnings: vec![],
    }
}

fn known(name: &str) -> Result<(), Refusal> {
    if name == "gateway" {
        Ok(())
    } else {
        Err(Refusal::NotFound(format!("there is no service `{name}`")))
    }
}

fn answer<T: Send + 'static>(result: Result<T, Refusal>) -> Answer<T> {
    std::future::ready(result).boxed()
}

impl Control for Fake {
    fn alive(&self) -> bool {
        true
    }

    fn service(&self, name: &str, action: Action) -> Result<Answer<()>, Refusal> {
        known(name)?;
        Ok(answer(match action {
            Action::Stop => Err(Refusal::Failed("it will not stop: canary-in-an-error".into())),
            _ => Ok(()),
        }))
    }

    fn attach(&self, name: &str, env: BTreeMap<String, String>) -> Result<Answer<i32>, Refusal> {
        known(name)?;
        Ok(answer(Ok(env["CODE"].parse().unwrap())))
    }

    fn logs(&self, service: &str, count: usize) -> Answer<Vec<LogLine>> {
        let lines = ["one", "two", "three"].map(line);
        answer(known(service).map(|()| lines[lines.len().saturating_sub(count)..].to_vec()))
    }

    fn follow(&self, service: &str, _: usize) -> Answer<stream::BoxStream<'static, Piece>> {
        answer(known(service).map(|()| {
            stream::iter([
                Piece::Line(line("one")),
                Piece::Missed { missed: 3 },
                Piece::Line(line("two\nlines")),
            ])
            .boxed()
        }))
    }

    fn snapshots(&self) -> Answer<Vec<Meta>> {
        answer(Ok(vec![meta()]))
    }

    fn snapshot_now(&self) -> Answer<Meta> {
        answer(Err(Refusal::Store("the store does not answer".into())))
    }

    fn restore(&self, _: CommitId) -> Result<Answer<()>, Refusal> {
        Err(Refusal::Conflict("a restore is running".into()))
    }

    fn devices(&self) -> Answer<Devices> {
        answer(Ok(Devices::default()))
    }

    fn approve(&self, request: &str) -> Answer<()> {
        answer(match request {
            "bad" => Err(Refusal::Failed("the gateway says: canary-in-an-error".into())),
            _ => Ok(()),
        })
    }
}

struct World {
    dir: TempDir,
    report: Report,
    events: event::Events,
    addr: SocketAddr,
}

fn place(dir: &Path, boot: Ulid) -> Place {
    Place {
        instance: "test".into(),
        boot,
        store_required: false,
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
    }
}

async fn world(settings: Settings) -> World {
    world_in(tempfile::tempdir().unwrap(), settings).await
}

async fn world_in(dir: TempDir, settings: Settings) -> World {
    let (events, receiver) = event::Events::channel();
    let report = Report::start(place(dir.path(), Ulid::generate()), settings, receiver).unwrap();
    let run = dir.path().join("run");
    let doors = super::bind("127.0.0.1:0".parse().unwrap(), &run).await.unwrap();
    let addr = doors.port.local_addr().unwrap();
    report.serve(doors, Arc::new(Fake));
    World {
        dir,
        report,
        events,
        addr,
    }
}

fn guarded() -> Settings {
    Settings {
        admin_token: Some(Secret::new(TOKEN.to_owned())),
        mask: Mask::new([TOKEN.to_owned()]),
        ..Settings::default()
    }
}

impl World {
    fn client(&self) -> Client {
        Client::unix(&self.dir.path().join("run").join(SOCKET))
    }

    /// A raw exchange on a connection of its own: status, header, body.
    async fn ask(&self, request: String) -> (u16, String, String) {
        let addr = self.addr;
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            (status, head.to_ascii_lowercase(), body.to_owned())
        })
        .await
        .unwrap()
    }

    async fn call(&self, method: &str, path: &str, more: &str) -> (u16, String, Value) {
        let (status, head, body) = self
            .ask(format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n"
            ))
            .await;
        let value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
        (status, head, value)
    }

    async fn with_token(&self, method: &str, path: &str) -> (u16, String, Value) {
        self.call(method, path, &format!("authorization: Bearer {TOKEN}\r\n"))
            .await
    }
}

fn problem(answer: &(u16, String, Value), status: u16) -> &str {
    assert_eq!(answer.0, status, "{answer:?}");
    assert!(
        answer.1.contains("content-type: application/problem+json"),
        "{answer:?}"
    );
    assert_eq!(answer.2["status"], status, "{answer:?}");
    answer.2["detail"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_follow_the_boot_and_need_no_token() {
    let world = world(Settings::default()).await;
    let (status, _, body) = world.call("GET", "/healthz", "").await;
    assert_eq!((status, body), (200, json!({ "ok": true, "status": "live" })));
    let (status, _, body) = world.call("GET", "/startupz", "").await;
    let starting = json!({ "ok": false, "status": "starting", "pendingReason": "store" });
    assert_eq!((status, body), (503, starting));
    let (status, _, body) = world.call("GET", "/readyz", "").await;
    assert_eq!(
        (status, body),
        (503, json!({ "ready": false, "failing": ["restore", "gateway"] }))
    );

    world.events.emit(Event::BootPhase { phase: Phase::Restore });
    world.events.emit(Event::RestoreProgress { done: 1, total: 3 });
    world.report.carry().await;
    let (_, _, body) = world.call("GET", "/startupz", "").await;
    assert_eq!(body["pendingReason"], "restore");
    assert_eq!(body["progress"], json!({ "doneBytes": 1, "totalBytes": 3 }));
    for phase in [Phase::Prepare, Phase::Services, Phase::Done] {
        world.events.emit(Event::BootPhase { phase });
    }
    world.events.emit(Event::ServiceChanged {
        service: "gateway".into(),
        state: ServiceState::Ready,
        pid: Some(1),
        restarts: 0,
        why: None,
    });
    world.report.carry().await;
    let (status, _, body) = world.call("GET", "/startupz", "").await;
    assert_eq!((status, body), (200, json!({ "ok": true, "status": "started" })));
    let (status, _, body) = world.call("GET", "/readyz", "").await;
    assert_eq!((status, body), (200, json!({ "ready": true })));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_probes_without_the_token() {
    let world = world(Settings::default()).await;
    let answer = world.with_token("GET", "/status").await;
    assert!(problem(&answer, 403).contains("MOLTINIT_ADMIN_TOKEN"));
    world.report.settings().send_replace(guarded());
    let answer = world.call("GET", "/status", "").await;
    problem(&answer, 401);
    assert!(answer.1.contains("www-authenticate: bearer"));
    let wrong = format!("authorization: Bearer {TOKEN}x\r\n");
    problem(&world.call("GET", "/status", &wrong).await, 401);
    problem(
        &world
            .call("POST", "/services/gateway/stop", "authorization: Basic abc\r\n")
            .await,
        401,
    );
    let (status, _, body) = world.with_token("GET", "/status").await;
    assert_eq!(status, 200);
    let _: Status = serde_json::from_value(body).unwrap();
    // Only through the socket.
    problem(&world.with_token("POST", "/services/gateway/attach").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_document() {
    let world = world(guarded()).await;
    problem(&world.with_token("GET", "/nothing").await, 404);
    problem(&world.with_token("GET", "/services/gateway/start").await, 405);
    problem(&world.with_token("GET", "/services/gateway/logs?n=many").await, 400);
    problem(
        &world.with_token("GET", "/services/gateway/logs?follow=perhaps").await,
        400,
    );
    problem(&world.with_token("GET", "/events?after=x").await, 400);
    problem(&world.with_token("GET", "/events?wait=soon").await, 400);
    problem(&world.with_token("GET", "/services/%FF/logs").await, 400);
    problem(&world.with_token("POST", "/services/nobody/start").await, 404);
    problem(&world.with_token("GET", "/operations/1").await, 404);
    problem(&world.with_token("POST", "/snapshots").await, 503);
    problem(&world.with_token("POST", "/snapshots/1/restore").await, 400);
    problem(
        &world
            .with_token("POST", &format!("/snapshots/{}/restore", commit()))
            .await,
        409,
    );
    let huge = format!("authorization: Bearer {TOKEN}\r\ncontent-length: 1048577\r\n");
    problem(&world.call("POST", "/snapshots", &huge).await, 413);
    let chunks = format!("{:x}\r\n{}\r\n0\r\n\r\n", 1_048_577, "x".repeat(1_048_577));
    let chunked = format!(
        "POST /snapshots HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\n\
         connection: close\r\n\r\n{chunks}"
    );
    let (status, ..) = world.ask(chunked).await;
    assert_eq!(status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_gets_through_the_socket() {
    let world = world(guarded()).await;
    let client = world.client();
    let status: Status = client.get("/status").await.unwrap();
    assert_eq!(status.instance, "test");
    let started = client.post_and_wait("/services/gateway/start").await.unwrap();
    assert_eq!((started.outcome, started.why), (Outcome::Done, None));
    let stopped = client.post_and_wait("/services/gateway/stop").await.unwrap();
    assert_eq!(
        (stopped.outcome, stopped.why.as_deref()),
        (Outcome::Failed, Some("it will not stop: canary-in-an-error"))
    );
    match client.post_and_wait("/services/nobody/stop").await {
        Err(ClientError::Refused(problem)) => assert_eq!(problem.status, 404),
        other => panic!("{other:?}"),
    }
    let snapshots: Snapshots = client.get("/snapshots").await.unwrap();
    assert_eq!(snapshots.snapshots, [meta()]);
    let Lines { lines } = client.get("/services/gateway/logs?n=2").await.unwrap();
    assert_eq!(lines, [line("two"), line("three")]);
    let followed = client.follow::<Piece>("/services/gateway/logs?follow=1").await.unwrap();
    let followed: Vec<Piece> = followed.map(Result::unwrap).collect().await;
    let expected = [
        Piece::Line(line("one")),
        Piece::Missed { missed: 3 },
        Piece::Line(line("two\nlines")),
    ];
    assert_eq!(followed, expected);
    let env = json!({ "env": { "CODE": "7" } });
    let attached: Attached = client.post("/services/gateway/attach", Some(&env)).await.unwrap();
    assert_eq!(attached.exit_code, 7);

    let elsewhere = Client::unix(Path::new("/nowhere/control.sock"));
    let error = elsewhere.get::<Status>("/status").await.unwrap_err();
    assert!(error.to_string().contains("no moltinit is running"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_its_owner_and_for_one_moltinit() {
    use std::os::unix::fs::PermissionsExt;
    let world = world(guarded()).await;
    let path = world.dir.path().join("run").join(SOCKET);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = super::http::socket(&path).unwrap_err();
    assert!(error.to_string().contains("another moltinit"), "{error}");
    // One that a dead moltinit left is replaced.
    let left = world.dir.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    super::http::socket(&left).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|run| dir.path().join(run));
    let doors = super::bind("127.0.0.1:0".parse().unwrap(), &one).await.unwrap();
    let addr = doors.port.local_addr().unwrap();
    let error = super::bind(addr, &other).await.unwrap_err().to_string();
    assert!(
        error.contains(&addr.to_string()) && error.contains("MOLTINIT_HTTP_ADDR"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_numbered_masked_and_waited_for() {
    let world = world(guarded()).await;
    world.events.emit(Event::BootStarted {
        version: "0",
        pid1: true,
    });
    let client = world.client();
    let events: Events = client.get("/events?after=0&wait=30s").await.unwrap();
    assert_eq!((events.next, events.events[0].kind.as_str()), (1, "boot.started"));
    assert_eq!(events.events[0].id, format!("{}-00000001", events.boot));
    assert_eq!(events.events[0].instance, "test");

    let poll = tokio::spawn(async move { client.get::<Events>("/events?after=1&wait=60s").await });
    world.events.emit(Event::ServiceUnhealthy {
        service: "gateway".into(),
        why: format!("GET /?token={TOKEN} failed"),
    });
    let events = poll.await.unwrap().unwrap();
    assert_eq!(events.events[0].seq, 2);
    assert_eq!(events.events[0].data["why"], "GET /?token=[secret] failed");
    // The poll was woken, it did not run into its end.
    let nothing: Events = world.client().get("/events?after=2&wait=10ms").await.unwrap();
    assert_eq!((nothing.events.len(), nothing.next), (0, 2));
}

/// Whoever asks with the boot and the number of the answer before gets every event, whatever was restarted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_goes_on_from_one_boot_to_the_next() {
    let exited = |pid| Event::ServiceStarted {
        service: "gateway".into(),
        pid,
    };
    let mut world = world(guarded()).await;
    let mut seen = Vec::new();
    let mut from = String::new();
    for round in 0..3 {
        for pid in 0..=round {
            world.events.emit(exited(pid));
        }
        world.report.carry().await;
        let begun = Instant::now();
        // A boot that wrote nothing more is passed over at once, one that has yet to write is waited for.
        while seen.len() < (round as usize + 1) * (round as usize + 2) / 2 {
            let path = format!("/events?{from}wait=20s");
            let events: Events = world.client().get(&path).await.unwrap();
            from = format!("boot={}&after={}&", events.boot, events.next);
            seen.extend(events.events.into_iter().map(|event| (event.boot, event.seq)));
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        let World { dir, report, .. } = world;
        report.close(Duration::from_secs(5)).await;
        // The restart, in the same container; the socket is still served in this process.
        std::fs::remove_file(dir.path().join("run").join(SOCKET)).unwrap();
        world = world_in(dir, guarded()).await;
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [1, 1, 2, 1, 2, 3]);
    // Nothing follows the last boot but what the present one will say.
    let path = format!("/events?{from}wait=20s");
    let client = world.client();
    let poll = tokio::spawn(async move { client.get::<Events>(&path).await.unwrap() });
    world.events.emit(exited(9));
    let events = poll.await.unwrap();
    assert_eq!((events.boot, events.next), (world.report.status().boot.id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_told_together_and_at_the_end() {
    let world = world(guarded()).await;
    let committed = |seq| Event::SnapshotCommitted {
        commit: CommitId {
            generation: Ulid::nil(),
            seq,
        },
        parent: None,
        files: 1,
        state_bytes: 1,
        stored_bytes: 10,
        operations: 2,
        took_ms: 1,
        warnings: Vec::new(),
    };
    for seq in 1..=5 {
        world.events.emit(committed(seq));
    }
    let status = {
        world.report.carry().await;
        world.report.status()
    };
    assert_eq!((status.snapshots.commits, status.costs.write_operations), (5, 10));
    let told = |events: &Events| -> u64 {
        let commits = events.events.iter().filter_map(|event| event.data["commits"].as_u64());
        commits.sum()
    };
    let events: Events = world.client().get("/events").await.unwrap();
    assert_eq!(told(&events), 5);
    assert!(events.events.len() <= 2, "{events:?}");

    // The end of the boot is the last that is told of it, though commits were held back until then.
    world.events.emit(committed(6));
    world.events.emit(finished());
    world.report.carry().await;
    let events: Events = world.client().get("/events").await.unwrap();
    assert_eq!(told(&events), 6);
    assert_eq!(events.events.last().unwrap().kind, "shutdown.finished");
}

fn finished() -> Event {
    Event::ShutdownFinished {
        code: 0,
        pending_paths: 0,
        why: None,
    }
}

/// Ends the threads that burn the processors.
struct Burning(Arc<AtomicBool>);

impl Burning {
    fn start() -> Burning {
        let on = Arc::new(AtomicBool::new(true));
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let on = on.clone();
            std::thread::spawn(move || {
                while on.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Burning(on)
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A connection that has sent half a request holds up nobody, however many there are; nor does a full outbox, nor a
/// gateway that takes every processor.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_starve_the_probes() {
    let world = world(guarded()).await;
    let addr = world.addr;
    let held = tokio::task::spawn_blocking(move || {
        let mut held = Vec::new();
        // More than there may be at once: the quiet ones make room.
        for number in 0..600 {
            let mut stream = TcpStream::connect(addr).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nx-slow: ").unwrap();
            }
            held.push(stream);
        }
        held
    })
    .await
    .unwrap();
    let _burning = Burning::start();
    for pid in 0..12_000 {
        world.events.emit(Event::ServiceStarted {
            service: "gateway".into(),
            pid,
        });
    }
    for _ in 0..20 {
        let begun = Instant::now();
        let (status, ..) = world.call("GET", "/healthz", "").await;
        assert_eq!(status, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    drop(held);
}

/// Polls that may stay open keep a probe out no more than connections that may not; and whoever does nothing goes before
/// whoever waits for something.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_gets_in_among_as_many_polls_as_there_may_be() {
    let world = world(guarded()).await;
    let addr = world.addr;
    let held = tokio::task::spawn_blocking(move || {
        let connect = |first: &str| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(first.as_bytes()).unwrap();
            stream
        };
        let poll = format!("GET /events?wait=60s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
        let oldest = connect(&poll);
        let idle: Vec<TcpStream> = (0..600).map(|_| connect("")).collect();
        // Asked for before all those came, and not closed for their sake.
        oldest.set_nonblocking(true).unwrap();
        let waits = (&oldest).read(&mut [0; 1]).unwrap_err();
        assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock);
        let polls: Vec<TcpStream> = (0..600).map(|_| connect(&poll)).collect();
        (oldest, idle, polls)
    })
    .await
    .unwrap();
    for _ in 0..5 {
        let (status, ..) = world.call("GET", "/healthz", "").await;
        assert_eq!(status, 200);
    }
    drop(held);
}
