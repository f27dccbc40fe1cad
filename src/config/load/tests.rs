use nix::libc;

use super::*;
use crate::config::service::Restart;

fn machine() -> Machine {
    Machine {
        home: "/home/a".into(),
        store_is_mounted: false,
        has_sandbox_server: false,
        has_legacy_workspace: false,
    }
}

fn load_with(file: Option<&str>, env: &[(&str, &str)]) -> Result<Config, Problems> {
    load(file, env.iter().copied().collect(), &machine())
}

#[test]
fn defaults_are_the_contracts() {
    let config = load_with(None, &[]).unwrap();
    assert_eq!(config.store.dir, Path::new("/var/lib/moltinit/store"));
    assert!(!config.store.required && !config.store.durable && !config.store.must_be_mount);
    assert_eq!(config.state_dir, Path::new("/home/a/.openclaw"));
    assert_eq!(config.http_addr.to_string(), "0.0.0.0:9180");
    assert_eq!(config.cdp.addr.to_string(), "127.0.0.1:9222");
    assert_eq!(config.services.len(), 1);
    assert_eq!(config.services[0].after, ["store"]);
    assert_eq!(config.services[0].stop.timeout, Duration::from_secs(330));
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "store = \"/a\"\nstore_wait = \"5s\"\nsnapshot_quiet = \"1s\"\n";
    let config = load_with(
        Some(file),
        &[("MOLTINIT_STORE", "/b"), ("MOLTINIT_SNAPSHOT_QUIET", "10ms")],
    )
    .unwrap();
    assert_eq!(config.store.dir, Path::new("/b"));
    assert!(config.store.required);
    assert_eq!(config.store.wait, Duration::from_secs(5));
    assert_eq!(config.snapshot.quiet, Duration::from_millis(10));
}

#[test]
fn a_file_overrides_single_keys_of_a_default_service_and_adds_others() {
    let file = r#"
        [[service]]
        name = "gateway"
        memory_max = "1GiB"
        ready = { http = "http://127.0.0.1:1/r", json = "ready", timeout = "9s" }
        [[service]]
        name = "echo"
        command = ["cat"]
        restart = "never"
        stop = { signal = "INT", timeout = "3s" }
    "#;
    let config = load_with(Some(file), &[]).unwrap();
    let [gateway, echo] = config.services.as_slice() else {
        panic!("two services")
    };
    assert_eq!(gateway.memory_max, Some(1 << 30));
    assert_eq!(gateway.command[0], "openclaw");
    assert_eq!(gateway.ready.as_ref().unwrap().timeout, Duration::from_secs(9));
    assert!(gateway.live.is_some());
    assert_eq!((echo.restart, echo.stop.signal), (Restart::Never, libc::SIGINT));
}

#[test]
fn every_problem_is_named_at_once() {
    let file = r#"
        stroe = "/a"
        [[service]]
        name = "x"
        ready = { http = "http://a", tcp = "b:1" }
        bakcoff = {}
        [[service]]
        name = "y"
        command = ["true"]
        after = ["z"]
        ready = { http = "https://a" }
        live = { notify = 3 }
        [[service]]
        name = "z"
        command = ["true"]
        after = ["y", "gatewy"]
        ready = { tcp = "nowhere" }
    "#;
    let env = [
        ("MOLTINIT_STORE_WIAT", "1s"),
        ("MOLTINIT_HTTP_ADDR", "nowhere"),
        ("MOLTINIT_CDP_ADDR", "0.0.0.0:9222"),
        ("MOLTINIT_MOUNT", "s3fs"),
        ("OPENCLAW_STATE_DIR", "~/.openclaw"),
    ];
    let Problems(problems) = load_with(Some(file), &env).unwrap_err();
    let text = Problems(problems).to_string();
    for named in [
        "MOLTINIT_STORE_WIAT: unknown variable; the nearest known one is `MOLTINIT_STORE_WAIT`",
        "stroe: unknown key; the nearest known one is `store`",
        "service \"x\".bakcoff: unknown key; the nearest known one is `backoff`",
        "service \"x\".command: every service needs a command",
        "service \"x\".ready.http: a probe needs exactly one",
        "service \"y\".ready.http: `https://a` cannot be probed",
        "service \"y\".live: `notify` tells readiness only",
        "service \"z\".ready.tcp: `nowhere` is not an address",
        "service \"y\".after: each of these waits for the next, for ever: y -> z -> y",
        "service \"z\".after: there is no service `gatewy`; the nearest known one is `gateway`",
        "MOLTINIT_HTTP_ADDR: `nowhere`",
        "MOLTINIT_CDP_ADDR: opens the browser to the network",
        "R2_BUCKET_NAME: must be set",
        "OPENCLAW_STATE_DIR: `~/.openclaw` must be an absolute path",
    ] {
        assert!(text.contains(named), "{named}\nnot in\n{text}");
    }
}

