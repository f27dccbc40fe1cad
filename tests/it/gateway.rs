//! The real gateway of both generations, looked after by moltinit as PID 1.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use moltinit::{
    config::{self, Machine, env::Env},
    gateway::{
        patch::{Written, patch},
        rpc::Devices,
        settings::GatewaySettings,
        version::Generation,
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    container::{Container, Disk, TOKEN, event},
    eventually,
    gateway::Gateway,
    process,
};

/// The early generation takes half a minute to start for the first time on an idle machine; this one may be busy.
const BOOT: Duration = Duration::from_secs(300);

/// A gateway that is asked to end may wait for what it is at in the background for as long as its own budget is, 330 s.
const DRAIN: Duration = Duration::from_secs(400);

struct Run {
    container: Container,
    gateway: Gateway,
    disk: Disk,
    _store: tempfile::TempDir,
}

impl Run {
    fn of(gateway: Gateway) -> Run {
        // Requests that come through a proxy on this machine are believed, so that a test can come from afar.
        let config = json!({ "gateway": { "trustedProxies": ["127.0.0.1"] } });
        let env = [
            ("ANTHROPIC_API_KEY", "sk-ant-test-0123456789"),
            ("OPENCLAW_GATEWAY_STARTUP_TRACE", "1"),
        ];
        let run = Run::start(gateway, &config, &env, |_| {});
        run.container.wait_for("/readyz", BOOT);
        run
    }

    /// With that in its configuration and its environment; `adapt` has the last word on the disk.
    fn start(gateway: Gateway, config: &Value, more: &[(&str, &str)], adapt: impl FnOnce(&Disk)) -> Run {
        let disk = Disk::new();
        let store = tempfile::tempdir().unwrap();
        fs::create_dir_all(disk.state()).unwrap();
        fs::write(disk.state().join("openclaw.json"), config.to_string()).unwrap();
        let mut env = gateway.environment(&disk);
        env.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        adapt(&disk);
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let container = Container::start(&disk, store.path(), &env, &["run"]);
        Run {
            container,
            gateway,
            disk,
            _store: store,
        }
    }

    /// The gateway's process, as this side of the namespace has it.
    fn pid(&self) -> i32 {
        let inside = self.container.status()["services"]["gateway"]["pid"]
            .as_i64()
            .expect("a gateway");
        process::outside(self.container.init.as_raw(), inside as i32)
    }

    /// Waits until another gateway than `pid` is ready.
    fn wait_for_another(&self, pid: i32) {
        eventually(format_args!("the end of {pid}; {}", self.container), DRAIN, || {
            (!process::tree(self.container.init.as_raw()).contains(&pid)).then_some(())
        });
        self.container.wait_for("/readyz", BOOT);
    }

    fn restart(&self) {
        let pid = self.pid();
        assert_eq!(self.container.post("/services/gateway/restart").unwrap().status, 202);
        self.wait_for_another(pid);
    }

    /// Waits until the present configuration is one to go back to.
    fn wait_for_good(&self) {
        let good = self.disk.path("data/gateway/last-good.json");
        eventually(
            format_args!("a good configuration; {}", self.container),
            PATIENCE,
            || {
                let good: Value = json5::from_str(&fs::read_to_string(&good).ok()?).ok()?;
                (good["gateway"] == self.config()["gateway"]).then_some(())
            },
        );
    }

    fn config(&self) -> Value {
        json5::from_str(&fs::read_to_string(self.disk.state().join("openclaw.json")).unwrap()).unwrap()
    }

    fn edit(&self, key: &str, value: Value) {
        let mut config = self.config();
        config[key] = value;
        fs::write(self.disk.state().join("openclaw.json"), config.to_string()).unwrap();
    }

