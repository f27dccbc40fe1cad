//! A configuration in the form of its file, with everything that was left to the defaults.

use std::time::Duration;

use toml::{Table, Value};

use crate::pid1::signals;

use super::{
    Config, Workspace, names,
    service::{Check, OnCrashLoop, Probe, Restart, Service},
};

/// In the place of a secret.
const MASKED: &str = "[secret]";

impl Config {
    /// A file that says the same, but for the secrets.
    pub fn written(&self) -> Table {
        let secret = |there: bool| there.then(|| MASKED.to_owned());
        let shown = |path: &std::path::Path| Some(path.display().to_string());
        let store = &self.store;
        let settings = [
            ("store", shown(&store.dir)),
            ("store_wait", Some(duration(store.wait))),
            ("store_required", Some(store.required.to_string())),
            ("mount", store.mount.as_ref().map(|_| "s3fs".to_owned())),
            ("instance", Some(store.instance.clone())),
            ("key", secret(store.key.is_some())),
            ("state_dir", shown(&self.state_dir)),
            (
                "workspace",
                match &self.workspace {
                    Some(Workspace::Named(path)) => shown(path),
                    Some(Workspace::Default(_)) | None => None,
                },
            ),
            ("snapshot_quiet", Some(duration(self.snapshot.quiet))),
            ("snapshot_max_delay", Some(duration(self.snapshot.max_delay))),
            ("snapshot_min_gap", Some(duration(self.snapshot.min_gap))),
            ("http_addr", Some(self.http_addr.to_string())),
            ("admin_token", secret(self.admin_token.is_some())),
            ("cdp_addr", Some(self.cdp.addr.to_string())),
            (
                "cdp_allow_remote",
                (!self.cdp.addr.ip().is_loopback()).then(|| true.to_string()),
            ),
            ("cdp_idle", Some(duration(self.cdp.idle))),
            ("cdp_token", secret(self.cdp.token.is_some())),
            ("cdp_upstream", self.cdp.upstream.clone()),
            ("callback_url", self.callback.url.clone()),
            ("callback_secret", secret(self.callback.secret.is_some())),
            ("log", Some(self.log.filter.to_string())),
            (
                "log_format",
                self.log
                    .json
                    .map(|json| if json { "json" } else { "pretty" }.to_owned()),
            ),
            ("data_dir", shown(&self.data_dir)),
            ("run_dir", shown(&self.run_dir)),
            ("model_fallbacks", self.model_fallbacks.clone()),
        ];
        let settings = settings.into_iter().filter_map(|(key, text)| Some((key, text?.into())));
        let services = self.services.iter().map(|it| Value::Table(service(it))).collect();
        table(settings.chain([("service", Value::Array(services))]))
    }
}

fn table<'a>(of: impl IntoIterator<Item = (&'a str, Value)>) -> Table {
    of.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn service(service: &Service) -> Table {
    let texts = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
    let restart = match service.restart {
        Restart::Always => "always",
        Restart::OnFailure => "on-failure",
        Restart::Never => "never",
    };
    let on_crash_loop = match service.on_crash_loop {
        OnCrashLoop::Hold => "hold",
        OnCrashLoop::Exit => "exit",
    };
    let (backoff, crash_loop) = (service.backoff, service.crash_loop);
    let mut written = table([
        ("name", service.name.clone().into()),
        ("command", texts(&service.command)),
        ("after", texts(&service.after)),
        ("restart", restart.into()),
        ("on_crash_loop", on_crash_loop.into()),
        (
            "backoff",
            Value::Table(table([
                ("first", duration(backoff.first).into()),
                ("base", duration(backoff.base).into()),
                ("max", duration(backoff.max).into()),
                ("reset_after", duration(backoff.reset_after).into()),
            ])),
        ),
        (
            "crash_loop",
            Value::Table(table([
                ("restarts", i64::from(crash_loop.restarts).into()),
                ("within", duration(crash_loop.within).into()),
            ])),
        ),
        (
            "stop",
            Value::Table(table([
                (
                    "signal",
                    signals::name(service.stop.signal).trim_start_matches("SIG").into(),
                ),
                ("timeout", duration(service.stop.timeout).into()),
            ])),
        ),
    ]);
    let env = service.env.iter().map(|(name, value)| {
        let shown = if names::is_secret(name) { MASKED } else { value };
        (name.as_str(), shown.into())
    });
    let optional = [
        ("ready", service.ready.as_ref().map(probe)),
        ("live", service.live.as_ref().map(probe)),
        ("env", (!service.env.is_empty()).then(|| table(env))),
    ];
    written.extend(
        optional
            .into_iter()
            .filter_map(|(key, it)| Some((key.to_owned(), Value::Table(it?)))),
    );
    if let Some(bytes) = service.memory_max {
        written.insert("memory_max".to_owned(), bytes.to_string().into());
    }
    written
}

fn probe(probe: &Probe) -> Table {
    let mut written = match &probe.check {
        Check::Http { url, json } => {
            let json = json.iter().map(|key| ("json", key.clone().into()));
            table([("http", url.clone().into())].into_iter().chain(json))
        }
        Check::Tcp { addr } => table([("tcp", addr.clone().into())]),
        Check::Command { argv } => {
            let words = argv.iter().cloned().map(Value::String).collect();
            table([("command", Value::Array(words))])
        }
        Check::Notify { fd } => table([("notify", i64::from(*fd).into())]),
        // Not in a file's words.
        Check::Keeper => Table::new(),
    };
    written.extend(table([
        ("every", duration(probe.every).into()),
        ("timeout", duration(probe.timeout).into()),
        ("failures", i64::from(probe.failures).into()),
    ]));
    written
}

/// In the largest unit that leaves no rest.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match [(60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Machine, env::Env, load};

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let file = r#"
            store = "/store"
            store_wait = "90s"
            snapshot_quiet = "1500ms"
            workspace = "/work"
            cdp_addr = "0.0.0.0:9222"
            cdp_allow_remote = true
            cdp_token = "canary-token"
            cdp_upstream = "wss://browser.example/?token=canary-in-a-url"
            key = "canary-key"
            log = "moltinit=debug,info"
            log_format = "json"
            model_fallbacks = "openai/gpt-4o"
            [[service]]
            name = "gateway"
            memory_max = "2GiB"
            [[service]]
            name = "other"
            command = ["other", "word"]
            after = ["gateway"]
            restart = "on-failure"
            on_crash_loop = "exit"
            backoff = { first = "1s", base = "0", max = "2h", reset_after = "1m" }
            ready = { notify = 3 }
            live = { tcp = "127.0.0.1:80", every = "3s", failures = 7 }
            stop = { signal = "INT", timeout = "1s" }
            env = { NAME = "value" }
        "#;
        let machine = Machine {
            home: "/root".into(),
            store_is_mounted: false,
            has_sandbox_server: true,
            has_legacy_workspace: false,
        };
        let env: Env = [("MOLTINIT_ADMIN_TOKEN", "canary-admin-token")].into_iter().collect();
        let once = load(Some(file), env, &machine).unwrap();
        let text = once.written().to_string();
        assert!(!once.mask.apply(&text).contains("canary"), "{text}");
        assert!(
            !text.contains("canary-admin") && text.contains("admin_token = \"[secret]\""),
            "{text}"
        );
        let unmasked = text.replace("[secret]", "secret");
        let again = load(Some(&unmasked), Env::default(), &machine).unwrap();
        assert_eq!(again.written().to_string(), text);
        assert_eq!(again.services, once.services);
        assert_eq!((again.store.wait, again.cdp.addr), (once.store.wait, once.cdp.addr));
    }
}
