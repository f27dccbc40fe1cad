//! Nothing that is secret comes out anywhere (G5).

use std::{collections::BTreeMap, fs};

use super::{
    tools::{again, callback, role},
    *,
};
use crate::{
    config::{Log, env::Env},
    log,
    neighbour::run,
    pid1::Exit,
};

/// One for each place that a secret may be in.
const CANARIES: [&str; 5] = [
    "canary-admin-token",
    "canary-url-password",
    "canary-url-query",
    "canary-in-an-error",
    "canary-attached",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_comes_out() {
    if let Some(dir) = role() {
        return secretive(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = run(again("secrets::no_secret_comes_out", dir.path().to_str().unwrap()));
    let mut said: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for part in ["run", "data"] {
        for file in fs::read_dir(dir.path().join(part)).unwrap().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                said.insert(file.path().display().to_string(), fs::read(file.path()).unwrap());
            }
        }
    }
    assert!(said.len() >= 2, "{:?}", said.keys());
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.exit == Exit::Code(0) && out.contains("[secret]") && out.contains("\"uptime_seconds\""),
        "{out}"
    );
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("a callback failed") && log.contains("panicked: "), "{log}");
    said.insert("stdout".into(), output.stdout);
    said.insert("stderr".into(), output.stderr);
    for (place, bytes) in said {
        let text = String::from_utf8_lossy(&bytes);
        for canary in CANARIES {
            assert!(!text.contains(canary), "{canary} is in {place}: {text}");
        }
    }
}

/// Does everything that could give a secret away, and says all there is to be asked for.
async fn secretive(dir: &Path) {
    let mask = Mask::new(CANARIES.map(str::to_owned));
    let filter = tracing_subscriber::filter::Targets::new().with_default(tracing::Level::TRACE);
    let log = Log {
        filter,
        json: Some(true),
    };
    let _flush = log::start(&log, mask.clone()).unwrap();
    let [token, password, query, error, attached] = CANARIES;
    let (events, receiver) = event::Events::channel();
    let settings = Settings {
        admin_token: Some(Secret::new(token.to_owned())),
        callback: Some(callback(&format!(
            "http://user:{password}@127.0.0.1:9/hook?key={query}"
        ))),
        mask,
    };
    let report = Report::start(place(dir, Ulid::generate()), settings.clone(), receiver).unwrap();
    let run = dir.join("run");
    let doors = super::super::bind("127.0.0.1:0".parse().unwrap(), &run).await.unwrap();
    report.serve(doors, Arc::new(Fake));
    let why = || format!("Incorrect API key provided: {error}");
    events.emit(Event::BootPhase { phase: Phase::Prepare });
    events.emit(Event::ServiceUnhealthy {
        service: "gateway".into(),
        why: why(),
    });
    events.emit(Event::ServiceChanged {
        service: "gateway".into(),
        state: ServiceState::CrashLoop,
        pid: None,
        restarts: 0,
        why: Some(why()),
    });
    events.emit(Event::BrowserFailed {
        upstream: format!("wss://worker.example/cdp?secret={error}"),
        why: why(),
    });
    events.emit(Event::StoreFenced { by: why(), why: why() });
    events.emit(Event::GatewayConfigRolledBack {
        reason: why(),
        kept: why(),
    });
    let client = Client::unix(&dir.join("run").join(SOCKET));
    let env: Env = [("CODE", "7"), ("KEY", attached)].into_iter().collect();
    assert!(!format!("{env:?}").contains(attached));
    let env = json!({ "env": { "CODE": "7", "KEY": attached } });
    let _: Attached = client.post("/services/gateway/attach", Some(&env)).await.unwrap();
    // Not what was asked for, so an error would quote it.
    let refused = client
        .post::<Attached>("/services/gateway/attach", Some(&json!({ "env": attached })))
        .await;
    println!("{:?}", refused.unwrap_err());
    let refused = client.post::<Value>("/devices/bad/approve", None::<&Value>).await;
    println!("{:?}", refused.unwrap_err());
    let failed = client.post_and_wait("/services/gateway/stop").await.unwrap();
    println!("{:?}", failed.why.unwrap());
    report.carry().await;
    while report.status().callbacks.failures == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report.carry().await;
    for path in ["/status", "/events", "/services/gateway/logs", "/openapi.json"] {
        println!("{}", client.get::<Value>(path).await.unwrap());
    }
    println!("{}", super::super::table::render(&report.status(), false));
    println!("{}", super::super::metrics::render(report.status()));
    println!("{settings:?} {:?}", report.status());
    let panics = move || panic!("{error} of {settings:?}");
    std::thread::spawn(panics).join().unwrap_err();
    let cmdline = fs::read("/proc/self/cmdline").unwrap();
    println!("{}", String::from_utf8_lossy(&cmdline));
    assert!(report.close(Duration::from_millis(100)).await > 0);
}