    /// What `moltinit devices …` says.
    fn devices_command(&self, words: &[&str]) -> String {
        let output = self.disk.command(&[&["devices"], words].concat()).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {why}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The gateway's own command, in the environment of the gateway.
    fn by_its_own_command_line(&self, words: &[&str]) -> Value {
        let environment = fs::read(format!("/proc/{}/environ", self.pid())).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let variables = environment.split('\0').filter_map(|variable| variable.split_once('='));
        let mut command = self.gateway.command(words);
        let output = command.env_clear().envs(variables).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {why}");
        let said = String::from_utf8(output.stdout).unwrap();
        let json = said.find('{').map_or("", |at| &said[at..]);
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"))
    }

    fn devices(&self, which: &str) -> Vec<Value> {
        let answer = self.container.get("/devices").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()[which].as_array().unwrap().clone()
    }
}

fn a_first_boot_is_ready_and_pairs(gateway: Gateway, version: &str) {
    let run = Run::of(gateway);
    assert_eq!(run.container.status()["versions"]["gateway"], version);
    assert_eq!(run.container.post("/snapshots").unwrap().json()["gateway"], version);

    let (pid, config) = (run.pid(), run.config().to_string());
    let proc = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap();
    let (arguments, environment) = (proc("cmdline"), proc("environ"));
    let [arguments, environment] = [arguments, environment].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    for secret in [TOKEN, "sk-ant-test-0123456789"] {
        assert!(environment.contains(secret));
        assert!(!arguments.contains(secret) && !config.contains(secret) && !run.container.log().contains(secret));
    }
    assert!(environment.contains("OPENCLAW_NO_RESPAWN=1"));
    assert!(!environment.contains("MOLTINIT_ADMIN_TOKEN"));

    assert_eq!(run.devices("pending"), Vec::<Value>::new());
    let request = run.gateway.ask_to_pair();
    assert_eq!(run.devices("pending")[0]["requestId"], request.as_str());
    assert_eq!(
        run.devices_command(&["approve", &request]),
        format!("approved {request}\n")
    );
    assert_eq!(run.devices("pending"), Vec::<Value>::new());
    assert_eq!(run.devices("paired").len(), 1);

    // What is done where its protocol is not known: its own command line knows the same in the same words.
    let request = run.gateway.ask_to_pair();
    let listed: Devices = serde_json::from_value(run.by_its_own_command_line(&["devices", "list", "--json"])).unwrap();
    assert_eq!(listed.pending[0].request_id, request);
    assert_eq!(listed.pending.len(), 1);
    run.by_its_own_command_line(&["devices", "approve", &request, "--json"]);
    assert_eq!(run.devices("pending"), Vec::<Value>::new());

    let mut all = [run.gateway.ask_to_pair(), run.gateway.ask_to_pair()].map(|request| format!("approved {request}"));
    let said = run.devices_command(&["approve", "--all"]);
    let mut said: Vec<&str> = said.lines().collect();
    all.sort();
    said.sort_unstable();
    assert_eq!(said, all);
    assert_eq!(run.devices("pending"), Vec::<Value>::new());
    // The early generation's command line has paired itself too.
    assert!(run.devices("paired").len() >= 4);
    assert_eq!(
        run.devices_command(&["approve", "--all"]),
        "no device asks to be paired\n"
    );
    let unknown = run.container.post("/devices/no-such-request/approve").unwrap();
    assert_eq!(unknown.status, 404, "{unknown:?}");
}

fn a_refused_configuration_is_cured_or_rolled_back(gateway: Gateway) {
    let run = Run::of(gateway);
    run.wait_for_good();
    // The gateway's own doctor takes unknown keys out.
    run.edit("bogus", json!(1));
    run.restart();
    assert_eq!(run.config().get("bogus"), None);
    assert!(!run.container.log().contains("rolled back"), "{}", run.container.log());

    let good = run.config();
    run.edit("logging", json!({ "level": "shouting" }));
    let bad = run.config();
    run.restart();
    let told = event(&run.container, "gateway.config_rolled_back");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("logging"), "{reason}");
    let kept = fs::read_to_string(told["kept"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), bad);
    let now = run.config();
    assert_eq!((now.get("logging"), &now["gateway"]), (None, &good["gateway"]));

