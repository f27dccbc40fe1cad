//! From text to a checked `Config`: defaults, derivations, and every problem by name.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc;
use tracing::Level;
use tracing_subscriber::filter::Targets;

use crate::supervise::order;

use super::{
    Bucket, Callback, Cdp, Config, Log, Problems, Snapshot, Store, Workspace,
    env::{Env, Problem},
    file,
    names::{self, SETTINGS},
    secret::{Mask, SHORTEST_MASKED, Secret},
    service::{Check, Probe, Service, Stop},
    settings::Settings,
    value,
};

/// Where the Sandbox SDK mounts the bucket in moltworker's deployments.
pub const MOUNTED_STORE: &str = "/data/moltbot";
/// The Sandbox SDK's own server, a service of ours where it exists.
pub const SANDBOX_SERVER: &str = "/container-server/sandbox";
/// moltworker's bucket, if it is not named.
const MOLTWORKERS_BUCKET: &str = "moltbot-data";
const LOCAL_STORE: &str = "/var/lib/moltinit/store";
const LEGACY_WORKSPACE: &str = "/root/clawd";

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

/// Makes the configuration from the file's text, the environment and what the machine has.
///
/// # Errors
/// Every problem at once, each with the name of its variable or key.
pub fn load(file: Option<&str>, env: Env, machine: &Machine) -> Result<Config, Problems> {
    let env = with_scheme(env, "WORKER_URL");
    let (mut problems, mut warnings) = names::unknown(&env);
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
        Some(dir) => {
            if !Path::new(dir).is_absolute() {
                let what = format!("`{dir}` must be an absolute path");
                settings.problems.push(Problem::new("OPENCLAW_STATE_DIR", what));
            }
            PathBuf::from(dir)
        }
        None => settings
            .absolute("state_dir")
            .unwrap_or_else(|| machine.home.join(".openclaw")),
    };
    let workspace = settings.absolute("workspace").map(Workspace::Named).or_else(|| {
        machine
            .has_legacy_workspace
            .then(|| Workspace::Default(LEGACY_WORKSPACE.into()))
    });
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
    let callback = callback(&settings);
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

    nested(&mut settings, &state_dir, workspace.as_ref(), &data_dir, &store.dir);
    let mask = Mask::new(settings.secrets(&services));
    warnings.extend(too_short(&settings));
    let mut problems = settings.problems;
    problems.extend(order::check(&services));
    if !problems.is_empty() {
        return Err(Problems(problems).masked(&mask));
    }
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
        warnings,
        env,
        file: None,
    })
}

/// Every secret in the file and the environment, however wrong the rest of them is.
pub fn secrets(file: Option<&str>, env: &Env) -> Vec<String> {
    let (mut services, mut problems) = (Vec::new(), Vec::new());
    let file = file
        .map(|text| file::read(text, SETTINGS, &mut services, &mut problems))
        .unwrap_or_default();
    Settings { file, env, problems }.secrets(&services)
}

/// An address without its scheme, as people write it, is one of HTTPS.
fn with_scheme(env: Env, name: &str) -> Env {
    match env.get(name) {
        Some(address) if !address.contains("://") => {
            let whole = format!("https://{address}");
            env.overlaid(&Env::from_iter([(name, whole)]))
        }
        _ => env,
    }
}

/// Secrets that are not struck out of what others write, and have to be said.
fn too_short(settings: &Settings<'_>) -> Vec<Problem> {
    let file = settings
        .file
        .iter()
        .map(|(key, text)| (names::variable(key), key.as_str(), text.as_str()));
    let env = settings.env.iter().map(|(name, value)| (name.to_owned(), name, value));
    file.chain(env)
        .filter(|(variable, _, value)| {
            names::SECRETS.contains(&variable.as_str()) && (1..SHORTEST_MASKED).contains(&value.len())
        })
        .map(|(_, named, _)| {
            Problem::new(
                named,
                format!("is shorter than {SHORTEST_MASKED} characters: too common to be struck out of logs; use a longer one"),
            )
        })
        .collect()
}

