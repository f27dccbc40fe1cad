//! From text to a checked `Config`: defaults, derivations, and every problem by name.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use tracing::Level;
use tracing_subscriber::filter::Targets;

use crate::supervise::order;

use super::{
    Bucket, Callback, Cdp, Config, Log, Problems, Snapshot, Store,
    env::{Env, Problem},
    file,
    secret::{Mask, Secret},
    service::{Check, Probe, Service, Stop},
    value,
};

/// Where the Sandbox SDK mounts the bucket in moltworker's deployments.
pub const MOUNTED_STORE: &str = "/data/moltbot";
/// The Sandbox SDK's own server, a service of ours where it exists.
pub const SANDBOX_SERVER: &str = "/container-server/sandbox";
const LOCAL_STORE: &str = "/var/lib/moltinit/store";
const LEGACY_WORKSPACE: &str = "/root/clawd";

/// The settings: key in the file, and with `MOLTINIT_` before it and in capitals the variable.
pub const SETTINGS: &[&str] = &[
    "store",
    "store_wait",
    "store_required",
    "mount",
    "instance",
    "state_dir",
    "workspace",
    "snapshot_quiet",
    "snapshot_max_delay",
    "snapshot_min_gap",
    "key",
    "http_addr",
    "admin_token",
    "cdp_addr",
    "cdp_allow_remote",
    "cdp_upstream",
    "callback_url",
    "callback_secret",
    "stop_timeout",
    "log",
    "log_format",
    "data_dir",
    "run_dir",
    "model_fallbacks",
];

/// Variables that moltinit reads or sets itself beside the settings.
const OTHER_VARIABLES: &[&str] = &["MOLTINIT_CONFIG", "MOLTINIT_SERVICE"];

/// Variables whose values are secrets; each may be given by file (`NAME_FILE`).
pub const SECRETS: &[&str] = &[
    "MOLTINIT_KEY",
    "MOLTINIT_ADMIN_TOKEN",
    "MOLTINIT_CALLBACK_SECRET",
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "CLOUDFLARE_AI_GATEWAY_API_KEY",
    "AI_GATEWAY_API_KEY",
    "OPENCLAW_GATEWAY_TOKEN",
    "MOLTBOT_GATEWAY_TOKEN",
    "TELEGRAM_BOT_TOKEN",
    "DISCORD_BOT_TOKEN",
    "SLACK_BOT_TOKEN",
    "SLACK_APP_TOKEN",
    "CDP_SECRET",
    "CF_BROWSER_TOKEN",
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
];

/// Variables that hold addresses, in which there may be a password or a token.
const ADDRESSES: &[&str] = &[
    "MOLTINIT_CALLBACK_URL",
    "MOLTINIT_CDP_UPSTREAM",
    "WORKER_URL",
    "ANTHROPIC_BASE_URL",
    "AI_GATEWAY_BASE_URL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
];

/// What there is on the machine that defaults depend on.
#[derive(Debug, Clone)]
pub struct Machine {
    pub home: PathBuf,
    pub store_is_mounted: bool,
    pub has_sandbox_server: bool,
    pub has_legacy_workspace: bool,
}

impl Machine {
    /// Looks at this machine. Reads no mounted file system: a hung one must not hold up the start.
    pub fn look() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Machine {
            home: std::env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map_or("/root".into(), PathBuf::from),
            store_is_mounted: mounts.lines().any(|line| line.split(' ').nth(4) == Some(MOUNTED_STORE)),
            has_sandbox_server: Path::new(SANDBOX_SERVER).exists(),
            has_legacy_workspace: Path::new(LEGACY_WORKSPACE).is_dir(),
        }
    }
}

/// The settings as text, the environment's over the file's, and the problems met so far.
struct Settings<'a> {
    file: BTreeMap<String, String>,
    env: &'a Env,
    problems: Vec<Problem>,
}