#[test]
fn a_browser_port_for_the_network_wants_a_token() {
    let open = [
        ("MOLTINIT_CDP_ADDR", "0.0.0.0:9222"),
        ("MOLTINIT_CDP_ALLOW_REMOTE", "1"),
    ];
    let with = |token: &'static str| load_with(None, &[&open[..], &[("MOLTINIT_CDP_TOKEN", token)]].concat());
    let said = load_with(None, &open).unwrap_err().to_string();
    assert!(said.contains("cdp_token: must be set"), "{said}");
    let said = with("a b&c-canary").unwrap_err().to_string();
    assert!(
        said.contains("MOLTINIT_CDP_TOKEN: must be") && !said.contains("canary"),
        "{said}"
    );
    let config = with("a-canary").unwrap();
    assert!(config.cdp.token.as_ref().unwrap().matches(b"a-canary"));
    assert_eq!(config.mask.apply("?token=a-canary"), "?token=[secret]");
    assert!(load_with(None, &[("MOLTINIT_CDP_ALLOW_REMOTE", "1")]).is_ok());
}

#[test]
fn what_is_restored_in_one_piece_is_in_no_other() {
    for (nested, key) in [
        (("MOLTINIT_WORKSPACE", "/home/a"), "MOLTINIT_WORKSPACE"),
        (("MOLTINIT_WORKSPACE", "/var/lib"), "MOLTINIT_WORKSPACE"),
        (("MOLTINIT_DATA_DIR", "/home/a/.openclaw/data"), "MOLTINIT_DATA_DIR"),
        (
            ("MOLTINIT_STATE_DIR", "/var/lib/moltinit/data/state"),
            "MOLTINIT_STATE_DIR",
        ),
        (("MOLTINIT_STORE", "/home/a/.openclaw/store"), "MOLTINIT_STORE"),
    ] {
        let problems = load_with(None, &[nested]).unwrap_err().to_string();
        assert!(problems.contains(key) && problems.contains("inside of"), "{problems}");
    }
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("data");
    std::os::unix::fs::symlink("/home/a/.openclaw/data", &link).unwrap();
    let linked = [("MOLTINIT_DATA_DIR", link.to_str().unwrap())];
    let problems = load_with(None, &linked).unwrap_err().to_string();
    assert!(problems.contains("inside of the gateway's state"), "{problems}");
    load_with(None, &[("MOLTINIT_WORKSPACE", "/home/a/.openclaw/workspace")]).unwrap();
    load_with(None, &[("MOLTINIT_WORKSPACE", "/home/a/.openclaw")]).unwrap();
}

#[test]
fn the_place_of_the_mount_and_what_is_in_it_have_to_be_mounted() {
    let must = |dir| load_with(None, &[("MOLTINIT_STORE", dir)]).unwrap().store.must_be_mount;
    assert!(must("/data/moltbot") && must("/data/moltbot/x"));
    assert!(!must("/data/moltbots") && !must("/store"));
}

#[test]
fn r2_variables_make_the_store_required_and_a_mount() {
    let config = load_with(
        None,
        &[
            ("R2_BUCKET_NAME", "b"),
            ("R2_ACCESS_KEY_ID", "k"),
            ("R2_SECRET_ACCESS_KEY", "s"),
        ],
    )
    .unwrap();
    assert!(config.store.required && config.store.must_be_mount);
    assert_eq!(config.store.dir, Path::new(MOUNTED_STORE));
}

