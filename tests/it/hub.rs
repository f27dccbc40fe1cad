//! One browser for all clients, where each connection of the upstream would launch another.

use std::{
    collections::VecDeque,
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
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc::UnboundedReceiver,
};
use tokio_tungstenite::{
    WebSocketStream, connect_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    browser::{Client, a_page, closed, command, connect, drive, next, soon},
    support::{
        PATIENCE,
        browser::{Chromium, Worker, behind_a_worker, port},
        container::{Disk, with_gateway_and},
        eventually, free_port, http, process,
    },
};

/// What is asked, and told meanwhile.
struct Tab {
    socket: Client,
    events: VecDeque<Value>,
    asked: u64,
}

impl Tab {
    fn new(socket: Client) -> Tab {
        Tab {
            socket,
            events: VecDeque::new(),
            asked: 0,
        }
    }

    async fn ask(&mut self, method: &str, params: Value, session: Option<&Value>) -> Value {
        self.asked += 1;
        let mut asked = json!({ "id": self.asked, "method": method, "params": params });
        if let Some(session) = session {
            asked["sessionId"] = session.clone();
        }
        command(&mut self.socket, asked).await;
        loop {
            let message = next(&mut self.socket).await;
            let Message::Text(text) = message else {
                assert!(!message.is_close(), "{message:?}");
                continue;
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == self.asked {
                return message;
            }
            assert!(message.get("id").is_none(), "somebody else's answer: {message}");
            self.events.push_back(message);
        }
    }

    async fn open(&mut self, url: &str) -> Value {
        let made = self.ask("Target.createTarget", json!({ "url": url }), None).await;
        made["result"]["targetId"].clone()
    }

    async fn attach(&mut self, page: &Value) -> Value {
        let params = json!({ "targetId": page, "flatten": true });
        self.ask("Target.attachToTarget", params, None).await["result"]["sessionId"].clone()
    }

    async fn evaluate(&mut self, expression: &str, session: Option<&Value>) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        self.ask("Runtime.evaluate", params, session).await["result"]["result"]["value"].clone()
    }
}

async fn tab(port: u16) -> Tab {
    Tab::new(connect(port).await)
}

async fn asked(method: &'static str, port: u16, path: impl Into<String>) -> http::Answer {
    let path = path.into();
    tokio::task::spawn_blocking(move || http::request(method, port, &path, None, "").unwrap())
        .await
        .unwrap()
}

async fn listed(port: u16) -> Vec<Value> {
    asked("GET", port, "/json/list")
        .await
        .json()
        .as_array()
        .unwrap()
        .clone()
}

/// A page's entry in the list.
async fn entry(port: u16, page: &Value) -> Value {
    let found = listed(port).await.into_iter().find(|found| found["id"] == *page);
    found.expect("the page is listed")
}

async fn close(port: u16, page: &Value) {
    let answer = asked("GET", port, format!("/json/close/{}", page.as_str().unwrap())).await;
    assert_eq!(answer.status, 200);
}

/// How often a browser was connected to since the last look.
fn connects(said: &mut UnboundedReceiver<Event>) -> usize {
    let mut count = 0;
    while let Ok(event) = said.try_recv() {
        count += usize::from(matches!(event, Event::BrowserConnected { .. }));
    }
    count
}