impl Settings<'_> {
    /// What is secret in the environment and in the file.
    fn secrets(&self) -> Vec<String> {
        let file = self.file.iter().map(|(key, text)| (Self::variable(key), text.clone()));
        let file: Env = file.collect();
        secrets(&file).chain(secrets(self.env)).collect()
    }

    fn variable(key: &str) -> String {
        format!("MOLTINIT_{}", key.to_ascii_uppercase())
    }

    fn text(&self, key: &str) -> Option<&str> {
        debug_assert!(SETTINGS.contains(&key), "{key} is not in SETTINGS");
        self.env
            .get(&Self::variable(key))
            .or_else(|| self.file.get(key).map(String::as_str))
    }

    fn problem(&mut self, key: &str, what: impl Into<String>) {
        let name = match self.env.get(&Self::variable(key)) {
            Some(_) => Self::variable(key),
            None => key.to_owned(),
        };
        self.problems.push(Problem::new(name, what));
    }

    fn parse<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text(key)?) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.problem(key, what);
                None
            }
        }
    }

    fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.parse(key, value::duration).unwrap_or(default)
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        self.parse(key, value::boolean)
    }

    fn addr(&mut self, key: &str, default: ([u8; 4], u16)) -> SocketAddr {
        self.parse(key, |text| {
            text.parse()
                .map_err(|_| format!("`{text}` is not an address; write it like 127.0.0.1:9180"))
        })
        .unwrap_or_else(|| default.into())
    }

    fn absolute(&mut self, key: &str) -> Option<PathBuf> {
        self.parse(key, |text| match Path::new(text) {
            path if path.is_absolute() => Ok(path.to_owned()),
            _ => Err(format!("`{text}` must be an absolute path")),
        })
    }

    fn secret(&self, key: &str) -> Option<Secret> {
        self.text(key).map(|text| Secret::new(text.to_owned()))
    }
}

/// Makes the configuration from the file's text, the environment and what the machine has.
///
/// # Errors
/// Every problem at once, each with the name of its variable or key.
pub fn load(file: Option<&str>, env: Env, machine: &Machine) -> Result<Config, Problems> {
    let mut problems = unknown_variables(&env);
    let mut services = default_services(machine);
    let file = file
        .map(|text| file::read(text, SETTINGS, &mut services, &mut problems))
        .unwrap_or_default();
    let mut settings = Settings {
        file,
        env: &env,
        problems,
    };

    if let Some(timeout) = settings.parse("stop_timeout", value::duration) {
        for gateway in services.iter_mut().filter(|service| service.name == "gateway") {
            gateway.stop.timeout = timeout;
        }
    }
    let store = store(&mut settings, machine);
    let state_dir = match env.get("OPENCLAW_STATE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => settings
            .absolute("state_dir")
            .unwrap_or_else(|| machine.home.join(".openclaw")),
    };
    let workspace = settings
        .absolute("workspace")
        .or_else(|| machine.has_legacy_workspace.then(|| LEGACY_WORKSPACE.into()));
    let snapshot = Snapshot {
        quiet: settings.duration("snapshot_quiet", Duration::from_millis(250)),
        max_delay: settings.duration("snapshot_max_delay", Duration::from_secs(1)),
        min_gap: settings.duration("snapshot_min_gap", Duration::from_secs(1)),
    };
    let http_addr = settings.addr("http_addr", ([0, 0, 0, 0], 9180));
    let admin_token = settings.secret("admin_token").or_else(|| {
        env.first(&["OPENCLAW_GATEWAY_TOKEN", "MOLTBOT_GATEWAY_TOKEN"])
            .map(|t| Secret::new(t.to_owned()))
    });
    let cdp = cdp(&mut settings);
    let model_fallbacks = settings.text("model_fallbacks").map(str::to_owned);
    let callback = Callback {
        url: settings.text("callback_url").map(str::to_owned).or_else(|| {
            env.get("WORKER_URL")
                .map(|worker| format!("{}/_moltinit/events", worker.trim_end_matches('/')))
        }),
        secret: settings.secret("callback_secret"),
    };
    let data_dir = settings
        .absolute("data_dir")
        .unwrap_or_else(|| "/var/lib/moltinit/data".into());
    let run_dir = settings.absolute("run_dir").unwrap_or_else(|| "/run/moltinit".into());
    let log = Log {
        filter: settings
            .parse("log", |text| {
                text.parse()
                    .map_err(|error| format!("`{text}` is not a tracing filter: {error}"))
            })
            .unwrap_or_else(|| Targets::new().with_default(Level::INFO)),
        json: settings.parse("log_format", |text| match text {
            "json" => Ok(true),
            "pretty" => Ok(false),
            _ => Err(format!("`{text}` is neither json nor pretty")),
        }),
    };

    let secrets = settings.secrets();
    let mut problems = settings.problems;
    problems.extend(order::check(&services));
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let mask = Mask::new(secrets);
    Ok(Config {
        store,
        state_dir,
        workspace,
        snapshot,
        http_addr,
        admin_token,
        cdp,
        model_fallbacks,
        callback,
        services,
        data_dir,
        run_dir,
        log,
        mask,
        env,
        file: None,
    })
}

