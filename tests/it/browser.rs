//! The browser port: with a real Chromium behind it and the clients that agents use, and with an upstream of our own
//! where the upstream has to misbehave.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use moltinit::{
    browser::{Port, upstream::Upstream},
    config::{self, env::Env},
    event::{Event, Events},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, accept_async, accept_hdr_async, connect_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::support::{
    PATIENCE,
    browser::{Chromium, Worker, behind_a_worker, port},
    container::Disk,
    eventually, free_port, http,
};

pub type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub async fn connect(port: u16) -> Client {
    let url = format!("ws://127.0.0.1:{port}/devtools/browser/moltinit");
    tokio::time::timeout(Duration::from_secs(20), connect_async(url))
        .await
        .unwrap()
        .unwrap()
        .0
}

/// What does not come is a failure, not a test that hangs.
pub async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, coming).await.expect("it comes in time")
}

pub async fn next(client: &mut Client) -> Message {
    tokio::time::timeout(PATIENCE, client.next())
        .await
        .expect("a message in time")
        .expect("a message")
        .unwrap()
}

/// An upstream of our own: counts its dials, and does with each connection what it is told.
async fn upstream<F, Fut>(serve: F) -> (String, Arc<AtomicUsize>)
where
    F: Fn(WebSocketStream<TcpStream>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
            let socket = tokio_tungstenite::accept_async_with_config(stream, Some(limits))
                .await
                .unwrap();
            tokio::spawn(serve(socket));
        }
    });
    (url, dials)
}