#[test]
fn a_mistake_does_not_give_a_secret_away() {
    let service = "[[service]]\nname = \"a\"\ncommand = [\"a\"]\n";
    for (file, env) in [
        (Some("store_wait = \"5s\"\nkey = \"canary-unclosed\n"), ("A", "")),
        (Some("key = canary-bare\n"), ("A", "")),
        (Some("key = [\"canary-list\"]\n"), ("A", "")),
        (Some("key = \"canary-twice\"\nkey = \"canary-twice\"\n"), ("A", "")),
        (
            None,
            ("MOLTINIT_CDP_UPSTREAM", "htps://user:canary@host?token=canary-query"),
        ),
        (Some("cdp_upstream = \"canary-no-url\""), ("A", "")),
        (None, ("MOLTINIT_KEY_FILE", "/no/canary-instead-of-a-path")),
        (
            Some(&format!(
                "{service}env = {{ API_TOKEN = \"canary-of-a-service\" }}\nrestart = \"canary-of-a-service\""
            )),
            ("A", ""),
        ),
    ] {
        let mut env: Env = [env].into_iter().collect();
        let mut problems = env.read_files(names::known());
        if let Err(Problems(more)) = load(file, env, &machine()) {
            problems.extend(more);
        }
        assert!(!problems.is_empty(), "{file:?}");
        let said = format!("{} {problems:?}", Problems(problems.clone()));
        assert!(!said.contains("canary"), "{said}");
    }
    let Problems(problems) = load_with(Some("log = \"info\"\n\nkey = \"canary\n"), &[]).unwrap_err();
    assert!(problems[0].what.contains("line 3, column"), "{problems:?}");
}

#[test]
fn an_empty_secret_is_no_secret() {
    for file in ["key = \"\"", "admin_token = \"\"", "instance = \"\""] {
        let Problems(problems) = load_with(Some(file), &[("OPENCLAW_GATEWAY_TOKEN", "token")]).unwrap_err();
        assert!(problems[0].to_string().contains("is empty"), "{problems:?}");
    }
    assert!(load_with(None, &[("MOLTINIT_KEY", "")]).unwrap().store.key.is_none());
}

#[test]
fn a_secret_that_is_too_short_to_be_masked_is_told() {
    let config = load_with(
        Some("callback_secret = \"x\""),
        &[("CDP_SECRET", "12345"), ("MOLTINIT_KEY", "")],
    )
    .unwrap();
    let named: Vec<_> = config.warnings.iter().map(|warning| warning.name.as_str()).collect();
    assert_eq!(named, ["callback_secret", "CDP_SECRET"]);
}

#[test]
fn a_services_secrets_are_masked() {
    let file = "[[service]]\nname = \"a\"\ncommand = [\"a\"]\n\
                env = { API_TOKEN = \"canary-token\", DB_URL = \"pg://u:canary-password@h/\", MODE = \"plain\", PIN_KEY = \"1\" }";
    let config = load_with(Some(file), &[]).unwrap();
    let shown = config.mask.apply(&config.written().to_string()).into_owned();
    assert!(
        !shown.contains("canary") && shown.contains("MODE = \"plain\""),
        "{shown}"
    );
    assert!(shown.contains("PIN_KEY = \"[secret]\""), "{shown}");
}

#[test]
fn keys_that_are_brought_late_are_for_mounting_with() {
    let keys = [
        ("R2_ACCESS_KEY_ID", "k"),
        ("R2_SECRET_ACCESS_KEY", "s"),
        ("CF_ACCOUNT_ID", "a"),
    ];
    let brought = |env: &[(&str, &str)], machine: &Machine| {
        load(None, bringing_a_bucket(env.iter().copied().collect(), machine), machine)
    };
    let store = brought(&keys, &machine()).unwrap().store;
    assert!(store.durable && store.required && store.must_be_mount);
    let bucket = store.mount.unwrap();
    assert_eq!(
        (bucket.name.as_str(), bucket.endpoint.as_str()),
        ("moltbot-data", "https://a.r2.cloudflarestorage.com")
    );
    assert!(
        brought(&keys[..2], &machine())
            .unwrap_err()
            .to_string()
            .contains("CF_ACCOUNT_ID")
    );

    let mounted = Machine {
        store_is_mounted: true,
        ..machine()
    };
    let store = brought(&keys, &mounted).unwrap().store;
    assert!(store.durable && store.mount.is_none());
    assert!(
        !brought(&keys[2..], &machine()).unwrap().store.durable,
        "an account alone is no bucket"
    );
}

#[test]
fn secrets_are_masked_and_not_printed() {
    let config = load_with(
        None,
        &[
            ("ANTHROPIC_API_KEY", "sk-ant-canary"),
            ("OPENCLAW_GATEWAY_TOKEN", "gw-canary"),
        ],
    )
    .unwrap();
    assert!(!format!("{config:?}").contains("canary"));
    assert_eq!(config.mask.apply("a sk-ant-canary b"), "a [secret] b");
    assert!(config.admin_token.unwrap().matches(b"gw-canary"));
}