/// Values of the environment's variables that hold secrets, and what is secret in those that hold addresses.
pub fn secrets(env: &Env) -> impl Iterator<Item = String> {
    let values = SECRETS.iter().filter_map(|name| env.get(name)).map(str::to_owned);
    let addresses = ADDRESSES.iter().filter_map(|name| env.get(name));
    values.chain(addresses.flat_map(secrets_of_address))
}

/// The password and the query of a URL, as they are written there.
fn secrets_of_address(address: &str) -> Vec<String> {
    let Ok(url) = url::Url::parse(address) else {
        return Vec::new();
    };
    let query = url.query().unwrap_or_default().split('&');
    let values = query.filter_map(|pair| Some(pair.split_once('=')?.1));
    url.password().into_iter().chain(values).map(str::to_owned).collect()
}

fn unknown_variables(env: &Env) -> Vec<Problem> {
    let known: Vec<String> = SETTINGS
        .iter()
        .map(|key| Settings::variable(key))
        .chain(OTHER_VARIABLES.iter().map(|name| (*name).to_owned()))
        .collect();
    env.names()
        .filter(|name| name.starts_with("MOLTINIT_"))
        .filter(|name| {
            let plain = name
                .strip_suffix("_FILE")
                .filter(|plain| SECRETS.contains(plain))
                .unwrap_or(name);
            !known.iter().any(|known| known == plain)
        })
        .map(|name| {
            let nearest = value::did_you_mean(name, known.iter().map(String::as_str));
            Problem::new(name, format!("unknown variable{nearest}"))
        })
        .collect()
}

fn store(settings: &mut Settings<'_>, machine: &Machine) -> Store {
    let env = settings.env;
    let named = settings.absolute("store");
    let mount = match settings.text("mount").map(str::to_owned) {
        None => None,
        Some(how) if how == "s3fs" => bucket(settings),
        Some(other) => {
            settings.problem(
                "mount",
                format!("`{other}` is not known; `s3fs` is the one way to mount"),
            );
            None
        }
    };
    let has_bucket = env.get("R2_BUCKET_NAME").is_some() && env.get("R2_ACCESS_KEY_ID").is_some();
    let mounted = machine.store_is_mounted || mount.is_some() || has_bucket;
    let durable = named.is_some() || mounted;
    let dir = named
        .clone()
        .unwrap_or_else(|| if mounted { MOUNTED_STORE } else { LOCAL_STORE }.into());
    let instance = settings.text("instance").unwrap_or(super::DEFAULT_INSTANCE).to_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !instance.chars().all(fits) || instance.starts_with('.') {
        settings.problem(
            "instance",
            format!("`{instance}` must be letters, digits, `-`, `_` and `.`, not starting with `.`"),
        );
    }
    Store {
        // Naming the place where the platform mounts the bucket is as good as not naming one: before the mount is
        // there, it is a directory that vanishes with the container.
        must_be_mount: mount.is_some() || (named.is_none() && mounted) || dir == Path::new(MOUNTED_STORE),
        durable,
        dir,
        wait: settings.duration("store_wait", Duration::from_secs(60)),
        required: settings
            .boolean("store_required")
            .unwrap_or(named.is_some() || has_bucket),
        mount,
        instance,
        key: settings.secret("key"),
    }
}

