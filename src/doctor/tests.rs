use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::{Machine, env::Env, load};

fn config(dir: &Path, more: &[(&str, &str)]) -> Config {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut env = vec![
        ("MOLTINIT_STORE", path("store")),
        ("MOLTINIT_RUN_DIR", path("run")),
        ("MOLTINIT_DATA_DIR", path("data")),
        ("MOLTINIT_HTTP_ADDR", "127.0.0.1:0".to_owned()),
        ("HOME", path("home")),
        ("PATH", path("bin")),
    ];
    env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let env: Env = env.into_iter().collect();
    load(None, env, &Machine::look()).unwrap()
}

async fn verdicts(config: Config) -> Vec<(&'static str, Verdict, String)> {
    let findings = examine(config).await;
    findings
        .into_iter()
        .map(|finding| (finding.check, finding.verdict, finding.said))
        .collect()
}

fn of<'a>(found: &'a [(&'static str, Verdict, String)], check: &str) -> (Verdict, &'a str) {
    let (_, verdict, said) = found.iter().find(|(name, ..)| *name == check).unwrap();
    (*verdict, said)
}

#[test]
fn a_mount_elsewhere_is_not_the_one_that_has_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = config(dir.path(), &[]).store;
    store.must_be_mount = true;
    for (at, verdict) in [
        ("/proc", Verdict::Fine),
        ("/proc/1", Verdict::Bad),
        ("/data/moltbot", Verdict::Bad),
    ] {
        store.dir = at.into();
        let found = local::mount(&store);
        assert!(found.verdict == verdict, "{at}: {}", found.said);
    }
}

#[tokio::test]
async fn each_failure_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("store")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let found = verdicts(config(
        dir.path(),
        &[
            ("MOLTINIT_HTTP_ADDR", &addr),
            ("WORKER_URL", "http://127.0.0.1:9"),
            ("CDP_SECRET", "canary-cdp-secret"),
            ("MOLTINIT_CALLBACK_SECRET", "canary-not-a-key"),
            ("OPENCLAW_GATEWAY_TOKEN", "canary-token"),
        ],
    ))
    .await;
    let (verdict, said) = of(&found, "port of probes");
    assert!(verdict == Verdict::Bad && said.contains("ss -ltnp"), "{said}");
    let (verdict, said) = of(&found, "gateway");
    assert!(verdict == Verdict::Bad && said.contains("npm install"), "{said}");
    let (verdict, said) = of(&found, "Worker");
    assert!(verdict == Verdict::Bad && said.contains("WORKER_URL"), "{said}");
    let (verdict, said) = of(&found, "callbacks");
    assert!(
        verdict == Verdict::Bad && said.contains("MOLTINIT_CALLBACK_SECRET"),
        "{said}"
    );
    assert_eq!(of(&found, "browser").0, Verdict::Bad);
    assert_eq!(of(&found, "supervisor").0, Verdict::Doubtful);
    assert_eq!(of(&found, "admin token").0, Verdict::Fine);
    assert!(!format!("{found:?}").contains("canary"), "{found:?}");
}

#[tokio::test]
async fn a_store_is_written_and_read_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let config = config(dir.path(), &[]);
    assert_eq!(of(&verdicts(config.clone()).await, "store").0, Verdict::Doubtful);
    std::fs::create_dir(&store).unwrap();
    let found = verdicts(config.clone()).await;
    assert_eq!(of(&found, "store").0, Verdict::Fine, "{found:?}");
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    std::fs::remove_dir(&store).unwrap();
    std::fs::write(&store, b"").unwrap();
    let found = verdicts(config).await;
    assert_eq!(of(&found, "store").0, Verdict::Bad, "{found:?}");
}

/// What an HTTP server says to everybody.
async fn answers(answer: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn a_browser_that_would_refuse_us_is_a_failure() {
    const EMPTY: &str = "Content-Length: 0\r\nConnection: close\r\n\r\n";
    for (head, verdict, says) in [
        ("426 Upgrade Required", Verdict::Fine, "answers in"),
        (
            "302 Found\r\nLocation: https://t.cloudflareaccess.com/",
            Verdict::Bad,
            "Cloudflare Access",
        ),
        ("401 Unauthorized", Verdict::Bad, "CDP_SECRET"),
        ("403 Forbidden", Verdict::Bad, "CDP_SECRET"),
        ("404 Not Found", Verdict::Bad, "WORKER_URL"),
        ("429 Too Many Requests", Verdict::Bad, "too many"),
        ("503 Service Unavailable", Verdict::Bad, "not available now"),
    ] {
        let worker = answers(format!("HTTP/1.1 {head}\r\n{EMPTY}").leak()).await;
        let dir = tempfile::tempdir().unwrap();
        let config = config(
            dir.path(),
            &[("WORKER_URL", &worker), ("CDP_SECRET", "canary-cdp-secret")],
        );
        let found = network::browser(&config).await;
        assert!(
            found.verdict == verdict && found.said.contains(says),
            "{head}: {found:?}"
        );
        assert!(!found.said.contains("canary"), "{found:?}");
    }
}