const RELAY: (&str, &str) = ("CDP_SECRET", "relay-secret");

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_worker_share_one_browser() {
    let chromium = Chromium::start();
    let worker = Worker::relay(&chromium, None);
    let (port, mut said) = port("worker", &[("WORKER_URL", &worker.url), RELAY]).await;
    // Nothing is launched to say that there is nothing.
    assert_eq!(asked("GET", port, "/json/list").await.json(), json!([]));
    assert_eq!(asked("GET", port, "/json/close/nobody").await.status, 404);
    assert!(
        connect_async(format!("ws://127.0.0.1:{port}/devtools/page/nobody"))
            .await
            .is_ok()
    );
    assert_eq!(connects(&mut said), 0);

    let (playwright, puppeteer) = tokio::join!(drive("playwright", port, None), drive("puppeteer", port, None));
    assert_eq!((playwright, puppeteer), (a_page(), a_page()));
    let (mut one, mut other) = (tab(port).await, tab(port).await);
    let page = one.open("data:text/html,<title>Theirs</title>").await;
    assert_eq!(
        other.ask("Target.getTargets", json!({}), None).await["result"]["targetInfos"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let found = entry(port, &page).await;
    let session = one.attach(&page).await;
    // What is not one's own cannot be reached, nor seen.
    let refused = other.ask("Page.enable", json!({}), Some(&session)).await;
    assert_eq!(refused["error"]["message"], "Session with given id not found.");
    one.ask("Page.enable", json!({}), Some(&session)).await;
    one.ask("Page.navigate", json!({ "url": "about:blank" }), Some(&session))
        .await;
    one.evaluate("1", Some(&session)).await;
    assert!(one.events.iter().any(|event| event["method"] == "Page.frameNavigated"));
    // But the page itself is everybody's, by its own address too.
    let theirs = other.attach(&page).await;
    assert_ne!(theirs, session);
    one.evaluate("globalThis.mark = 'made by one'", Some(&session)).await;
    assert_eq!(other.evaluate("mark", Some(&theirs)).await, "made by one");
    // A long command goes up in several frames.
    assert_eq!(one.evaluate(&long_expression(), Some(&session)).await, 5 << 20);
    let (socket, _) = connect_async(found["webSocketDebuggerUrl"].as_str().unwrap())
        .await
        .unwrap();
    let mut third = Tab::new(socket);
    assert_eq!(third.evaluate("mark", None).await, "made by one");
    assert!(third.events.is_empty());
    let of_page = |event: &Value| event["method"].as_str().unwrap_or_default().starts_with("Page.");
    assert!(!other.events.iter().any(of_page), "{:?}", other.events);
    // Who leaves takes nobody else's session along; a page that is closed takes along who is only there for it.
    one.socket.close(None).await.unwrap();
    closed_by_peer(&mut one.socket).await;
    assert_eq!(other.evaluate("mark", Some(&theirs)).await, "made by one");
    close(port, &page).await;
    assert_eq!(closed(&mut third.socket).await.code, CloseCode::Normal);
    assert_eq!(connects(&mut said), 1, "one browser for all of this");
}

/// Whose value is its own length, less a few.
fn long_expression() -> String {
    format!("'{}'.length", "x".repeat(5 << 20))
}

/// Waits for the end of a connection that was said goodbye to.
async fn closed_by_peer(client: &mut Client) {
    soon(async { while client.next().await.is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_is_answered_over_the_shared_connection() {
    let chromium = Chromium::start();
    let worker = Worker::relay(&chromium, None);
    let (port, mut said) = port("worker", &[("WORKER_URL", &worker.url), RELAY]).await;
    let made = asked(
        "PUT",
        port,
        "/json/new?data:text/html,%3Ctitle%3EFrom%20outside%3C/title%3E",
    )
    .await
    .json();
    let id = made["id"].as_str().unwrap().to_owned();
    let here = format!("ws://127.0.0.1:{port}/devtools/page/{id}");
    assert_eq!(made["webSocketDebuggerUrl"], here.as_str());
    let mut page = Tab::new(connect_async(&here).await.unwrap().0);
    // It may still be on its way there.
    soon(async { while page.evaluate("document.title", None).await != "From outside" {} }).await;
    let found = listed(port)
        .await
        .into_iter()
        .find(|found| found["id"] == id.as_str())
        .unwrap();
    assert_eq!(
        (&found["title"], &found["type"]),
        (&json!("From outside"), &json!("page"))
    );
    assert_eq!(
        asked("GET", port, format!("/json/activate/{id}")).await.body,
        "Target activated"
    );
    assert_eq!(
        asked("GET", port, format!("/json/close/{id}")).await.body,
        "Target is closing"
    );
    closed(&mut page.socket).await;
    let gone = asked("GET", port, format!("/json/activate/{id}")).await;
    assert_eq!((gone.status, gone.body), (404, format!("No such target id: {id}")));
    assert_eq!(asked("GET", port, "/json/protocol").await.status, 501);
    assert_eq!(connects(&mut said), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_in_time_finds_the_pages() {
    let chromium = Chromium::start();
    let worker = Worker::relay(&chromium, None);
    let env = [("WORKER_URL", worker.url.as_str()), RELAY];
    let (port, mut said) = port("worker", &env).await;
    let mut client = tab(port).await;
    let page = client.open("about:blank").await;
    let session = client.attach(&page).await;
    client.evaluate("globalThis.mark = 'kept'", Some(&session)).await;
    drop(client);
    let mut client = tab(port).await;
    assert!(listed_targets(&mut client).await.contains(&page));
    let session = client.attach(&page).await;
    assert_eq!(client.evaluate("mark", Some(&session)).await, "kept");
    assert_eq!(connects(&mut said), 1);
}

async fn listed_targets(client: &mut Tab) -> Vec<Value> {
    let found = client.ask("Target.getTargets", json!({}), None).await;
    let infos = found["result"]["targetInfos"].as_array().unwrap();
    infos.iter().map(|info| info["targetId"].clone()).collect()
}

#[tokio::test]
async fn an_unused_browser_is_let_go() {
    let (port, mut goodbyes, dials) = ours(&[("MOLTINIT_CDP_IDLE", "0")]).await;
    for round in 1..=2 {
        let (mut one, mut other) = (tab(port).await, tab(port).await);
        one.ask("A.b", json!({}), None).await;
        other.ask("A.b", json!({}), None).await;
        assert_eq!(dials.load(Ordering::SeqCst), round);
        drop(one);
        other.ask("A.b", json!({}), None).await;
        drop(other);
        assert_eq!(soon(goodbyes.recv()).await, Some(CloseCode::Away));
        assert_eq!(asked("GET", port, "/json/list").await.json(), json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clients_are_told_when_the_browser_or_the_worker_is_gone() {
    let chromium = Chromium::start();
    let listen = free_port();
    let worker = Worker::relay(&chromium, Some(listen));
    let (port, mut said) = port("worker", &[("WORKER_URL", &worker.url.clone()), RELAY]).await;
    let both = async || {
        let (mut one, mut other) = (tab(port).await, tab(port).await);
        let page = one.open("about:blank").await;
        one.attach(&page).await;
        other.attach(&page).await;
        [one, other]
    };
    let told = async |clients: [Tab; 2]| {
        for mut client in clients {
            let frame = closed(&mut client.socket).await;
            assert_eq!(frame.code, CloseCode::Error);
            assert!(frame.reason.contains("browser"), "{frame:?}");
        }
    };
    let clients = both().await;
    drop(worker);
    told(clients).await;
    assert_eq!(connects(&mut said), 1);
    let worker = Worker::relay(&chromium, Some(listen));
    let clients = both().await;
    assert_eq!(connects(&mut said), 1, "dialled anew, once");
    drop(chromium);
    told(clients).await;
    let failed = async { while !matches!(said.recv().await, Some(Event::BrowserFailed { .. })) {} };
    soon(failed).await;
    let chromium = Chromium::start();
    drop(worker);
    let _worker = Worker::relay(&chromium, Some(listen));
    both().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_moltworkers_shim_share_one_browser_too() {
    let chromium = Chromium::start();
    let shim = Worker::shim(&chromium);
    let env = [("WORKER_URL", shim.url.as_str()), ("CDP_SECRET", "shim-secret")];
    let (port, mut said) = port("worker", &env).await;
    let both = tokio::join!(drive("playwright", port, None), drive("puppeteer", port, None));
    assert_eq!(both, (a_page(), a_page()));
    let (mut one, mut other) = (tab(port).await, tab(port).await);
    other
        .ask("Target.setDiscoverTargets", json!({ "discover": true }), None)
        .await;
    let page = one.open("about:blank").await;
    let (mine, theirs) = (one.attach(&page).await, other.attach(&page).await);
    one.ask("Runtime.enable", json!({}), Some(&mine)).await;
    one.evaluate("globalThis.mark = 'made by one'", Some(&mine)).await;
    assert_eq!(other.evaluate("mark", Some(&theirs)).await, "made by one");
    assert_eq!(one.evaluate(&long_expression(), Some(&mine)).await, 5 << 20);
    let refused = other.ask("Page.enable", json!({}), Some(&mine)).await;
    assert_eq!(refused["error"]["message"], "Session with given id not found.");
    // Each is told what it wants to know, and no more.
    let methods = |tab: &Tab| -> Vec<String> {
        tab.events
            .iter()
            .map(|event| event["method"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(methods(&one).contains(&"Runtime.executionContextCreated".to_owned()));
    assert!(!methods(&one).contains(&"Target.targetCreated".to_owned()));
    assert!(methods(&other).contains(&"Target.targetCreated".to_owned()));
    assert!(!methods(&other).contains(&"Runtime.executionContextCreated".to_owned()));
    // A page's own address, and discovery.
    let found = entry(port, &page).await;
    let url = found["webSocketDebuggerUrl"].as_str().unwrap();
    let mut third = Tab::new(connect_async(url).await.unwrap().0);
    assert_eq!(third.evaluate("mark", None).await, "made by one");
    drop(one);
    assert_eq!(other.evaluate("mark", Some(&theirs)).await, "made by one");
    close(port, &page).await;
    closed(&mut third.socket).await;
    assert_eq!(connects(&mut said), 1, "one browser for all of this");
}

/// A browser of our own: gives sessions, answers anything with what it was given or as long as it is wanted, and floods
/// whoever wants that. Told of each goodbye, and how often it was dialled.
async fn ours(env: &[(&str, &str)]) -> (u16, UnboundedReceiver<CloseCode>, Arc<AtomicUsize>) {
    let (worker, goodbyes, dials, _) = browser().await;
    let env = [&[("WORKER_URL", worker.as_str()), ("CDP_SECRET", "secret")], env].concat();
    (port("worker", &env).await.0, goodbyes, dials)
}

/// The same by its address; and how many MiB it has said.
async fn browser() -> (String, UnboundedReceiver<CloseCode>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (dials, said) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (heard, goodbyes) = tokio::sync::mpsc::unbounded_channel();
    let (dialled, says) = (Arc::clone(&dials), Arc::clone(&said));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
            let socket = tokio_tungstenite::accept_async_with_config(stream, Some(limits))
                .await
                .unwrap();
            dialled.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(answer(socket, heard.clone(), Arc::clone(&says)));
        }
    });
    (url, goodbyes, dials, said)
}

async fn answer(
    socket: WebSocketStream<TcpStream>,
    heard: tokio::sync::mpsc::UnboundedSender<CloseCode>,
    says: Arc<AtomicUsize>,
) {
    let (mut to, mut from) = socket.split();
    let (tell, mut told) = tokio::sync::mpsc::channel::<String>(1);
    let writing = async move {
        while let Some(text) = told.recv().await {
            let long = text.len() >> 20;
            if to.send(Message::text(text)).await.is_err() {
                break;
            }
            says.fetch_add(long, Ordering::SeqCst);
        }
        let _ = to.close().await;
    };
    let reading = async move {
        let mut sessions = 0;
        let mut flood: Option<tokio::task::AbortHandle> = None;
        while let Some(Ok(message)) = from.next().await {
            let text = match message {
                Message::Text(text) => text,
                Message::Close(Some(CloseFrame { code, .. })) => {
                    let _ = heard.send(code);
                    return;
                }
                _ => continue,
            };
            let command: Value = serde_json::from_str(&text).unwrap();
            let method = command["method"].as_str().unwrap();
            let result = match method {
                "Target.attachToBrowserTarget" => {
                    sessions += 1;
                    json!({ "sessionId": format!("S{sessions}") })
                }
                "Long.answer" => {
                    let long = (command["params"]["mib"].as_u64().unwrap() << 20) as usize;
                    let mut data = format!("{}é", command["params"]["id"]);
                    data.extend(std::iter::repeat_n('x', long - data.len() - 'é'.len_utf8()));
                    data.push('é');
                    json!({ "data": data })
                }
                "Long.command" => {
                    let data = command["params"]["data"].as_str().unwrap();
                    json!({ "bytes": data.len(), "ends": data.ends_with('é') })
                }
                _ => command["params"].clone(),
            };
            if method == "Flood.begin" {
                let (tell, session) = (tell.clone(), command["sessionId"].clone());
                let flooding = tokio::spawn(async move {
                    let event = json!({ "method": "Flood.goesOn", "params": { "x": "x".repeat(1 << 20) }, "sessionId": session });
                    while tell.send(event.to_string()).await.is_ok() {}
                });
                flood = Some(flooding.abort_handle());
            }
            if let Some(flood) = flood.take_if(|_| method == "Target.detachFromTarget") {
                flood.abort();
            }
            let answer = json!({ "id": command["id"], "result": result, "sessionId": command["sessionId"] });
            let _ = tell.send(answer.to_string()).await;
        }
    };
    tokio::join!(reading, writing);
}

/// What `moltinit attach` brings is served anew, however often it brings the same.
#[tokio::test]
async fn the_same_upstream_served_again_is_the_same_browser() {
    let (worker, _goodbyes, dials, _) = browser().await;
    let upstream = |secret: &str| {
        let env = [
            ("HOME", "/root"),
            ("WORKER_URL", worker.as_str()),
            ("CDP_SECRET", secret),
        ];
        let env = Env::from_iter(env.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let config = config::load(None, env, &config::Machine::look()).unwrap();
        Arc::new(Upstream::of(&config).unwrap().unwrap())
    };
    let port = Port::new(Events::channel().0);
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let addr = port.serve(anywhere, None, upstream("secret")).await.unwrap();
    let mut one = tab(addr.port()).await;
    one.ask("A.b", json!({}), None).await;
    let mut clients = vec![one];
    for (secret, expected) in [("secret", 1), ("another", 2)] {
        port.serve(anywhere, None, upstream(secret)).await.unwrap();
        let mut other = tab(addr.port()).await;
        other.ask("A.b", json!({}), None).await;
        assert_eq!(dials.load(Ordering::SeqCst), expected, "{secret}");
        clients.push(other);
    }
    for client in &mut clients {
        client.ask("A.b", json!({}), None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_refused_and_nothing_hangs() {
    let (port, _goodbyes, _) = ours(&[]).await;
    let url = format!("ws://127.0.0.1:{port}/devtools/browser/moltinit");
    let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let open = async || {
        let (socket, _) = soon(tokio_tungstenite::connect_async_with_config(&url, Some(limits), false))
            .await
            .unwrap();
        Tab::new(socket)
    };
    let mut client = open().await;
    let fits = json!({ "x": "x".repeat(31 << 20) });
    assert!(client.ask("A.b", fits.clone(), None).await["result"] == fits);
    // By itself it is short enough, and is not any more with a session.
    let command = |room: usize| {
        format!(
            r#"{{"id":9,"method":"A.b","params":"{}"}}"#,
            "x".repeat((32 << 20) - room)
        )
    };
    client.socket.send(Message::text(command(36))).await.unwrap();
    let answer: Value = serde_json::from_str(next(&mut client.socket).await.to_text().unwrap()).unwrap();
    assert!(
        answer["error"]["message"].as_str().unwrap().contains("longer"),
        "{answer}"
    );
    let (mut to, mut from) = client.socket.split();
    let sending = tokio::spawn(async move { to.send(Message::text(command(0))).await });
    let end = loop {
        match soon(from.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => break frame,
            Some(Ok(_)) => {}
            other => panic!("no close frame: {other:?}"),
        }
    };
    assert_eq!(end.code, CloseCode::Size);
    let _ = sending.await;
    let mut client = open().await;
    client.ask("A.b", json!({}), None).await;
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(closed(&mut client.socket).await.code, CloseCode::Unsupported);
}

/// A browser that is not there yet has no pages, and whoever asks for them is told so at once.
#[tokio::test]
async fn pages_are_listed_at_once_while_a_browser_is_dialled() {
    let cold = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = format!("http://{}/", cold.local_addr().unwrap());
    let (port, _said) = port("worker", &[("WORKER_URL", &worker), ("CDP_SECRET", "secret")]).await;
    let mut client = connect(port).await;
    command(&mut client, json!({ "id": 1, "method": "Target.getTargets" })).await;
    // It is dialled now, and does not answer.
    let dialled = soon(cold.accept()).await.unwrap();
    for path in ["/json/list", "/json"] {
        let begun = Instant::now();
        let answer = asked("GET", port, path).await;
        assert_eq!((answer.status, answer.json()), (200, json!([])), "{path}");
        // It was two seconds, and a client waits for 300 ms.
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    }
    assert_eq!(asked("GET", port, "/json/close/nobody").await.status, 404);
    drop(dialled);
    closed(&mut client).await;
}

/// A client that is alone may take its time, whatever it says meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_keeps_nobody_waiting_is_not_closed() {
    let (worker, _goodbyes, _, said) = browser().await;
    let (port, _events) = port("worker", &[("WORKER_URL", &worker), ("CDP_SECRET", "secret")]).await;
    let mut alone = tab(port).await;
    alone.ask("A.b", json!({}), None).await;
    command(&mut alone.socket, json!({ "id": 9, "method": "Flood.begin" })).await;
    settled(&said).await;
    command(&mut alone.socket, json!({ "id": 10, "method": "A.b", "params": {} })).await;
    // Longer than one is borne with that others wait for.
    tokio::time::sleep(Duration::from_secs(14)).await;
    loop {
        let message = next(&mut alone.socket).await;
        assert!(!message.is_close(), "{message:?}");
        let answers = |id: u32| {
            message
                .to_text()
                .is_ok_and(|text| text.starts_with(&format!("{{\"id\":{id},")))
        };
        if answers(10) {
            return;
        }
    }
}

/// Waits until nothing moves any more.
async fn settled(said: &AtomicUsize) {
    let mut before = usize::MAX;
    while before != said.load(Ordering::SeqCst) {
        before = said.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn wait_for_port(cdp: u16) {
    eventually("the port", PATIENCE, || {
        http::request("GET", cdp, "/json/version", None, "").ok()
    });
}

/// Long answers cost about one of them, however many are on the way to a client, and nothing once they are there; and so do
/// commands.
#[test]
fn long_messages_cost_about_one_of_them() {
    const ANSWERS: usize = 8;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (worker, ..) = runtime.block_on(browser());
    let (disk, cdp) = (Disk::new(), free_port());
    let container = behind_a_worker(&disk, &worker, &format!("127.0.0.1:{cdp}"));
    wait_for_port(cdp);
    let init = container.init.as_raw();
    runtime.block_on(async {
        let mut client = tab(cdp).await;
        client.ask("A.b", json!({}), None).await;
        for mib in [8, 16, 31] {
            let idle = process::resident(init);
            process::forget_peak(init);
            let data = format!("{}é", "x".repeat((mib << 20) - 2));
            for _ in 0..ANSWERS {
                let asked = json!({ "id": 1, "method": "Long.command", "params": { "data": data } });
                if let Err(error) = client.socket.send(Message::text(asked.to_string())).await {
                    panic!("{error}: {:?}; {container}", closed(&mut client.socket).await);
                }
            }
            for _ in 0..ANSWERS {
                let Message::Text(text) = next(&mut client.socket).await else {
                    panic!("no answer");
                };
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(answer["result"], json!({ "bytes": mib << 20, "ends": true }));
            }
            let above = process::peak(init).saturating_sub(idle);
            println!(
                "{} KiB above idle at most with {ANSWERS} commands of {mib} MiB",
                above >> 10
            );
            assert!(above < 64 << 20, "{above} bytes above idle");
            process::forget_peak(init);
            let begun = Instant::now();
            for id in 0..ANSWERS {
                let asked = json!({ "id": id, "method": "Long.answer", "params": { "mib": mib, "id": id } });
                command(&mut client.socket, asked).await;
            }
            for id in 0..ANSWERS {
                let Message::Text(text) = next(&mut client.socket).await else {
                    panic!("no answer");
                };
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(answer["id"], id);
                let data = answer["result"]["data"].as_str().unwrap();
                assert_eq!(data.len(), mib << 20);
                assert!(data.starts_with(&format!("{id}é")) && data.ends_with('é'));
            }
            let took = begun.elapsed();
            let above = process::peak(init).saturating_sub(idle);
            // The last frame may still be in use when the client has it; and the allocator keeps a few MiB of its heaps.
            let stays = eventually("memory given back", PATIENCE, || {
                let stays = process::resident(init).saturating_sub(idle);
                (stays < 24 << 20).then_some(stays)
            });
            println!(
                "{} KiB above idle at most with {ANSWERS} answers of {mib} MiB in {took:?}, {} KiB stay",
                above >> 10,
                stays >> 10
            );
            assert!(above < 64 << 20, "{above} bytes above idle");
        }
    });
}

/// The shim's are not passed on as they are, but taken apart and made anew; and it says a value twice.
#[test]
fn long_answers_through_moltworkers_shim_are_held_few_times() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let chromium = Chromium::start();
    let shim = Worker::shim(&chromium);
    let (disk, cdp) = (Disk::new(), free_port());
    let env = [
        ("WORKER_URL", shim.url.as_str()),
        ("CDP_SECRET", "shim-secret"),
        ("MOLTINIT_CDP_ADDR", &format!("127.0.0.1:{cdp}")),
    ];
    let container = with_gateway_and(&disk, &disk.path("store"), r#"["sleep", "100000"]"#, &env);
    container.wait_for("/readyz", PATIENCE);
    wait_for_port(cdp);
    let init = container.init.as_raw();
    runtime.block_on(async {
        let mut client = tab(cdp).await;
        let page = client.open("about:blank").await;
        let session = client.attach(&page).await;
        for mib in [4, 8, 15] {
            let idle = process::resident(init);
            process::forget_peak(init);
            let found = client
                .evaluate(&format!("'x'.repeat({})", mib << 20), Some(&session))
                .await;
            assert_eq!(found.as_str().map(str::len), Some(mib << 20));
            let above = process::peak(init).saturating_sub(idle);
            println!("{} KiB above idle at most with an answer of {mib} MiB", above >> 10);
            assert!(above < 64 << 20, "{above} bytes above idle with an answer of {mib} MiB");
        }
    });
}

/// Clients that begin long messages and do not end them take little memory, and keep nobody from being served; and
/// they make room for each other.
#[test]
fn messages_that_do_not_end_cost_little_and_stall_nobody_for_long() {
    const LONG: usize = 24 << 20;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (worker, ..) = runtime.block_on(browser());
    let (disk, cdp) = (Disk::new(), free_port());
    let container = behind_a_worker(&disk, &worker, &format!("127.0.0.1:{cdp}"));
    wait_for_port(cdp);
    let idle = process::resident(container.init.as_raw());
    let above = || process::resident(container.init.as_raw()).saturating_sub(idle);
    runtime.block_on(async {
        let mut other = tab(cdp).await;
        other.ask("A.b", json!({}), None).await;
        // Before all others one that never stops altogether.
        let mut first = begun(cdp, LONG).await;
        let trickling = tokio::spawn(async move {
            loop {
                if let Ok(frame) = tokio::time::timeout(Duration::from_millis(100), closed(&mut first)).await {
                    return frame;
                }
                first.get_mut().write_all(b" ").await.unwrap();
            }
        });
        let beginners: Vec<_> = (1..16).map(|_| tokio::spawn(begun(cdp, LONG))).collect();
        let mut most = 0;
        for _ in 0..50 {
            other.ask("A.b", json!({}), None).await;
            most = most.max(above());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{} KiB above idle with 16 messages that do not end", most >> 10);
        assert!(most < 64 << 20, "{most} bytes above idle");
        let frame = soon(trickling).await.unwrap();
        assert!(frame.reason.contains("in the middle"), "{frame:?}");
        // Now it is the next one's turn.
        let (mut second, ..) = soon(futures_util::future::select_all(beginners)).await;
        let frame = closed(second.as_mut().unwrap()).await;
        assert!(frame.reason.contains("in the middle"), "{frame:?}");
    });
}

/// A client that has sent all but the last mebibyte of a message so long.
async fn begun(port: u16, long: usize) -> Client {
    let mut client = tab(port).await;
    client.ask("A.b", json!({}), None).await;
    let mut beginning = vec![0x81, 0xff];
    beginning.extend((long as u64).to_be_bytes());
    beginning.extend([0; 4]);
    beginning.resize(long - (1 << 20), b' ');
    // Until it is taken, or nobody is there who would.
    let _ = client.socket.get_mut().write_all(&beginning).await;
    client.socket
}

/// Of sixteen clients one takes nothing of what it asked for: what waits for it is bounded, the others get their answers,
/// and it is told why it is closed.
#[test]
fn one_stalled_reader_costs_little_and_stalls_nobody_for_long() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (worker, _goodbyes, dials, said) = runtime.block_on(browser());
    let (disk, cdp) = (Disk::new(), free_port());
    let addr = format!("127.0.0.1:{cdp}");
    let container = behind_a_worker(&disk, &worker, &addr);
    wait_for_port(cdp);
    let idle = process::resident(container.init.as_raw());
    runtime.block_on(async {
        let mut stalled = tab(cdp).await;
        stalled.ask("A.b", json!({}), None).await;
        command(&mut stalled.socket, json!({ "id": 9, "method": "Flood.begin" })).await;
        settled(&said).await;
        let before = said.load(Ordering::SeqCst);
        assert!(before < 48, "{before} MiB are on the way");
        let others = (0..15).map(|number| async move {
            let mut other = tab(cdp).await;
            let given = json!({ "number": number, "x": "x".repeat(100_000) });
            assert_eq!(other.ask("A.b", given.clone(), None).await["result"], given);
            other
        });
        let mut others: Vec<Tab> = futures_util::future::join_all(others).await;
        let above = process::resident(container.init.as_raw()).saturating_sub(idle);
        println!(
            "{} KiB above idle with 16 clients and a stalled reader, {before} MiB on the way",
            above >> 10
        );
        assert!(above < 64 << 20, "{above} bytes above idle");
        for other in &mut others {
            other.ask("A.b", json!({}), None).await;
        }
        let frame = closed(&mut stalled.socket).await;
        assert_eq!(frame.code, CloseCode::Error);
        assert!(frame.reason.contains("took nothing"), "{frame:?}");
        assert_eq!(dials.load(Ordering::SeqCst), 1);
    });
}