/// Sends back what comes.
async fn echo(mut socket: WebSocketStream<TcpStream>) {
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

pub async fn drive(library: &str, port: u16, what: Option<&str>) -> Value {
    let mut node = Command::new("timeout");
    node.args([
        "120",
        "node",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/drive-browser.mjs"),
    ])
    .args([library, &format!("http://127.0.0.1:{port}")])
    .args(what);
    let output = tokio::task::spawn_blocking(move || node.output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.status.success(),
        "{library}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn playwright_and_puppeteer_drive_a_real_browser() {
    let chromium = Chromium::start();
    let (port, mut said) = port(&format!("http://127.0.0.1:{}", chromium.port), &[]).await;
    // Both at once.
    let (playwright, puppeteer) = tokio::join!(drive("playwright", port, None), drive("puppeteer", port, None));
    for seen in [playwright, puppeteer] {
        assert_eq!(seen, a_page());
        assert!(matches!(said.recv().await, Some(Event::BrowserConnected { .. })));
    }
    assert_eq!(
        drive("playwright", port, Some("download")).await,
        json!({ "name": "greeting.txt", "text": "hello" })
    );
}

/// What is seen of the page that `drive` makes.
pub fn a_page() -> Value {
    json!({ "title": "A page", "heading": "hello", "long": 3_000_000, "png": "PNG" })
}

fn a_tour() -> Value {
    json!({
        "title": "Search", "typed": "two words", "found": "two words", "sum": { "sum": 3 }, "pdf": "%PDF",
        "tabs": ["Found", "Found"], "wrong": true, "lost": true, "left": 1,
    })
}

pub async fn command(client: &mut Client, command: Value) {
    client.send(Message::text(command.to_string())).await.unwrap();
}

/// Waits for the close frame, whatever comes before it.
pub async fn closed(client: &mut Client) -> CloseFrame {
    loop {
        match next(client).await {
            Message::Close(frame) => return frame.expect("a code"),
            _ => continue,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_dies_closes_the_client_and_is_reported() {
    let chromium = Chromium::start();
    let (port, mut said) = port(&format!("http://127.0.0.1:{}", chromium.port), &[]).await;
    let mut client = connect(port).await;
    command(&mut client, json!({ "id": 1, "method": "Target.getTargets" })).await;
    next(&mut client).await;
    assert!(matches!(said.recv().await, Some(Event::BrowserConnected { .. })));
    tokio::task::spawn_blocking(move || drop(chromium)).await.unwrap();
    let frame = closed(&mut client).await;
    assert_eq!(frame.code, CloseCode::Error);
    assert!(frame.reason.contains("browser"), "{frame:?}");
    assert!(matches!(said.recv().await, Some(Event::BrowserFailed { .. })));
}

/// The Worker of ours in real workerd, before a real Chromium; and the Worker is deployed again in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_behind_the_workers_relay() {
    let chromium = Chromium::start();
    let listen = free_port();
    let worker = Worker::relay(&chromium, Some(listen));
    let env = [("WORKER_URL", worker.url.as_str()), ("CDP_SECRET", "relay-secret")];
    let (port, mut said) = port("worker", &env).await;
    for library in ["playwright", "puppeteer"] {
        let seen = drive(library, port, Some("tour")).await;
        let of = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            ["title", "found", "pdf"].map(of),
            ["Search", "two words", "%PDF"],
            "{seen}"
        );
    }
    assert!(matches!(said.recv().await, Some(Event::BrowserConnected { .. })));
    let mut client = connect(port).await;
    // By now it is known which browser it is.
    command(&mut client, json!({ "id": 1, "method": "Browser.getVersion" })).await;
    let version: Value = serde_json::from_str(next(&mut client).await.to_text().unwrap()).unwrap();
    assert!(version["result"]["jsVersion"] != "14.0.0.0", "{version}");
    command(&mut client, json!({ "id": 2, "method": "Target.getTargets" })).await;
    next(&mut client).await;
    drop(worker);
    assert_eq!(closed(&mut client).await.code, CloseCode::Error);
    let _worker = Worker::relay(&chromium, Some(listen));
    assert_eq!(drive("puppeteer", port, None).await, a_page());
}

/// An upstream that looks like moltworker's shim, as far as `serve` takes it there.
async fn shim<F, Fut>(serve: F) -> u16
where
    F: Fn(WebSocketStream<TcpStream>) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (url, _) = upstream(move |mut socket| {
        let serve = serve.clone();
        async move {
            let created = json!({ "method": "Target.targetCreated", "params": { "targetInfo": { "targetId": "T", "type": "page" } } });
            socket.send(Message::text(created.to_string())).await.unwrap();
            serve(socket).await;
        }
    })
    .await;
    let worker = url.replace("ws://", "http://");
    port("worker", &[("WORKER_URL", &worker), ("CDP_SECRET", "secret")])
        .await
        .0
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_shim_are_closed_as_they_should_be() {
    let (heard, mut closes) = tokio::sync::mpsc::unbounded_channel();
    let port = shim(move |mut socket: WebSocketStream<TcpStream>| {
        let heard = heard.clone();
        async move {
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Text(text) if text.contains("close me") => {
                        let frame = CloseFrame {
                            code: CloseCode::Library(4007),
                            reason: "as you wish".into(),
                        };
                        socket.close(Some(frame)).await.unwrap();
                    }
                    Message::Text(text) if text.contains("flood me") => {
                        let _ = socket.send(Message::text("x".repeat(33 << 20))).await;
                    }
                    Message::Close(Some(frame)) => heard.send(u16::from(frame.code)).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let open = async || {
        let mut client = connect(port).await;
        command(&mut client, json!({ "id": 1, "method": "Target.getTargets" })).await;
        assert!(next(&mut client).await.to_text().unwrap().contains("targetInfos"));
        client
    };
    let mut client = open().await;
    command(&mut client, json!({ "id": 2, "method": "close me" })).await;
    let frame = closed(&mut client).await;
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4007, "as you wish"));
    assert_eq!(soon(closes.recv()).await, Some(4007));

    let mut client = open().await;
    let frame = CloseFrame {
        code: CloseCode::Library(4008),
        reason: "bye".into(),
    };
    client.close(Some(frame)).await.unwrap();
    assert_eq!(u16::from(closed(&mut client).await.code), 4008);

    let mut client = open().await;
    client.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(closed(&mut client).await.code, CloseCode::Unsupported);

    let mut client = open().await;
    command(&mut client, json!({ "id": 2, "method": "flood me" })).await;
    assert_eq!(closed(&mut client).await.code, CloseCode::Size);

    let client = open().await;
    let (mut to, mut from) = client.split();
    let sending = tokio::spawn(async move { to.send(Message::text("x".repeat(33 << 20))).await });
    let end = tokio::time::timeout(PATIENCE, from.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(matches!(end, Message::Close(Some(frame)) if frame.code == CloseCode::Size));
    let _ = sending.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn playwright_and_puppeteer_get_along_with_moltworkers_shim() {
    let chromium = Chromium::start();
    let shim = Worker::shim(&chromium);
    let env = [("WORKER_URL", shim.url.as_str()), ("CDP_SECRET", "shim-secret")];
    let (port, _said) = port("worker", &env).await;
    for library in ["playwright", "puppeteer"] {
        let seen = drive(library, port, Some("tour")).await;
        assert_eq!(seen, a_tour(), "{library}");
    }
    assert_eq!(drive("playwright", port, None).await, a_page());
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_shows_the_browsers_answers_and_leads_here() {
    let chromium = Chromium::start();
    let (port, _said) = port(&format!("http://127.0.0.1:{}", chromium.port), &[]).await;
    let ask = async |method: &'static str, path: String| {
        tokio::task::spawn_blocking(move || http::request(method, port, &path, None, "").unwrap())
            .await
            .unwrap()
    };
    let version = ask("GET", "/json/version".into()).await.json();
    assert!(version["Browser"].as_str().unwrap().contains("Chrome/"));
    let here = format!("ws://127.0.0.1:{port}/devtools/");
    assert!(version["webSocketDebuggerUrl"].as_str().unwrap().starts_with(&here));
    assert_eq!(ask("GET", "/json/new".into()).await.status, 405);
    let page = ask("PUT", "/json/new?about:blank".into()).await.json();
    let id = page["id"].as_str().unwrap().to_owned();
    assert!(page["webSocketDebuggerUrl"].as_str().unwrap().starts_with(&here));
    for list in ["/json", "/json/list", "/json/list/"] {
        let pages = ask("GET", list.into()).await.json();
        assert!(pages.as_array().unwrap().iter().any(|page| page["id"] == id.as_str()));
    }
    let (mut socket, _) = connect_async(page["webSocketDebuggerUrl"].as_str().unwrap())
        .await
        .unwrap();
    socket
        .send(Message::text(json!({ "id": 1, "method": "Page.enable" }).to_string()))
        .await
        .unwrap();
    while !next(&mut socket).await.to_text().unwrap().contains("\"id\":1") {}
    assert_eq!(ask("GET", format!("/json/activate/{id}")).await.status, 200);
    assert_eq!(ask("GET", format!("/json/close/{id}")).await.status, 200);
    let gone = ask("GET", "/json/close/nobody".into()).await;
    assert_eq!((gone.status, gone.body.as_str()), (404, "No such target id: nobody"));
    assert!(ask("GET", "/json/protocol".into()).await.json()["domains"].is_array());
    assert_eq!(ask("GET", "/json/nonsense".into()).await.status, 404);
}

#[tokio::test]
async fn a_probe_launches_nothing() {
    let (url, dials) = upstream(echo).await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(next(&mut client).await, Message::Pong("p".into()));
    client
        .send(Message::text(r#"{"id":7,"method":"Browser.getVersion"}"#))
        .await
        .unwrap();
    let version: Value = serde_json::from_str(next(&mut client).await.to_text().unwrap()).unwrap();
    assert_eq!(version["id"], 7);
    assert!(version["result"]["protocolVersion"].is_string());
    client.close(None).await.unwrap();
    assert!(matches!(next(&mut client).await, Message::Close(_)));
    drop(connect(port).await);
    assert_eq!(dials.load(Ordering::SeqCst), 0);
    // And the first real command does.
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    assert_eq!(next(&mut client).await.to_text().unwrap(), "{\"id\":1}");
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_sent_before_the_browser_is_there_arrives_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, _said) = port(&format!("ws://{}/", listener.local_addr().unwrap()), &[]).await;
    let mut client = connect(port).await;
    for number in 0..200 {
        client.send(Message::text(format!("{number:0>1000}"))).await.unwrap();
    }
    // A cold browser.
    let (stream, _) = listener.accept().await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let mut browser = accept_async(stream).await.unwrap();
    for number in 0..200 {
        let message = browser.next().await.unwrap().unwrap();
        assert_eq!(message.to_text().unwrap(), format!("{number:0>1000}"));
    }
    browser.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(next(&mut client).await, Message::binary(vec![1, 2, 3]));
}

/// A client may leave the end of the connection to the server (RFC 6455, section 7.1.1), as Node's does.
#[tokio::test]
async fn a_clean_close_ends_the_connection_at_once() {
    let (url, _) = upstream(echo).await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    next(&mut client).await;
    let begun = Instant::now();
    client.close(None).await.unwrap();
    // Ends with the connection, which this client does not end.
    while client.next().await.is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_vanishes_takes_the_browser_along() {
    let (heard, mut closes) = tokio::sync::mpsc::unbounded_channel();
    let (url, _) = upstream(move |mut socket: WebSocketStream<TcpStream>| {
        let heard = heard.clone();
        async move {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(Some(frame)) = message {
                    heard.send(frame.code).unwrap();
                } else if message.is_text() {
                    socket.send(message).await.unwrap();
                }
            }
        }
    })
    .await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    next(&mut client).await;
    let begun = Instant::now();
    drop(client);
    assert_eq!(soon(closes.recv()).await, Some(CloseCode::Away));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// Pings of ours reach both sides, and their answers nobody else.
#[tokio::test]
async fn both_sides_of_an_idle_session_are_asked_whether_they_live() {
    let (heard, mut pings) = tokio::sync::mpsc::unbounded_channel();
    let (url, _) = upstream(move |mut socket: WebSocketStream<TcpStream>| {
        let heard = heard.clone();
        async move {
            while let Some(Ok(message)) = socket.next().await {
                heard.send(message).unwrap();
            }
        }
    })
    .await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("first")).await.unwrap();
    assert_eq!(next(&mut client).await, Message::Ping("moltinit".into()));
    client.send(Message::text("second")).await.unwrap();
    let mut came = Vec::new();
    while came.len() < 3 {
        came.push(pings.recv().await.unwrap());
    }
    let texts: Vec<&Message> = came.iter().filter(|message| message.is_text()).collect();
    assert_eq!(texts, [&Message::text("first"), &Message::text("second")]);
    assert!(came.contains(&Message::Ping("moltinit".into())));
}

/// An upstream that takes connections and says nothing.
async fn black_hole() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

/// The gateway gives discovery 300 ms and the upgrade 600 ms. The best of a few, as this machine may be busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_upstream_holds_up_neither_discovery_nor_the_upgrade() {
    let (addr, _hole) = black_hole().await;
    let (port, _said) = port(&format!("http://{addr}"), &[]).await;
    let (mut discovery, mut upgrade) = (Duration::MAX, Duration::MAX);
    for _ in 0..8 {
        let begun = Instant::now();
        let version = tokio::task::spawn_blocking(move || http::request("GET", port, "/json/version", None, ""));
        assert!(
            version.await.unwrap().unwrap().json()["Browser"]
                .as_str()
                .unwrap()
                .starts_with("Chrome/")
        );
        discovery = discovery.min(begun.elapsed());
        let begun = Instant::now();
        let mut client = connect(port).await;
        client.send(Message::text("{\"id\":1}")).await.unwrap();
        upgrade = upgrade.min(begun.elapsed());
    }
    assert!(discovery < Duration::from_millis(300), "{discovery:?}");
    assert!(upgrade < Duration::from_millis(600), "{upgrade:?}");
}

#[tokio::test]
async fn a_goodbye_ends_the_dial() {
    let (addr, hole) = black_hole().await;
    let (port, _said) = port(&format!("ws://{addr}"), &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    let (mut dialled, _) = hole.accept().await.unwrap();
    let frame = CloseFrame {
        code: CloseCode::Library(4009),
        reason: "changed my mind".into(),
    };
    client.close(Some(frame)).await.unwrap();
    assert_eq!(u16::from(closed(&mut client).await.code), 4009);
    // The request for a WebSocket, and then nothing more.
    let mut request = Vec::new();
    let ended = dialled.read_to_end(&mut request);
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("the dial is given up")
        .unwrap();
}

#[tokio::test]
async fn many_idle_clients_do_not_block_discovery() {
    let (url, dials) = upstream(echo).await;
    let (port, _said) = port(&url, &[]).await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(connect(port).await);
    }
    let refused = connect_async(format!("ws://127.0.0.1:{port}/devtools/browser/x"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    let version = tokio::task::spawn_blocking(move || http::request("GET", port, "/json/version", None, ""));
    assert_eq!(version.await.unwrap().unwrap().status, 200);
    drop(idle.pop());
    let mut client = connect_again(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    next(&mut client).await;
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

/// Slowloris: more connections than there may be, each of which says its request a byte at a time.
#[tokio::test(flavor = "multi_thread")]
async fn who_never_finishes_a_request_keeps_nobody_out() {
    let (url, _) = upstream(echo).await;
    let (port, _said) = port(&url, &[]).await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /json/version HTTP/1.1\r\nHost: ").await.unwrap();
        slow.spawn(async move {
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    let version = tokio::task::spawn_blocking(move || {
        eventually("an answer", PATIENCE, || {
            http::request("GET", port, "/json/version", None, "").ok()
        })
    });
    assert_eq!(version.await.unwrap().status, 200);
    // And they are closed, every one.
    soon(async { while slow.join_next().await.is_some() {} }).await;
}

/// Connects as soon as there is room.
async fn connect_again(port: u16) -> Client {
    loop {
        match connect_async(format!("ws://127.0.0.1:{port}/devtools/browser/x")).await {
            Ok((client, _)) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Browser Rendering's own endpoint, as far as we speak to it.
#[tokio::test]
async fn cloudflares_own_endpoint_is_dialled_as_it_wants_to_be() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}/client/v4", listener.local_addr().unwrap());
    let env = [
        ("CF_ACCOUNT_ID", "acct"),
        ("CF_BROWSER_TOKEN", "cf-browser-canary"),
        ("CLOUDFLARE_API_BASE_URL", &api),
    ];
    let (port, mut said) = port("cloudflare", &env).await;
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        #[expect(clippy::result_large_err, reason = "it is what the library asks for")]
        let look = |request: &Request, answer: Response| {
            let bearer = request.headers().get("authorization").unwrap().to_str().unwrap();
            seen = vec![request.uri().to_string(), bearer.to_owned()];
            Ok(answer)
        };
        let mut browser = accept_hdr_async(stream, look).await.unwrap();
        let message = browser.next().await.unwrap().unwrap();
        let asked: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        let answer = json!({ "id": asked["id"], "result": { "sessionId": "S" } });
        browser.send(Message::text(answer.to_string())).await.unwrap();
        let message = browser.next().await.unwrap().unwrap();
        browser.send(message).await.unwrap();
        drop(browser);
        let (mut refusing, _) = listener.accept().await.unwrap();
        assert!(refusing.read(&mut [0; 4096]).await.unwrap() > 0);
        refusing
            .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        seen
    });
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    assert_eq!(next(&mut client).await.to_text().unwrap(), "{\"id\":1}");
    assert!(matches!(said.recv().await, Some(Event::BrowserConnected { .. })));
    closed(&mut client).await;
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    let why = next(&mut client).await.to_string();
    assert!(why.contains("CF_BROWSER_TOKEN") && !why.contains("canary"), "{why}");
    let path = "/client/v4/accounts/acct/browser-rendering/devtools/browser?keep_alive=600000";
    assert_eq!(serving.await.unwrap(), [path, "Bearer cf-browser-canary"]);
}

/// What becomes of the port and of the browser is in the status document; and a port that was taken is had later.
#[test]
fn the_status_says_what_becomes_of_the_browser() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let worker = runtime.block_on(answers("HTTP/1.1 403 Forbidden"));
    let disk = Disk::new();
    let container = behind_a_worker(&disk, &worker, &addr);
    let until = |state: &str| {
        eventually(format_args!("{state}; log: {container}"), PATIENCE, || {
            let browser = container.status()["browser"].clone();
            (browser["state"] == state).then_some(browser)
        })
    };
    assert!(until("failed")["why"].as_str().unwrap().contains("MOLTINIT_CDP_ADDR"));
    drop(taken);
    let browser = until("unused");
    assert!(
        browser["upstream"].as_str().unwrap().starts_with("worker at 127.0.0.1"),
        "{browser}"
    );
    assert!(browser["why"].is_null(), "{browser}");
    runtime.block_on(async {
        let mut client = connect(addr.rsplit_once(':').unwrap().1.parse().unwrap()).await;
        client.send(Message::text("{\"id\":1}")).await.unwrap();
        closed(&mut client).await;
    });
    let browser = until("failed");
    assert!(browser["why"].as_str().unwrap().contains("403"), "{browser}");
    assert!(!container.status().to_string().contains("canary"));
}

#[tokio::test]
async fn close_codes_and_reasons_pass_both_ways() {
    let (heard, mut closes) = tokio::sync::mpsc::unbounded_channel();
    let (url, _) = upstream(move |mut socket: WebSocketStream<TcpStream>| {
        let heard = heard.clone();
        async move {
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Text(text) if text.as_str() == "close me" => {
                        let frame = CloseFrame {
                            code: CloseCode::Library(4007),
                            reason: "as you wish".into(),
                        };
                        socket.close(Some(frame)).await.unwrap();
                    }
                    Message::Close(frame) => heard.send(frame.unwrap().code).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("close me")).await.unwrap();
    let Message::Close(Some(frame)) = next(&mut client).await else {
        panic!("no close")
    };
    assert_eq!(
        (frame.code, frame.reason.as_str()),
        (CloseCode::Library(4007), "as you wish")
    );
    while client.next().await.is_some() {}
    assert_eq!(soon(closes.recv()).await, Some(CloseCode::Library(4007)));

    let mut client = connect(port).await;
    client.send(Message::text("stay")).await.unwrap();
    let frame = CloseFrame {
        code: CloseCode::Library(4008),
        reason: "bye".into(),
    };
    client.close(Some(frame)).await.unwrap();
    let Message::Close(Some(frame)) = next(&mut client).await else {
        panic!("no close")
    };
    assert_eq!(frame.code, CloseCode::Library(4008));
    assert_eq!(soon(closes.recv()).await, Some(CloseCode::Library(4008)));
}

/// What an HTTP server that is no browser answers.
async fn answers(head: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream
                .write_all(format!("{head}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .await;
        }
    });
    format!("http://{addr}")
}

#[tokio::test]
async fn a_refusal_is_said_as_what_it_is_and_without_the_secret() {
    for (head, expected) in [
        (
            "HTTP/1.1 302 Found\r\nLocation: https://team.cloudflareaccess.com/cdn-cgi/access/login",
            "Cloudflare Access",
        ),
        ("HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/", "redirect"),
        ("HTTP/1.1 401 Unauthorized", "CDP_SECRET"),
        ("HTTP/1.1 403 Forbidden", "CDP_SECRET"),
        ("HTTP/1.1 404 Not Found", "WORKER_URL"),
        ("HTTP/1.1 429 Too Many Requests", "too many"),
        ("HTTP/1.1 503 Service Unavailable", "not available now"),
        ("HTTP/1.1 200 OK", "answers 200"),
    ] {
        let worker = answers(head).await;
        let (port, mut said) = port("worker", &[("WORKER_URL", &worker), ("CDP_SECRET", "s3cret-canary")]).await;
        let mut client = connect(port).await;
        client
            .send(Message::text(
                r#"{"id":5,"method":"Target.createTarget","sessionId":"S"}"#,
            ))
            .await
            .unwrap();
        let answer: Value = serde_json::from_str(next(&mut client).await.to_text().unwrap()).unwrap();
        assert_eq!((&answer["id"], &answer["sessionId"]), (&json!(5), &json!("S")));
        let why = answer["error"]["message"].as_str().unwrap();
        assert!(why.contains(expected), "{head}: {why}");
        assert!(matches!(next(&mut client).await, Message::Close(Some(frame)) if frame.code == CloseCode::Error));
        let event = format!("{:?}", said.recv().await.unwrap());
        assert!(
            event.contains("BrowserFailed") && !event.contains("canary") && !why.contains("canary"),
            "{event}"
        );
    }
    let nobody = format!("http://127.0.0.1:{}", crate::support::free_port());
    let (port, _said) = port("worker", &[("WORKER_URL", &nobody), ("CDP_SECRET", "s3cret-canary")]).await;
    let mut client = connect(port).await;
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    let answer = next(&mut client).await.to_string();
    assert!(
        answer.contains("cannot be reached") && !answer.contains("canary"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass() {
    let (url, _) = upstream(echo).await;
    let (direct, _said) = port(&url, &[]).await;
    let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let open = async |port: u16| {
        let url = format!("ws://127.0.0.1:{port}/devtools/browser/moltinit");
        tokio_tungstenite::connect_async_with_config(url, Some(limits), false)
            .await
            .unwrap()
            .0
    };
    let big = Message::binary(vec![b'x'; 40 << 20]);
    let mut client = open(direct).await;
    client.send(big.clone()).await.unwrap();
    assert_eq!(next(&mut client).await.len(), big.len());
}

/// A slow reader slows the writer: what is between them stays small.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_writer_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let (url, _) = upstream(move |mut socket: WebSocketStream<TcpStream>| {
        let counted = Arc::clone(&counted);
        async move {
            let _ = socket.next().await;
            while socket.send(Message::binary(vec![0; 1 << 20])).await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let (port, _said) = port(&url, &[]).await;
    let mut client = connect(port).await;
    client.send(Message::text("go")).await.unwrap();
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(before < 32, "{before} MiB are on the way");
    assert_eq!(next(&mut client).await.len(), 1 << 20);
}

#[tokio::test]
async fn web_pages_and_strangers_are_refused() {
    let (url, dials) = upstream(echo).await;
    let (port, _said) = port(&url, &[("MOLTINIT_CDP_TOKEN", "local-token")]).await;
    let ask = |head: &str| {
        let request = format!(
            "GET /devtools/browser/moltinit HTTP/1.1\r\n{head}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer)[9..].to_owned()
        }
    };
    assert_eq!(
        ask("Host: rebound.example\r\nAuthorization: Bearer local-token").await,
        "403"
    );
    assert_eq!(
        ask("Host: 127.0.0.1\r\nOrigin: https://evil.example\r\nAuthorization: Bearer local-token").await,
        "403"
    );
    assert_eq!(ask("Host: 127.0.0.1").await, "403");
    assert_eq!(ask("Host: 127.0.0.1\r\nAuthorization: Bearer local-token").await, "101");
    assert_eq!(dials.load(Ordering::SeqCst), 0);
    // Who has the token is told an address that has it too.
    let ask = async |path: &'static str| {
        tokio::task::spawn_blocking(move || http::request("GET", port, path, None, "").unwrap())
            .await
            .unwrap()
    };
    assert_eq!(ask("/json/version?token=wrong").await.status, 403);
    let version = ask("/json/version?token=local-token").await.json();
    let url = version["webSocketDebuggerUrl"].as_str().unwrap();
    assert!(url.ends_with("?token=local-token"), "{url}");
    let (mut client, _) = connect_async(url).await.unwrap();
    client.send(Message::text("{\"id\":1}")).await.unwrap();
    assert_eq!(next(&mut client).await.to_text().unwrap(), "{\"id\":1}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let env = Env::from_iter([
        ("HOME".to_owned(), "/root".to_owned()),
        ("MOLTINIT_CDP_UPSTREAM".to_owned(), "http://h".to_owned()),
    ]);
    let config = config::load(None, env, &config::Machine::look()).unwrap();
    let upstream = Upstream::of(&config).unwrap().unwrap();
    let addr = taken.local_addr().unwrap();
    let error = Port::new(Events::channel().0)
        .serve(addr, None, Arc::new(upstream))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&addr.to_string()) && error.contains("MOLTINIT_CDP_ADDR"),
        "{error}"
    );
}