fn callback(settings: &Settings<'_>) -> Callback {
    let of_worker = || {
        let worker = settings.env.get("WORKER_URL")?;
        let url = format!("{}/_moltinit/events", worker.trim_end_matches('/'));
        Some((url, "WORKER_URL".to_owned()))
    };
    let own = settings
        .text("callback_url")
        .map(|url| (url.to_owned(), settings.named("callback_url")));
    let (url, named) = own.or_else(of_worker).unzip();
    Callback {
        url,
        named: named.unwrap_or_else(|| names::variable("callback_url")),
        secret: settings.secret("callback_secret"),
    }
}

/// What is restored in one piece cannot be within another: the state, a workspace unless it is part of the state, and
/// our own data. Nor can the store be in any of them.
fn nested(settings: &mut Settings<'_>, state: &Path, workspace: Option<&Workspace>, data: &Path, store: &Path) {
    let within = |inner: &Path, outer: &Path| inner.starts_with(outer);
    let mut problem = |key: &str, inner: &Path, outer: &str, place: &Path| {
        let (inner, place) = (inner.display(), place.display());
        settings.problem(
            key,
            format!("{inner} is inside of {outer} ({place}); the two have to be apart"),
        );
    };
    if within(data, state) {
        problem("data_dir", data, "the gateway's state", state);
    }
    if within(state, data) {
        problem("state_dir", state, "moltinit's own data", data);
    }
    if within(store, state) {
        problem("store", store, "the gateway's state", state);
    }
    if within(store, data) {
        problem("store", store, "moltinit's own data", data);
    }
    let Some(Workspace::Named(workspace)) = workspace else {
        return;
    };
    if within(workspace, data) {
        problem("workspace", workspace, "moltinit's own data", data);
    }
    for (what, inner) in [
        ("state is", state),
        ("store is", store),
        ("moltinit's own data is", data),
    ] {
        if within(inner, workspace) && inner != workspace {
            settings.problem(
                "workspace",
                format!(
                    "{} cannot be it: the {what} inside of it, in {}",
                    workspace.display(),
                    inner.display()
                ),
            );
        }
    }
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
    if instance.is_empty() || !instance.chars().all(fits) || instance.starts_with('.') {
        settings.problem(
            "instance",
            format!("`{instance}` must be letters, digits, `-`, `_` and `.`, not starting with `.`"),
        );
    }
    Store {
        // Naming the place where the platform mounts the bucket, or one in it, is as good as not naming one: before the
        // mount is there, it is a directory that vanishes with the container.
        must_be_mount: mount.is_some() || (named.is_none() && mounted) || dir.starts_with(MOUNTED_STORE),
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

/// Who brings a bucket's keys late mounts nothing, so moltinit has to: a moltworker's Worker gives them to its start
/// script, and names the bucket only if it is not the usual one. Unless the Worker has mounted it.
pub fn bringing_a_bucket(mut env: Env, machine: &Machine) -> Env {
    let brought = ["R2_BUCKET_NAME", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"];
    if env.first(&brought).is_some() && env.get("MOLTINIT_MOUNT").is_none() && !machine.store_is_mounted {
        env = env.overlaid(&[("MOLTINIT_MOUNT", "s3fs")].into_iter().collect());
        if env.get("R2_BUCKET_NAME").is_none() {
            env = env.overlaid(&[("R2_BUCKET_NAME", MOLTWORKERS_BUCKET)].into_iter().collect());
        }
    }
    env
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
    let token = settings.parse("cdp_token", |text| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        match text.chars().all(fits) {
            true => Ok(Secret::new(text.to_owned())),
            false => Err("must be letters, digits, `-`, `.`, `_` and `~`: it becomes part of an address".into()),
        }
    });
    if !addr.ip().is_loopback() && allow_remote && settings.text("cdp_token").is_none() {
        settings.problem(
            "cdp_token",
            "must be set when the browser port is open to the network: who reaches it has the agent's browser",
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
            // Not quoted: it may be meant as a URL with a password in it.
            _ => Err("it is neither worker, cloudflare, nor an http(s) or ws(s) URL".to_owned()),
        })
        .or(derived);
    Cdp { addr, token, upstream }
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
            signal: libc::SIGTERM,
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
}
