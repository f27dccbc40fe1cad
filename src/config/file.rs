//! The TOML file: settings by their lower-case names, and `[[service]]` tables.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use toml::{Table, Value};

use crate::{pid1::signals, supervise::probe};

use super::{
    env::Problem,
    service::{Backoff, Check, CrashLoop, OnCrashLoop, Probe, Restart, Service, Stop},
    value,
};

/// A table being read: what is taken is known, what is left over is a mistake.
struct Reader<'p> {
    /// How its author would find it: `service "gateway".stop`.
    name: String,
    rest: Table,
    known: Vec<&'static str>,
    problems: &'p mut Vec<Problem>,
}

impl<'p> Reader<'p> {
    fn new(name: String, rest: Table, problems: &'p mut Vec<Problem>) -> Self {
        Reader {
            name,
            rest,
            known: Vec::new(),
            problems,
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn problem(&mut self, key: &str, what: impl Into<String>) {
        let name = self.path(key);
        self.problems.push(Problem::new(name, what));
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.rest.remove(key)
    }

    /// Takes a key and parses it; a value of another kind or one that does not parse is a problem.
    fn parse<T>(&mut self, key: &'static str, parse: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        let found = self.take(key)?;
        match parse(&found) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.problem(key, what);
                None
            }
        }
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        self.parse(key, text)
    }

    fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.parse(key, |found| match found {
            Value::Array(items) => items.iter().map(text).collect(),
            _ => Err("must be a list of strings".into()),
        })
    }

    fn count(&mut self, key: &'static str) -> Option<u32> {
        self.parse(key, |found| {
            found
                .as_integer()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n > 0)
                .ok_or("must be a whole number above 0".into())
        })
    }

    fn duration(&mut self, key: &'static str) -> Option<Duration> {
        self.parse(key, |found| text(found).and_then(|text| value::duration(&text)))
    }

    /// Reads a table in a key, if there is one.
    fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'_>) -> T) -> Option<T> {
        match self.take(key)? {
            Value::Table(table) => {
                let mut inner = Reader::new(self.path(key), table, self.problems);
                let read = read(&mut inner);
                inner.finish();
                Some(read)
            }
            _ => {
                self.problem(key, "must be a table");
                None
            }
        }
    }

    fn finish(self) {
        for wrong in self.rest.keys() {
            let nearest = value::did_you_mean(wrong, self.known.iter().copied());
            self.problems.push(Problem::new(
                format!("{}.{wrong}", self.name),
                format!("unknown key{nearest}"),
            ));
        }
    }
}

fn text(found: &Value) -> Result<String, String> {
    found
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("must be a string, not {}", found.type_str()))
}

/// Splits a file's text into its plain settings (as text, for the same parsers the environment uses) and its
/// services, which override single keys of those in `services` or add to them.
pub fn read(
    file: &str,
    settings: &[&str],
    services: &mut Vec<Service>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let table: Table = match file.parse() {
        Ok(table) => table,
        Err(error) => {
            problems.push(Problem::new("file", not_toml(file, &error)));
            return BTreeMap::new();
        }
    };
    let mut plain = BTreeMap::new();
    for (key, found) in table {
        match (key.as_str(), found) {
            ("service", Value::Array(tables)) => read_services(tables, services, problems),
            ("service", _) => problems.push(Problem::new("service", "must be written as [[service]] tables")),
            (known, Value::String(text)) if settings.contains(&known) && text.is_empty() => {
                problems.push(Problem::new(known, "is empty; leave it out to have the default"));
            }
            (known, Value::String(text)) if settings.contains(&known) => {
                plain.insert(key, text);
            }
            (known, Value::Boolean(text)) if settings.contains(&known) => {
                plain.insert(key, text.to_string());
            }
            (known, other) if settings.contains(&known) => {
                problems.push(Problem::new(key, format!("must be a string, not {}", other.type_str())));
            }
            (wrong, _) => {
                let nearest = value::did_you_mean(wrong, settings.iter().copied().chain(["service"]));
                problems.push(Problem::new(wrong, format!("unknown key{nearest}")));
            }
        }
    }
    plain
}

/// Where it stops being TOML and why, without the line itself, which may hold a secret.
fn not_toml(file: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| file.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("not TOML: line {line}, column {column}: {}", error.message())
}

fn read_services(tables: Vec<Value>, services: &mut Vec<Service>, problems: &mut Vec<Problem>) {
    let mut seen = BTreeMap::new();
    for (index, table) in tables.into_iter().enumerate() {
        let Value::Table(table) = table else {
            problems.push(Problem::new(format!("service[{index}]"), "must be a table"));
            continue;
        };
        let Some(name) = table.get("name").and_then(Value::as_str).map(str::to_owned) else {
            problems.push(Problem::new(
                format!("service[{index}].name"),
                "every service needs a name",
            ));
            continue;
        };
        match seen.entry(name.clone()) {
            Entry::Occupied(_) => {
                problems.push(Problem::new(
                    format!("service[{index}].name"),
                    format!("`{name}` is there twice"),
                ));
                continue;
            }
            Entry::Vacant(slot) => slot.insert(()),
        };
        let mut reader = Reader::new(format!("service \"{name}\""), table, problems);
        match services.iter_mut().find(|service| service.name == name) {
            Some(known) => read_service(&mut reader, known),
            None => {
                let mut added = Service::named(&name);
                read_service(&mut reader, &mut added);
                if added.command.is_empty() {
                    reader.problem("command", "every service needs a command, a list of strings");
                }
                services.push(added);
            }
        }
        reader.finish();
    }
}

