//! OpenClaw's own browser tool, as an agent uses it: through the local port, by the profile that moltinit configures with
//! its token, to a real Chromium elsewhere.

use std::{
    fs,
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
        const PAGE: &str = "<title>A page</title><h1>hello</h1><input aria-label='Name'>\
            <button onclick=\"document.title='Pressed by ' + document.querySelector('input').value\">Press</button>";
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

/// The reference by which the snapshot knows the element of that name.
fn called(snapshot: &Value, name: &str) -> String {
    let refs = snapshot["refs"].as_object().unwrap_or_else(|| panic!("{snapshot}"));
    let found = refs.iter().find(|(_, element)| element["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {snapshot}")).0.clone()
}

/// The real gateway opens a page by its tool, reads it, presses a button, and takes a picture.
fn the_tool_drives(env_of_browser: &[(&str, &str)]) {
    let (gateway, disk) = (Gateway::latest(), Disk::new());
    // The page is on this machine, which the tool keeps away from otherwise.
    let config = json!({ "browser": { "ssrfPolicy": { "dangerouslyAllowPrivateNetwork": true } } });
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("openclaw.json"), config.to_string()).unwrap();
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
    let site = site();
    tool(&["open", &site]);
    let seen = tool(&["snapshot"]);
    assert!(seen.to_string().contains("hello"), "{seen}");
    tool(&["type", &called(&seen, "Name"), "two words"]);
    tool(&["click", &called(&seen, "Press")]);
    let title = tool(&["evaluate", "--fn", "() => document.title"]);
    assert_eq!(title["result"], "Pressed by two words");
    let shot = tool(&["screenshot"]);
    let begins = |said: &Value, with: &[u8]| fs::read(said["path"].as_str().unwrap()).unwrap().starts_with(with);
    assert!(begins(&shot, b"\x89PNG") || begins(&shot, b"\xff\xd8"), "{shot}");
    assert!(begins(&tool(&["pdf"]), b"%PDF"));
    let tabs = || {
        let tabs = tool(&["tabs"])["tabs"].as_array().unwrap().clone();
        tabs.into_iter()
            .filter(|tab| tab["url"] == site.as_str())
            .collect::<Vec<_>>()
    };
    let other = tool(&["open", &site]);
    assert_eq!(tabs().len(), 2);
    tool(&["close", other["targetId"].as_str().unwrap()]);
    assert_eq!(tabs().len(), 1, "{:?}", tabs());
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

#[test]
fn the_gateways_browser_tool_works_through_moltworkers_shim() {
    let chromium = Chromium::start();
    let shim = Worker::shim(&chromium);
    the_tool_drives(&[("WORKER_URL", &shim.url), ("CDP_SECRET", "shim-secret")]);
}