fn bucket(settings: &mut Settings<'_>) -> Option<Bucket> {
    let env = settings.env;
    for name in ["R2_BUCKET_NAME", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"] {
        if env.get(name).is_none() {
            settings
                .problems
                .push(Problem::new(name, "must be set when MOLTINIT_MOUNT is s3fs"));
        }
    }
    let of_account = |account| format!("https://{account}.r2.cloudflarestorage.com");
    let endpoint = env.get("R2_ENDPOINT").map(str::to_owned);
    let endpoint = endpoint.or_else(|| env.get("CF_ACCOUNT_ID").map(of_account));
    if endpoint.is_none() {
        let what = "must be set when MOLTINIT_MOUNT is s3fs (or R2_ENDPOINT, for another S3 server)";
        settings.problems.push(Problem::new("CF_ACCOUNT_ID", what));
    }
    Some(Bucket {
        name: env.get("R2_BUCKET_NAME")?.to_owned(),
        endpoint: endpoint?,
        access_key_id: Secret::new(env.get("R2_ACCESS_KEY_ID")?.to_owned()),
        secret_access_key: Secret::new(env.get("R2_SECRET_ACCESS_KEY")?.to_owned()),
    })
}

fn cdp(settings: &mut Settings<'_>) -> Cdp {
    let env = settings.env;
    let addr = settings.addr("cdp_addr", ([127, 0, 0, 1], 9222));
    let allow_remote = settings.boolean("cdp_allow_remote").unwrap_or(false);
    if !addr.ip().is_loopback() && !allow_remote {
        settings.problem(
            "cdp_addr",
            "opens the browser to the network; use a loopback address, or set MOLTINIT_CDP_ALLOW_REMOTE=1",
        );
    }
    let derived = (env.get("WORKER_URL").is_some() && env.get("CDP_SECRET").is_some()).then(|| "worker".to_owned());
    let upstream = settings
        .parse("cdp_upstream", |text| match text {
            "worker" | "cloudflare" => Ok(text.to_owned()),
            url if ["http://", "https://", "ws://", "wss://"]
                .iter()
                .any(|scheme| url.starts_with(scheme)) =>
            {
                Ok(url.to_owned())
            }
            other => Err(format!(
                "`{other}` is neither worker, cloudflare, nor an http(s) or ws(s) URL"
            )),
        })
        .or(derived);
    for (upstream_name, needs) in [
        ("worker", ["WORKER_URL", "CDP_SECRET"]),
        ("cloudflare", ["CF_ACCOUNT_ID", "CF_BROWSER_TOKEN"]),
    ] {
        if upstream.as_deref() == Some(upstream_name) {
            for name in needs.iter().filter(|name| env.get(name).is_none()) {
                settings.problems.push(Problem::new(
                    *name,
                    format!("must be set when MOLTINIT_CDP_UPSTREAM is {upstream_name}"),
                ));
            }
        }
    }
    Cdp { addr, upstream }
}

/// The two services there are without a file (contract section 3).
fn default_services(machine: &Machine) -> Vec<Service> {
    let http = |path: &str, json: &str| Check::Http {
        url: format!("http://127.0.0.1:18789/{path}"),
        json: Some(json.to_owned()),
    };
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut after = vec!["store".to_owned()];
    let mut services = Vec::new();
    if machine.has_sandbox_server {
        after.push("sandbox".to_owned());
        services.push(Service {
            command: text(&[SANDBOX_SERVER]),
            ready: Some(Probe::ready(Check::Tcp {
                addr: "127.0.0.1:3000".to_owned(),
            })),
            ..Service::named("sandbox")
        });
    }
    services.push(Service {
        command: text(&["openclaw", "gateway", "--port", "18789", "--bind", "lan"]),
        after,
        ready: Some(Probe::ready(http("readyz", "ready"))),
        live: Some(Probe::live(http("healthz", "ok"))),
        stop: Stop {
            signal: Signal::SIGTERM,
            timeout: Duration::from_secs(330),
        },
        env: [("NODE_OPTIONS".to_owned(), "--max-old-space-size=1536".to_owned())].into(),
        memory_max: Some(2 << 30),
        ..Service::named("gateway")
    });
    services
}

#[cfg(test)]
mod tests {
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
        assert_eq!((echo.restart, echo.stop.signal), (Restart::Never, Signal::SIGINT));
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
        ] {
            assert!(text.contains(named), "{named}\nnot in\n{text}");
        }
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
}
