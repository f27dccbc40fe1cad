//! OpenClaw's own browser tool, as an agent uses it: through the local port, by the profile that moltinit configures with
//! its token, to a real Chromium elsewhere.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    browser::{Chromium, Worker},
    container::{Container, Disk, TOKEN, event},
    free_port,
    gateway::Gateway,
};

/// The gateway takes 10 s to start on an idle machine; this one may be busy.
const BOOT: Duration = Duration::from_secs(300);

/// A page for whoever asks.
fn site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        const PAGE: &str =
            "<title>A page</title><h1>hello</h1><button onclick=\"document.title='Pressed'\">Press</button>";
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let head = BufReader::new(&stream)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty());
            head.for_each(drop);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PAGE}",
                PAGE.len()
            );
        }
    });
    url
}

/// For one command of the tool, on a machine that may be busy. It is there to end one that hangs.
const COMMAND: &str = "120";

/// The real gateway opens a page by its tool, reads it, presses a button, and takes a picture.
fn the_tool_drives(env_of_browser: &[(&str, &str)]) {
    let (gateway, disk) = (Gateway::latest(), Disk::new());
    // The page is on this machine, which the tool keeps away from otherwise.
    let config = json!({ "browser": { "ssrfPolicy": { "dangerouslyAllowPrivateNetwork": true } } });
    std::fs::create_dir_all(disk.state()).unwrap();
    std::fs::write(disk.state().join("openclaw.json"), config.to_string()).unwrap();
    let mut env = gateway.environment(&disk);
    let cdp = format!("127.0.0.1:{}", free_port());
    let of_port = [
        ("MOLTINIT_CDP_ADDR", cdp.as_str()),
        ("MOLTINIT_CDP_TOKEN", "local-token"),
    ];
    let of_browser = of_port.iter().chain(env_of_browser);
    env.extend(of_browser.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    container.wait_for("/readyz", BOOT);
    assert_eq!(
        container.status()["browser"]["connects"],
        0,
        "nothing is launched before it is wanted"
    );

    let url = format!("ws://127.0.0.1:{}", gateway.port);
    let tool = |words: &[&str]| -> Value {
        let words = [&["browser", "--json", "--url", &url, "--token", TOKEN], words].concat();
        let of_gateway = gateway.command(&words);
        let mut command = Command::new("timeout");
        command.env_clear().arg(COMMAND).arg(of_gateway.get_program());
        command.args(of_gateway.get_args());
        for (key, value) in of_gateway.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let output = command.env("HOME", disk.path("home")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}: {said} {container}",
            output.status
        );
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {output:?}"))
    };
    tool(&["open", &site()]);
    let seen = tool(&["snapshot"]).to_string();
    assert!(seen.contains("hello") && seen.contains("Press"), "{seen}");
    let title = tool(&[
        "evaluate",
        "--fn",
        "() => { document.querySelector('button').click(); return document.title; }",
    ]);
    assert!(title.to_string().contains("Pressed"), "{title}");
    let shot = tool(&["screenshot"]).to_string();
    assert!(shot.contains(".png") || shot.contains(".jpg"), "{shot}");
    assert_eq!(
        event(&container, "browser.connected")["upstream"],
        container.status()["browser"]["upstream"]
    );
}

#[test]
fn the_gateways_browser_tool_drives_a_browser_elsewhere() {
    let chromium = Chromium::start();
    let upstream = format!("http://127.0.0.1:{}", chromium.port);
    the_tool_drives(&[("MOLTINIT_CDP_UPSTREAM", &upstream)]);
}

#[test]
fn the_gateways_browser_tool_works_through_a_worker() {
    let chromium = Chromium::start();
    let worker = Worker::relay(&chromium, None);
    the_tool_drives(&[("WORKER_URL", &worker.url), ("CDP_SECRET", "relay-secret")]);
}
