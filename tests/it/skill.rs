//! The browser skill: its scripts against a real Chromium behind the port, the real gateway's opinion of it, and how it
//! gets into the workspace.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::support::{
    MOLTINIT, PATIENCE,
    browser::{self, Chromium, Worker},
    container::{Disk, commit, stand_in},
    eventually,
    gateway::Gateway,
    http,
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/skills/cloudflare-browser/scripts");
const PAGE: &str = "data:text/html,<title>A page</title><h1>hello</h1><a href='https://example.com/'>more</a>\
                    <div style='height:3000px'></div>";

/// A script of the skill, in `directory`, with nothing in its environment that it should not need.
fn script(directory: &Path, cdp: &str, args: &[&str]) -> Output {
    script_with(directory, cdp, None, args)
}

fn script_with(directory: &Path, cdp: &str, token: Option<&str>, args: &[&str]) -> Output {
    Command::new("timeout")
        .args(["120", "node", &format!("{SCRIPTS}/{}", args[0])])
        .args(&args[1..])
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("MOLTINIT_CDP_ADDR", cdp)
        .envs(token.map(|token| ("MOLTINIT_CDP_TOKEN", token)))
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_scripts_need_nothing_but_the_port() {
    let chromium = Chromium::start();
    let (port, _said) = browser::port(&format!("http://127.0.0.1:{}", chromium.port), &[]).await;
    let scripts = tokio::task::spawn_blocking(move || {
        let scratch = tempfile::tempdir().unwrap();
        let run = |args: &[&str]| script(scratch.path(), &format!("127.0.0.1:{port}"), args);
        let made = |name: &str| fs::read(scratch.path().join(name)).unwrap();

        said(&run(&["screenshot.js", PAGE, "page.png"]));
        let png = made("page.png");
        assert_eq!(
            (&png[1..4], side(&png[16..20]), side(&png[20..24])),
            (&b"PNG"[..], 1280, 800)
        );
        said(&run(&["screenshot.js", PAGE, "whole.png", "--full"]));
        assert!(side(&made("whole.png")[20..24]) > 3000);
        said(&run(&["screenshot.js", PAGE, "page.pdf"]));
        assert!(made("page.pdf").starts_with(b"%PDF"));

        let read: Value = serde_json::from_str(&said(&run(&["scrape.js", PAGE]))).unwrap();
        assert_eq!(read["title"], "A page");
        assert_eq!(read["text"], "hello\nmore");
        assert_eq!(read["links"][0]["url"], "https://example.com/");
        let html = said(&run(&["scrape.js", PAGE, "--html", "--selector", "h1"]));
        assert_eq!(html, "<h1>hello</h1>\n");

        said(&run(&[
            "video.js",
            &format!("{PAGE},about:blank"),
            "tour.mp4",
            "--seconds",
            "1",
            "--fps",
            "2",
        ]));
        assert_eq!(&made("tour.mp4")[4..8], b"ftyp");
        assert!(!scratch.path().join("tour.mp4.frames").exists());

        // What goes wrong is said in a sentence, and every tab was closed again.
        let output = run(&["screenshot.js", "http://nowhere.invalid/", "no.png"]);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{why}");
        assert!(why.contains("net::ERR") && why.lines().count() == 1, "{why}");
        assert_eq!(run(&["scrape.js"]).status.code(), Some(2));
        let output = script(scratch.path(), "127.0.0.1:9", &["scrape.js", PAGE]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("no browser answers at"));
        let pages = http::request("GET", port, "/json/list", None, "").unwrap().json();
        let tabs = pages.as_array().unwrap().iter().filter(|page| page["type"] == "page");
        assert_eq!(tabs.count(), 1, "{pages}");
    });
    scripts.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn its_scripts_get_along_with_moltworkers_shim_and_a_token() {
    let chromium = Chromium::start();
    let shim = Worker::shim(&chromium);
    let env = [
        ("WORKER_URL", shim.url.as_str()),
        ("CDP_SECRET", "shim-secret"),
        ("MOLTINIT_CDP_TOKEN", "local-token"),
    ];
    let (port, _said) = browser::port("worker", &env).await;
    let scripts = tokio::task::spawn_blocking(move || {
        let scratch = tempfile::tempdir().unwrap();
        let cdp = format!("127.0.0.1:{port}");
        let output = script(scratch.path(), &cdp, &["scrape.js", PAGE]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("403"), "{output:?}");
        let run = |args: &[&str]| said(&script_with(scratch.path(), &cdp, Some("local-token"), args));
        run(&["screenshot.js", PAGE, "page.png"]);
        assert_eq!(&fs::read(scratch.path().join("page.png")).unwrap()[1..4], b"PNG");
        run(&["screenshot.js", PAGE, "page.pdf"]);
        assert!(fs::read(scratch.path().join("page.pdf")).unwrap().starts_with(b"%PDF"));
        let read: Value = serde_json::from_str(&run(&["scrape.js", PAGE])).unwrap();
        assert_eq!(read["title"], "A page");
    });
    scripts.await.unwrap();
}

/// A browser that goes away in the middle of the work.
#[tokio::test(flavor = "multi_thread")]
async fn its_scripts_fail_when_the_browser_goes_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, _said) = browser::port(&format!("ws://{}/", listener.local_addr().unwrap()), &[]).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = accept_async(stream).await.unwrap();
        for result in [json!({ "targetId": "T" }), json!({ "sessionId": "S" }), json!({})] {
            let command: Value =
                serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap();
            let answer = json!({ "id": command["id"], "result": result, "sessionId": command["sessionId"] });
            socket.send(Message::text(answer.to_string())).await.unwrap();
        }
        let _ = socket.next().await;
    });
    let output = tokio::task::spawn_blocking(move || {
        let scratch = tempfile::tempdir().unwrap();
        script(scratch.path(), &format!("127.0.0.1:{port}"), &["scrape.js", PAGE])
    });
    let output = output.await.unwrap();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("was closed (1011"), "{why}");
}

/// A side of a picture, as PNG has it.
fn side(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[test]
fn the_gateway_lists_it_as_eligible() {
    let disk = Disk::new();
    let home = disk.path("home");
    fs::create_dir_all(&home).unwrap();
    let install = || {
        let mut command = Command::new(MOLTINIT);
        command.args(["skills", "install"]).env_clear().env("HOME", &home);
        said(&command.output().unwrap())
    };
    assert!(install().contains("installed"));
    assert!(install().contains("up to date"));
    let mut list = Gateway::latest().command(&["skills", "list", "--json"]);
    let output = list.env("HOME", &home).output().unwrap();
    let listed: Value = serde_json::from_str(&said(&output)).unwrap();
    let skills = listed["skills"].as_array().unwrap();
    let ours = skills.iter().find(|skill| skill["name"] == "cloudflare-browser");
    assert_eq!(ours.expect("the skill is listed")["eligible"], true, "{ours:?}");
}

#[test]
fn boot_brings_it_and_keeps_what_was_changed() {
    let disk = Disk::new();
    let skill = disk.state().join("workspace/skills/cloudflare-browser/SKILL.md");
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    eventually("the skill", PATIENCE, || skill.is_file().then_some(()));
    fs::write(&skill, "mine").unwrap();
    commit(&container);
    drop(container);
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read_to_string(&skill).unwrap(), "mine");
}
