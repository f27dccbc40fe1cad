//! The keeper with a stand-in for the gateway's command line. The real one is in `tests/it/gateway.rs`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, path::PathBuf};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_tungstenite::tungstenite::Message;

use super::{trial::SUSPICIOUS_FAILURES, *};
use crate::config::{Machine, load};

/// What the doctor of the stand-in does to the configuration: `cp` it from here, or fail.
const CLI: &str = r#"#!/bin/sh
echo "$@" >>"$(dirname "$0")/calls"
[ "$1" = doctor ] && [ -e "$(dirname "$0")/cure" ] && cp "$(dirname "$0")/cure" "$HOME/.openclaw/openclaw.json"
[ "$1 $2" = "gateway restart-handoff" ] && echo '{"ok":true,"status":"accepted"}'
[ "$1 $2" = "devices list" ] && echo '{"pending":[{"requestId":"r","deviceId":"d","new":1}],"paired":[]}'
[ "$1 $2 $3" = "devices approve r" ] && echo '{"requestId":"r"}'
[ "$1 $2 $3" = "devices approve gone" ] && echo "unknown requestId" >&2 && exit 1
exit 0
"#;

struct Keeper {
    gateway: Gateway,
    events: UnboundedReceiver<Event>,
    given: Config,
    dir: tempfile::TempDir,
}

impl Keeper {
    fn new(restart: &str, env: &[(&str, &str)]) -> Keeper {
        Keeper::at(settings::DEFAULT_PORT, restart, env)
    }