    // Half a file is no file.
    fs::write(run.disk.state().join("openclaw.json"), "{ \"gateway\": {").unwrap();
    run.restart();
    assert_eq!(run.config()["gateway"], good["gateway"]);
}

#[test]
fn a_first_boot_of_the_latest_is_ready_and_pairs() {
    a_first_boot_is_ready_and_pairs(Gateway::latest(), "2026.9.6");
}

/// It goes through what older gateways may have left unless there is nothing but a configuration: a quarter of its start.
#[test]
fn a_first_boot_of_the_latest_migrates_nothing_and_has_the_skill_afterwards() {
    let run = Run::of(Gateway::latest());
    let log = run.container.log();
    assert!(log.contains("startup trace: cli.command.config-ready"), "{log}");
    assert!(!log.contains("legacy-state-migrations"), "{log}");
    let skill = run.disk.state().join("workspace/skills/cloudflare-browser/SKILL.md");
    eventually("the skill", PATIENCE, || skill.is_file().then_some(()));
}

#[test]
fn a_first_boot_of_the_pinned_is_ready_and_pairs() {
    a_first_boot_is_ready_and_pairs(Gateway::pinned(), "2026.2.3");
}

#[test]
fn the_latest_is_cured_of_a_refused_configuration_or_rolled_back() {
    a_refused_configuration_is_cured_or_rolled_back(Gateway::latest());
}

#[test]
fn the_pinned_is_cured_of_a_refused_configuration_or_rolled_back() {
    a_refused_configuration_is_cured_or_rolled_back(Gateway::pinned());
}

/// It restarts within its process, or ends in the middle of that if it is not back soon enough to be taken for well.
#[test]
fn the_latest_is_started_again_when_it_wants_to_be() {
    let run = Run::of(Gateway::latest());
    kill(Pid::from_raw(run.pid()), Signal::SIGUSR2).unwrap();
    eventually(format_args!("a second start; {}", run.container), DRAIN, || {
        (run.container.log().matches("http server listening").count() > 1).then_some(())
    });
    run.container.wait_for("/readyz", BOOT);
    assert!(!run.container.log().contains("crash loop"));
}

/// One that ends to be started again leaves word of it, and is asked where a clean exit would be the end otherwise.
#[test]
fn the_latest_that_ends_for_a_restart_is_believed_and_one_that_just_ends_is_not() {
    let gateway = Gateway::latest();
    let program = gateway.program();
    let run = Run::start(
        gateway,
        &json!({}),
        &[("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")],
        |disk| {
            let file = disk.path("moltinit.toml");
            let text = fs::read_to_string(&file).unwrap();
            // Left to itself it restarts within its process.
            let left = format!(r#"command = ["env", "-uOPENCLAW_NO_RESPAWN", {program:?}, "gateway""#);
            let adapted = text.replace(
                r#"command = ["openclaw", "gateway""#,
                &format!("restart = \"on-failure\"\n{left}"),
            );
            assert_ne!(adapted, text);
            // Where there is little time for it, it takes seconds to end after it has closed its port: that is no hang.
            let patient = adapted.replace(r#"every = "2s""#, r#"every = "30s""#);
            assert_ne!(patient, adapted);
            fs::write(&file, patient).unwrap();
        },
    );
    run.container.wait_for("/readyz", BOOT);
    let pid = run.pid();
    kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap();
    run.wait_for_another(pid);
    assert!(
        run.container.log().contains("the gateway wants to be started again"),
        "{}",
        run.container
    );

    let pid = run.pid();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let ended = || (run.container.status()["services"]["gateway"]["state"] == "stopped").then_some(());
    eventually(format_args!("the end of {pid}; {}", run.container), DRAIN, ended);
}

/// Telegram as it is to somebody whose token it does not know. Gives its address.
fn telegram_that_refuses() -> (String, Arc<AtomicUsize>) {
    const REFUSAL: &str = r#"{"ok":false,"error_code":401,"description":"Unauthorized"}"#;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.read(&mut [0; 8192]);
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{REFUSAL}",
                REFUSAL.len()
            );
        }
    });
    (address, asked)
}

