//! From text to a checked `Config`: defaults, derivations, and every problem by name.

mod machine;
mod services;
mod store;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::Level;
use tracing_subscriber::filter::Targets;

pub use self::{
    machine::{MOUNTED_STORE, Machine, SANDBOX_SERVER},
    store::bringing_a_bucket,
};

use self::{machine::LEGACY_WORKSPACE, services::default_services, store::store};
use super::{
    Callback, Cdp, Config, Log, Problems, Snapshot, Workspace,
    env::{Env, Problem},
    file,
    names::{self, SETTINGS},
    secret::{Mask, SHORTEST_MASKED, Secret},
    settings::Settings,
    value,
};
use crate::{
    paths::{is_within, resolve},
    supervise::order,
};

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
/// our own data. Nor can the store be in any of them; it is taken by its name, since to look at one that hangs would hang.
fn nested(settings: &mut Settings<'_>, state: &Path, workspace: Option<&Workspace>, data: &Path, store: &Path) {
    let within = |inner: &Path, outer: &Path| is_within(&resolve(inner), &resolve(outer));
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
    if store.starts_with(state) {
        problem("store", store, "the gateway's state", state);
    }
    if store.starts_with(data) {
        problem("store", store, "moltinit's own data", data);
    }
    let Some(Workspace::Named(workspace)) = workspace else {
        return;
    };
    if within(workspace, data) {
        problem("workspace", workspace, "moltinit's own data", data);
    }
    for (what, inner, is_inside) in [
        ("state is", state, within(state, workspace) && !within(workspace, state)),
        ("store is", store, store.starts_with(workspace) && store != workspace),
        (
            "moltinit's own data is",
            data,
            within(data, workspace) && !within(workspace, data),
        ),
    ] {
        if is_inside {
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
    Cdp {
        addr,
        token,
        upstream,
        idle: settings.duration("cdp_idle", Duration::from_secs(120)),
    }
}

#[cfg(test)]
mod tests;