    /// Of a gateway at that port.
    fn at(port: u16, restart: &str, env: &[(&str, &str)]) -> Keeper {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("openclaw");
        fs::create_dir_all(&package).unwrap();
        fs::write(
            package.join("package.json"),
            r#"{"name":"openclaw","version":"2026.9.6"}"#,
        )
        .unwrap();
        fs::write(package.join("openclaw"), CLI).unwrap();
        fs::set_permissions(package.join("openclaw"), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let own = [
            ("HOME", at("")),
            ("PATH", format!("{}:/usr/bin:/bin", package.display())),
            ("MOLTINIT_STORE", at("store")),
            ("MOLTINIT_DATA_DIR", at("data")),
            ("MOLTINIT_STATE_DIR", at(".openclaw")),
        ];
        let given = env.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let env: Env = own.into_iter().chain(given).collect();
        let machine = Machine {
            home: dir.path().to_owned(),
            store_is_mounted: false,
            has_sandbox_server: false,
            has_legacy_workspace: false,
        };
        let file = format!(
            "[[service]]\nname = \"gateway\"\nrestart = \"{restart}\"\ncommand = [{:?}, \"gateway\", \"--port\", \"{port}\"]",
            package.join("openclaw")
        );
        let config = load(Some(&file), env, &machine).unwrap();
        let (said, events) = Events::channel();
        let gateway = Gateway::new(&config, Spawner::start().unwrap(), said, |_| {}).unwrap();
        Keeper {
            gateway,
            events,
            given: config,
            dir,
        }
    }

    /// What it was given, with these variables over it.
    fn configured(&self, env: &[(&str, &str)]) -> Config {
        let env = self.given.env.clone().overlaid(&env.iter().copied().collect());
        Config {
            env,
            ..self.given.clone()
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> serde_json::Value {
        document::read(&self.path(".openclaw/openclaw.json"))
            .unwrap()
            .unwrap()
            .value
    }

    fn write(&self, config: &serde_json::Value) {
        fs::write(self.path(".openclaw/openclaw.json"), config.to_string()).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("openclaw/calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn roll_backs(&mut self) -> Vec<(String, String)> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .filter_map(|event| match event {
                Event::GatewayConfigRolledBack { reason, kept } => Some((reason, kept)),
                _ => None,
            })
            .collect()
    }

    async fn prepare(&self) -> Prepared {
        self.gateway.prepare().await.unwrap()
    }

    /// It becomes ready, and stays so.
    async fn works(&self) {
        let run = self.gateway.ready().await;
        self.gateway.settled(run).await;
    }

    async fn refuse(&self) -> Verdict {
        self.says_it_is_invalid(78, false).await
    }

    async fn says_it_is_invalid(&self, status: i32, was_ready: bool) -> Verdict {
        let said = "Gateway failed to start: Invalid config at openclaw.json:\n<root>: Unrecognized key: \"bogus\"";
        let said: Vec<String> = said.lines().map(str::to_owned).collect();
        self.gateway.ended(status, was_ready, &said).await
    }

    async fn crash(&self) -> Verdict {
        self.gateway.ended(1, false, &["boom".to_owned()]).await
    }
}

#[tokio::test]
async fn a_refused_configuration_goes_to_the_doctor_once_and_then_back() {
    let mut keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    let good = keeper.config();
    let mut bad = good.clone();
    bad["bogus"] = json!(1);
    keeper.write(&bad);

    keeper.prepare().await;
    assert_eq!(keeper.refuse().await, Verdict::Restart);
    assert_eq!(keeper.calls(), ["doctor --fix --yes --non-interactive"]);
    // The doctor of this one has changed nothing, so there is no use in another try.
    keeper.prepare().await;
    assert_eq!(keeper.config(), good);
    let told = keeper.roll_backs();
    let [(reason, kept)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(
        reason,
        r#"Invalid config at openclaw.json: <root>: Unrecognized key: "bogus""#
    );
    assert!(kept.contains("openclaw.json.rejected-"), "{kept}");
    assert_eq!(document::read(Path::new(kept)).unwrap().unwrap().value, bad);

    keeper.works().await;
    keeper.prepare().await;
    assert_eq!(keeper.roll_backs(), []);
    assert_eq!(keeper.calls().len(), 1);
}

#[tokio::test]
async fn what_the_doctor_cures_is_started_with() {
    let mut keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    let mut cured = keeper.config();
    cured["cured"] = json!(true);
    fs::write(keeper.path("openclaw/cure"), cured.to_string()).unwrap();
    let mut bad = keeper.config();
    bad["bogus"] = json!(1);
    keeper.write(&bad);

    keeper.prepare().await;
    keeper.refuse().await;
    keeper.prepare().await;
    assert_eq!(keeper.config(), cured);
    // It was no cure after all. What is kept is what was there before it.
    keeper.refuse().await;
    keeper.prepare().await;
    assert_eq!(keeper.config().get("cured"), None);
    let told = keeper.roll_backs();
    assert_eq!(document::read(Path::new(&told[0].1)).unwrap().unwrap().value, bad);
    assert_eq!(keeper.calls().len(), 1);
}

/// What was cured is no longer what fails, even if it has not proved itself yet.
#[tokio::test]
async fn what_is_kept_is_what_failed_last() {
    let mut keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    let good = keeper.config();
    fs::write(keeper.path("openclaw/cure"), good.to_string()).unwrap();
    let bad = |n: i32| {
        let mut bad = good.clone();
        bad["bogus"] = json!(n);
        bad
    };
    keeper.write(&bad(1));
    keeper.prepare().await;
    keeper.refuse().await;
    keeper.prepare().await;
    keeper.gateway.ready().await;

    keeper.write(&bad(2));
    keeper.prepare().await;
    keeper.refuse().await;
    keeper.prepare().await;
    assert_eq!(keeper.config(), good);
    let told = keeper.roll_backs();
    assert_eq!(document::read(Path::new(&told[0].1)).unwrap().unwrap().value, bad(2));
}

#[tokio::test]
async fn a_setting_that_breaks_the_gateway_is_left_out_and_not_tried_at_the_next_boot() {
    let mut keeper = Keeper::new("always", &[("TELEGRAM_BOT_TOKEN", "t")]);
    keeper.prepare().await;
    let mut good = keeper.config();
    good.as_object_mut().unwrap().shift_remove("channels");
    keeper.write(&good);
    keeper.works().await;
    for _ in 0..2 {
        keeper.prepare().await;
        assert!(keeper.config().get("channels").is_some() || !keeper.roll_backs().is_empty());
        if keeper.config().get("channels").is_some() {
            keeper.refuse().await;
        }
    }
    assert_eq!(keeper.config(), good);
    let again = Record::open(&keeper.path("data/gateway"));
    keeper.gateway.on_trial(|trial| trial.record = again).await;
    keeper.prepare().await;
    assert_eq!(keeper.config(), good);
    assert_eq!(keeper.roll_backs(), []);
}

#[tokio::test]
async fn crashes_that_begin_with_a_changed_configuration_are_its_fault() {
    for was_ready in [false, true] {
        let mut keeper = Keeper::new("always", &[]);
        keeper.prepare().await;
        keeper.works().await;
        let good = keeper.config();
        let crash = async || {
            keeper.prepare().await;
            if was_ready {
                keeper.gateway.ready().await;
            }
            keeper.gateway.ended(1, was_ready, &["boom".to_owned()]).await
        };
        for _ in 0..5 {
            assert_eq!(crash().await, Verdict::Restart);
        }
        assert!(
            keeper.calls().is_empty(),
            "with what has worked, it is not the configuration"
        );

        let mut changed = good.clone();
        changed["plugins"] = json!({ "allow": ["x"] });
        keeper.write(&changed);
        for _ in 0..SUSPICIOUS_FAILURES {
            assert_eq!(keeper.config(), changed);
            assert_eq!(crash().await, Verdict::Restart);
        }
        keeper.prepare().await;
        assert_eq!(keeper.config(), good);
        assert_eq!(keeper.roll_backs()[0].0, "boom");
        // Nobody is sure, so the next boot may try again.
        assert!(!keeper.path("data/gateway/refused-configs").exists());
    }
}

/// The early generation skips an edit that it does not understand, says so in the words with which it would refuse to
/// start, and goes on with what it has. What ends it later has nothing to do with that.
#[tokio::test]
async fn an_edit_of_a_running_gateway_does_not_cost_the_configuration_that_works() {
    let mut keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    let good = keeper.config();
    let mut bad = good.clone();
    bad["bogus"] = json!(1);
    keeper.write(&bad);

    assert_eq!(keeper.says_it_is_invalid(1, true).await, Verdict::Restart);
    assert!(keeper.calls().is_empty());
    keeper.prepare().await;
    assert_eq!(keeper.config(), bad, "nobody has started with it yet");
    keeper.refuse().await;
    assert_eq!(keeper.calls().len(), 1);
    keeper.prepare().await;
    assert_eq!(keeper.config(), good);
    let told = keeper.roll_backs();
    assert_eq!(document::read(Path::new(&told[0].1)).unwrap().unwrap().value, bad);
}

#[tokio::test]
async fn what_has_worked_stays_whatever_a_gateway_says() {
    let mut keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    let good = keeper.config();
    for _ in 0..5 {
        keeper.prepare().await;
        let verdict = keeper.gateway.ended(78, false, &["something else".to_owned()]).await;
        assert_eq!(verdict, Verdict::Restart);
    }
    assert!(keeper.calls().is_empty());
    // By name: a variable that it refers to is not there today, say.
    for _ in 0..5 {
        keeper.prepare().await;
        assert_eq!(keeper.refuse().await, Verdict::Restart);
    }
    assert_eq!(keeper.calls().len(), 1);
    keeper.prepare().await;
    assert_eq!(keeper.config(), good);
    assert_eq!(keeper.roll_backs(), []);
}

#[tokio::test]
async fn a_run_that_ended_soon_has_proved_nothing() {
    let keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    let run = keeper.gateway.ready().await;
    keeper.gateway.ended(1, true, &[]).await;
    keeper.prepare().await;
    keeper.gateway.settled(run).await;
    assert!(!keeper.path("data/gateway/last-good.json").exists());
    keeper.works().await;
    assert!(keeper.path("data/gateway/last-good.json").exists());
}

#[tokio::test]
async fn crashes_without_a_configuration_that_worked_leave_the_present_one() {
    let keeper = Keeper::new("always", &[]);
    fs::create_dir_all(keeper.path(".openclaw")).unwrap();
    keeper.write(&json!({ "agents": { "list": [{ "id": "mine" }] } }));
    for _ in 0..2 * SUSPICIOUS_FAILURES {
        keeper.prepare().await;
        keeper.crash().await;
    }
    assert_eq!(keeper.config()["agents"]["list"][0]["id"], "mine");
    assert!(keeper.calls().is_empty());
}

#[tokio::test]
async fn there_is_an_end_to_refusing() {
    let keeper = Keeper::new("always", &[("TELEGRAM_BOT_TOKEN", "t")]);
    for _ in 0..10 {
        if let Err(error) = keeper.gateway.prepare().await {
            assert!(error.to_string().contains("Unrecognized key"), "{error}");
            assert_eq!(keeper.calls().len(), 1);
            return;
        }
        keeper.refuse().await;
    }
    panic!("it goes on for ever");
}

#[tokio::test]
async fn a_clean_exit_is_a_request_to_be_started_again() {
    let keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    keeper.works().await;
    assert_eq!(keeper.gateway.ended(0, true, &[]).await, Verdict::RestartNow);
    assert_eq!(keeper.gateway.ended(1, true, &[]).await, Verdict::Restart);
    assert_eq!(keeper.gateway.ended(0, false, &[]).await, Verdict::Restart);
    assert!(keeper.calls().is_empty());

    // Where a clean exit would be the end, it has to be asked.
    let keeper = Keeper::new("on-failure", &[]);
    keeper.prepare().await;
    keeper.works().await;
    assert_eq!(
        keeper.gateway.ended(0, true, &[]).await,
        Verdict::Restart,
        "nobody knows who it was"
    );
    keeper.gateway.present().pid = Some(7);
    assert_eq!(keeper.gateway.ended(0, true, &[]).await, Verdict::RestartNow);
    assert_eq!(
        keeper.calls(),
        ["gateway restart-handoff consume --expected-pid 7 --json"]
    );
}

/// A gateway of a time to come.
async fn of_another_protocol() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            let challenge = r#"{"type":"event","event":"connect.challenge","payload":{"nonce":"n","ts":1}}"#;
            socket.send(Message::text(challenge)).await.unwrap();
            socket.next().await;
            let refusal = r#"{"type":"res","id":"connect","ok":false,"error":{"code":"INVALID_REQUEST","message":"protocol mismatch"}}"#;
            socket.send(Message::text(refusal)).await.unwrap();
        }
    });
    port
}