/// A channel that cannot work is no reason to end the gateway, again and again, and it is not hidden either.
#[test]
fn a_token_that_telegram_refuses_is_said_and_the_gateway_stays_up() {
    const SECRET: &str = "123456789:telegram-canary-0123456789";
    let (telegram, asked) = telegram_that_refuses();
    let config = json!({ "channels": { "telegram": { "apiRoot": telegram } } });
    let run = Run::start(Gateway::latest(), &config, &[("TELEGRAM_BOT_TOKEN", SECRET)], |disk| {
        let file = disk.path("moltinit.toml");
        let text = fs::read_to_string(&file).unwrap();
        // One that is slow to start is not to be taken for one that is dead.
        let ready = r#"json = "ready", timeout = "30s""#;
        let text = text
            .replace(r#"json = "ready""#, ready)
            .replace(r#"every = "2s""#, r#"every = "5m""#);
        fs::write(&file, text).unwrap();
    });
    let gateway = || run.container.status()["services"]["gateway"].clone();
    eventually(format_args!("a refusal; {}", run.container), BOOT, || {
        (asked.load(Ordering::Relaxed) > 0 && run.container.log().contains("401")).then_some(())
    });
    eventually(format_args!("what is said of it; {}", run.container), BOOT, || {
        gateway()["why"].as_str()?.contains("failing: telegram").then_some(())
    });
    let told = event(&run.container, "service.unhealthy");
    assert!(
        told["why"].as_str().unwrap().contains("not ready within 30 s"),
        "{told}"
    );
    assert_eq!(gateway()["state"], "running", "{}", run.container);
    assert_eq!(
        run.container.get("/readyz").unwrap().json()["failing"],
        json!(["gateway"])
    );
    assert_eq!(
        run.container.post("/snapshots").unwrap().status,
        200,
        "it is looked after all the same"
    );
    let log = run.container.log();
    assert!(!log.contains(SECRET) && !log.contains("crash loop"), "{log}");
}

/// Its port still takes connections, and any answer of its HTTP would do as well as any other: only its WebSocket tells.
#[test]
fn the_pinned_is_restarted_when_it_hangs() {
    let run = Run::of(Gateway::pinned());
    let pid = run.pid();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    run.wait_for_another(pid);
    assert_eq!(event(&run.container, "service.unhealthy")["service"], "gateway");
}

/// What the environment makes of no file, of files of the gateway's own onboarding and of one that moltworker has
/// patched is valid to the gateway itself.
#[test]
fn what_is_written_is_valid_to_both() {
    let everything: Env = [
        ("OPENCLAW_GATEWAY_TOKEN", TOKEN),
        ("OPENCLAW_DEV_MODE", "true"),
        ("WORKER_URL", "https://agent.example.workers.dev"),
        ("CDP_SECRET", "cdp-secret-0123456789"),
        ("CLOUDFLARE_AI_GATEWAY_API_KEY", "cf-secret-0123456789"),
        ("CF_AI_GATEWAY_ACCOUNT_ID", "account"),
        ("CF_AI_GATEWAY_GATEWAY_ID", "gateway"),
        (
            "CF_AI_GATEWAY_MODEL",
            "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        ),
        ("MOLTINIT_MODEL_FALLBACKS", "anthropic/claude-sonnet-4-5,openai/gpt-4o"),
        ("TELEGRAM_BOT_TOKEN", "123456:telegram-secret"),
        ("TELEGRAM_DM_POLICY", "open"),
        ("DISCORD_BOT_TOKEN", "discord-secret"),
        ("DISCORD_DM_POLICY", "open"),
        ("SLACK_BOT_TOKEN", "xoxb-secret"),
        ("SLACK_APP_TOKEN", "xapp-secret"),
    ]
    .into_iter()
    .collect();
    let openai: Env = [
        ("OPENAI_API_KEY", "sk-test-0123456789"),
        ("MOLTINIT_MODEL_FALLBACKS", "openai/gpt-4o"),
        ("TELEGRAM_BOT_TOKEN", "123456:telegram-secret"),
        ("TELEGRAM_DM_POLICY", "allowlist"),
        ("TELEGRAM_DM_ALLOW_FROM", "123456789, 987654321"),
        ("DISCORD_BOT_TOKEN", "discord-secret"),
        ("DISCORD_DM_POLICY", "allowlist"),
    ]
    .into_iter()
    .collect();
    let anthropic: Env = [
        ("ANTHROPIC_API_KEY", "sk-ant-test-0123456789"),
        ("ANTHROPIC_BASE_URL", "https://proxy.example/anthropic/"),
        ("TELEGRAM_BOT_TOKEN", "123456:telegram-secret"),
        ("TELEGRAM_DM_POLICY", "disabled"),
    ]
    .into_iter()
    .collect();
    let workers_ai: Env = [
        ("CLOUDFLARE_AI_GATEWAY_API_KEY", "cf-secret-0123456789"),
        ("CF_ACCOUNT_ID", "account"),
        (
            "CF_AI_GATEWAY_MODEL",
            "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        ),
    ]
    .into_iter()
    .collect();
    // Somebody has a list of the models that are allowed, and of who may write.
    let with_lists = json!({
        "agents": { "defaults": { "models": { "anthropic/claude-sonnet-4-5": { "alias": "sonnet" } } } },
        "channels": { "telegram": { "allowFrom": [123_456_789] } },
    });
    let base_url: Env = [
        ("AI_GATEWAY_API_KEY", "secret-0123456789"),
        (
            "AI_GATEWAY_BASE_URL",
            "https://gateway.ai.cloudflare.com/v1/a/g/anthropic",
        ),
    ]
    .into_iter()
    .collect();
    let moltworkers = json!({
        "gateway": {
            "port": 18789, "mode": "local", "trustedProxies": ["10.1.0.0"], "auth": { "token": "old" },
            "controlUi": { "allowInsecureAuth": true },
        },
        "channels": {
            "telegram": { "botToken": "t", "enabled": true, "dmPolicy": "open", "allowFrom": ["*"], "dm": { "policy": "open" } },
            "discord": { "token": "d", "enabled": true, "dm": { "policy": "open", "allowFrom": ["*"] } },
            "slack": { "botToken": "xoxb-1", "appToken": "xapp-1", "enabled": true },
        },
    });
    for (gateway, generation) in [
        (Gateway::latest(), Generation::Current),
        (Gateway::pinned(), Generation::Early),
    ] {
        let cases = [
            (&everything, json!({})),
            (&everything, moltworkers.clone()),
            (&base_url, json!({})),
            (&openai, with_lists.clone()),
            (&anthropic, with_lists.clone()),
            (&workers_ai, with_lists.clone()),
            (&Env::default(), moltworkers.clone()),
        ];
        for (env, document) in cases {
            let written = patch(document, &Written::default(), &settings_of(env), generation).value;
            let (valid, said) = gateway.validate(&written);
            assert!(valid, "{generation:?}: {said}\n{written:#}");
        }
        let (valid, _) = gateway.validate(&json!({ "gateway": { "nonsense": 1 } }));
        assert!(!valid, "{generation:?}: a check that cannot fail is none");
    }
}

fn settings_of(env: &Env) -> GatewaySettings {
    let machine = Machine {
        home: "/root".into(),
        store_is_mounted: false,
        has_sandbox_server: false,
        has_legacy_workspace: true,
    };
    let config = config::load(None, env.clone(), &machine).unwrap();
    GatewaySettings::from_env(env, &config).unwrap()
}