fn read_service(from: &mut Reader<'_>, service: &mut Service) {
    from.take("name");
    if let Some(command) = from.texts("command") {
        service.command = command;
    }
    if let Some(after) = from.texts("after") {
        service.after = after;
    }
    if let Some(restart) = from.parse(
        "restart",
        one_of(&[
            ("always", Restart::Always),
            ("on-failure", Restart::OnFailure),
            ("never", Restart::Never),
        ]),
    ) {
        service.restart = restart;
    }
    if let Some(on_crash_loop) = from.parse(
        "on_crash_loop",
        one_of(&[("hold", OnCrashLoop::Hold), ("exit", OnCrashLoop::Exit)]),
    ) {
        service.on_crash_loop = on_crash_loop;
    }
    from.table("backoff", |from| read_backoff(from, &mut service.backoff));
    from.table("crash_loop", |from| read_crash_loop(from, &mut service.crash_loop));
    if let Some(probe) = from.table("ready", |from| read_probe(from, Probe::ready)) {
        service.ready = probe;
    }
    if let Some(probe) = from.table("live", |from| read_probe(from, Probe::live)) {
        service.live = probe;
        if let Some(Check::Notify { .. }) = service.live.as_ref().map(|probe| &probe.check) {
            from.problem("live", "`notify` tells readiness only; use http, tcp or command");
        }
    }
    from.table("stop", |from| read_stop(from, &mut service.stop));
    if let Some(env) = from.parse("env", |found| match found {
        Value::Table(table) => table
            .iter()
            .map(|(name, value)| Ok((name.clone(), text(value)?)))
            .collect(),
        _ => Err("must be a table of strings".into()),
    }) {
        service.env = env;
    }
    if let Some(bytes) = from.parse("memory_max", |found| text(found).and_then(|text| value::size(&text))) {
        service.memory_max = Some(bytes);
    }
}

fn one_of<T: Copy>(choices: &'static [(&'static str, T)]) -> impl FnOnce(&Value) -> Result<T, String> {
    move |found| {
        let text = text(found)?;
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                format!("`{text}` is not one of {}", names.join(", "))
            })
    }
}

fn read_backoff(from: &mut Reader<'_>, backoff: &mut Backoff) {
    for (key, field) in [
        ("first", &mut backoff.first),
        ("base", &mut backoff.base),
        ("max", &mut backoff.max),
        ("reset_after", &mut backoff.reset_after),
    ] {
        if let Some(duration) = from.duration(key) {
            *field = duration;
        }
    }
}

fn read_crash_loop(from: &mut Reader<'_>, crash_loop: &mut CrashLoop) {
    if let Some(restarts) = from.count("restarts") {
        crash_loop.restarts = restarts;
    }
    if let Some(within) = from.duration("within") {
        crash_loop.within = within;
    }
}

fn read_stop(from: &mut Reader<'_>, stop: &mut Stop) {
    if let Some(signal) = from.parse("signal", |found| signals::parse(&text(found)?)) {
        stop.signal = signal;
    }
    if let Some(timeout) = from.duration("timeout") {
        stop.timeout = timeout;
    }
}

fn host_and_port(addr: String) -> Result<String, String> {
    let port = addr.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(addr),
        _ => Err(format!("`{addr}` is not an address; write it like 127.0.0.1:8080")),
    }
}

fn read_probe(from: &mut Reader<'_>, of_kind: fn(Check) -> Probe) -> Option<Probe> {
    let json = from.text("json");
    let mut checks: Vec<Check> = [
        from.parse("http", |found| {
            let url = text(found)?;
            probe::check_url(&url).map(|_| url)
        })
        .map(|url| Check::Http {
            url,
            json: json.clone(),
        }),
        from.parse("tcp", |found| host_and_port(text(found)?))
            .map(|addr| Check::Tcp { addr }),
        from.texts("command").map(|argv| Check::Command { argv }),
        from.parse("notify", |found| {
            found
                .as_integer()
                .and_then(|fd| i32::try_from(fd).ok())
                .filter(|fd| *fd >= 3)
                .map(|fd| Check::Notify { fd })
                .ok_or("must be the number of a file descriptor, 3 or above".into())
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let every = from.duration("every");
    let timeout = from.duration("timeout");
    let failures = from.count("failures");

    let check = checks.pop();
    if check.is_none() || !checks.is_empty() {
        from.problem("http", "a probe needs exactly one of http, tcp, command, notify");
    }
    if json.is_some() && !matches!(check, Some(Check::Http { .. })) {
        from.problem("json", "goes with `http` only");
    }
    let mut probe = of_kind(check?);
    probe.every = every.unwrap_or(probe.every);
    probe.timeout = timeout.unwrap_or(probe.timeout);
    probe.failures = failures.unwrap_or(probe.failures);
    Some(probe)
}