#[tokio::test]
async fn devices_are_paired_by_the_command_line_where_the_protocol_is_another() {
    let keeper = Keeper::at(of_another_protocol().await, "always", &[]);
    keeper.prepare().await;
    let devices = keeper.gateway.devices().await.unwrap();
    assert_eq!(devices.pending[0].request_id, "r");
    keeper.gateway.approve("r").await.unwrap();
    let refused = keeper.gateway.approve("gone").await.unwrap_err();
    assert!(refused.to_string().contains("unknown requestId"), "{refused}");
    let calls = [
        "devices list --json",
        "devices approve r --json",
        "devices approve gone --json",
    ];
    assert_eq!(keeper.calls(), calls);
    // One that is not there is no matter for its command line, which would only take longer to say so.
    let keeper = Keeper::at(9, "always", &[]);
    keeper.prepare().await;
    assert!(matches!(
        keeper.gateway.devices().await,
        Err(RpcError::Unreachable { .. })
    ));
    assert!(keeper.calls().is_empty());
}

#[tokio::test]
async fn what_no_start_helps_is_held() {
    let keeper = Keeper::new("always", &[]);
    keeper.prepare().await;
    let said = vec!["2 OpenClaw database schema(s) are newer than this build.".to_owned()];
    let verdict = keeper.gateway.ended(78, false, &said).await;
    assert_eq!(verdict, Verdict::Hold(said[0].clone()));
}

#[test]
fn a_configuration_that_comes_later_counts_from_the_next_start() {
    let keeper = Keeper::new("always", &[]);
    let with = |env: &[(&str, &str)]| keeper.gateway.reconfigure(&keeper.configured(env));
    assert_eq!(with(&[("ANTHROPIC_API_KEY", "k-123456")]), Ok(true));
    assert_eq!(
        with(&[("ANTHROPIC_API_KEY", "k-123456"), ("PATH", "/elsewhere")]),
        Ok(false)
    );
    assert!(with(&[("ANTHROPIC_API_KEY", "k 1")]).is_err());
    assert_eq!(keeper.gateway.environment().set["ANTHROPIC_API_KEY"], "k-123456");
}
