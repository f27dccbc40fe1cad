//! The browser port: with a real Chromium behind it and the clients that agents use, and with an upstream of our own
//! where the upstream has to misbehave.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use moltinit::{
    browser::{Port, upstream::Upstream},
    config::{self, env::Env, secret::Secret},
    event::{Event, Events},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, accept_async, connect_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::support::{
    PATIENCE,
    browser::{Chromium, port, port_with},
    http,
};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(port: u16) -> Client {
    let url = format!("ws://127.0.0.1:{port}/devtools/browser/moltinit");
    tokio::time::timeout(Duration::from_secs(20), connect_async(url))
        .await
        .unwrap()
        .unwrap()
        .0
}

async fn next(client: &mut Client) -> Message {
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

async fn drive(library: &str, port: u16, tour: bool) -> Value {
    let mut node = Command::new("timeout");
    node.args([
        "120",
        "node",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/drive-browser.mjs"),
    ])
    .args([library, &format!("http://127.0.0.1:{port}")])
    .args(tour.then_some("tour"));
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
    for library in ["playwright", "puppeteer"] {
        let seen = drive(library, port, false).await;
        assert_eq!(
            seen,
            json!({ "title": "A page", "heading": "hello", "long": 3_000_000, "png": "PNG" }),
            "{library}"
        );
        assert!(matches!(said.recv().await, Some(Event::BrowserConnected { .. })));
    }
}

/// moltworker's shim as it is, in workerd, with a real Chromium behind it.
struct Shim {
    process: Child,
    url: String,
}

impl Shim {
    fn start(chromium: &Chromium) -> Shim {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/shim-worker.mjs");
        let mut process = Command::new("node")
            .args([script, &format!("127.0.0.1:{}", chromium.port)])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut url)
            .unwrap();
        let url = url.trim_end().to_owned();
        Shim { process, url }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        crate::support::process::kill_tree(self.process.id() as i32);
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn playwright_and_puppeteer_get_along_with_moltworkers_shim() {
    let chromium = Chromium::start();
    let shim = Shim::start(&chromium);
    let env = [("WORKER_URL", shim.url.as_str()), ("CDP_SECRET", "shim-secret")];
    let (port, _said) = port("worker", &env).await;
    for library in ["playwright", "puppeteer"] {
        let seen = drive(library, port, true).await;
        let expected = json!({
            "title": "Search", "typed": "two words", "found": "two words", "sum": { "sum": 3 }, "pdf": "%PDF",
            "tabs": ["Found", "Found"], "wrong": true, "lost": true, "left": 1,
        });
        assert_eq!(seen, expected, "{library}");
    }
    let seen = drive("playwright", port, false).await;
    let expected = json!({ "title": "A page", "heading": "hello", "long": 3_000_000, "png": "PNG" });
    assert_eq!(seen, expected);
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
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut browser = accept_async(stream).await.unwrap();
    for number in 0..200 {
        let message = browser.next().await.unwrap().unwrap();
        assert_eq!(message.to_text().unwrap(), format!("{number:0>1000}"));
    }
    browser.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(next(&mut client).await, Message::binary(vec![1, 2, 3]));
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
    assert_eq!(closes.recv().await, Some(CloseCode::Library(4007)));

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
    assert_eq!(closes.recv().await, Some(CloseCode::Library(4008)));
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
async fn large_messages_pass_and_those_beyond_the_platforms_limit_are_refused() {
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

    let worker = url.replace("ws://", "http://");
    let (tunnel, _said) = port("worker", &[("WORKER_URL", &worker), ("CDP_SECRET", "secret")]).await;
    let mut client = open(tunnel).await;
    let fits = Message::binary(vec![b'x'; 32 << 20]);
    client.send(fits.clone()).await.unwrap();
    assert_eq!(next(&mut client).await.len(), fits.len());
    let (mut to, mut from) = client.split();
    let sending = tokio::spawn(async move { to.send(big).await });
    let end = loop {
        match tokio::time::timeout(PATIENCE, from.next()).await.expect("in time") {
            Some(Ok(Message::Close(Some(frame)))) => break frame,
            Some(Ok(_)) => {}
            other => panic!("no close frame: {other:?}"),
        }
    };
    assert_eq!(end.code, CloseCode::Size);
    let _ = sending.await;
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
    let (port, _said) = port_with(&url, &[], Some(Secret::new("local-token".into()))).await;
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
    let error = Port::new(addr, None, Events::channel().0)
        .serve(upstream)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&addr.to_string()) && error.contains("MOLTINIT_CDP_ADDR"),
        "{error}"
    );
}
