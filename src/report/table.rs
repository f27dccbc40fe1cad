//! The status document as a person reads it: `moltinit status`.

use std::fmt::Write;

use jiff::Timestamp;

use super::status::{BrowserState, CallbackState, Exit, Service, Status, StoreState};
use crate::{
    event::{Phase, ServiceState},
    pid1::signals,
};

/// Text of several lines; with terminal colours if `colour`.
pub fn render(status: &Status, colour: bool) -> String {
    let paint = Paint { on: colour };
    let mut out = String::new();
    headline(&mut out, status, paint);
    services(&mut out, status, paint);
    let facts = [
        ("restored", restored(status)),
        ("snapshot", snapshot(status)),
        ("store", store(status)),
        ("browser", browser(status)),
        ("callbacks", callbacks(status)),
        ("memory", memory(status)),
        ("cost", cost(status)),
    ];
    for (name, (fine, text)) in facts {
        let text = if fine { text } else { paint.bad(&text) };
        let _ = writeln!(out, "{name:<10} {text}");
    }
    if let Some(rolled) = &status.config_rolled_back {
        let text = format!("rolled back: {}; the bad file is {}", rolled.reason, rolled.kept);
        let _ = writeln!(out, "{:<10} {}", "config", paint.bad(&text));
    }
    out
}

#[derive(Clone, Copy)]
struct Paint {
    on: bool,
}

impl Paint {
    fn good(self, text: &str) -> String {
        self.with(32, text)
    }

    fn bad(self, text: &str) -> String {
        self.with(31, text)
    }

    fn with(self, colour: u8, text: &str) -> String {
        if self.on {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn headline(out: &mut String, status: &Status, paint: Paint) {
    let state = match (&status.shutdown, status.ready) {
        (Some(shutdown), _) => paint.bad(&format!("shutting down: {}", shutdown.why)),
        (None, true) => paint.good("ready"),
        (None, false) => paint.bad(&format!("not ready: {}", status.failing.join(", "))),
    };
    let phase = match status.boot.phase {
        Phase::Done => String::new(),
        phase => format!(", booting ({})", word(&phase)),
    };
    let gateway = status
        .versions
        .gateway
        .as_ref()
        .map_or(String::new(), |version| format!(", gateway {version}"));
    let _ = writeln!(
        out,
        "{}: {state}{phase}\nmoltinit {}{gateway}, up {}, boot {}\n",
        status.instance,
        status.versions.moltinit,
        age(status.boot.uptime_seconds),
        status.boot.id,
    );
}

fn services(out: &mut String, status: &Status, paint: Paint) {
    if status.services.is_empty() {
        return;
    }
    let header = ["SERVICE", "STATE", "SINCE", "PID", "RESTARTS", "MEMORY", "LAST EXIT"].map(str::to_owned);
    let rows: Vec<[String; 7]> = status
        .services
        .iter()
        .map(|(name, service)| row(name, service))
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = std::iter::once(&header)
                .chain(&rows)
                .map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        })
        .collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let _ = writeln!(out, "{}", line(&header));
    for (row, service) in rows.iter().zip(status.services.values()) {
        let text = line(row);
        let text = match service.state {
            ServiceState::Unhealthy | ServiceState::CrashLoop | ServiceState::Held | ServiceState::BackingOff => {
                paint.bad(&text)
            }
            _ => text,
        };
        let _ = writeln!(out, "{text}");
        if let Some(why) = &service.why {
            let _ = writeln!(out, "  {why}");
        }
    }
    out.push('\n');
}

fn row(name: &str, service: &Service) -> [String; 7] {
    let dash = || "-".to_owned();
    [
        name.to_owned(),
        word(&service.state),
        age(service.since_seconds),
        service.pid.map_or_else(dash, |pid| pid.to_string()),
        service.restarts.to_string(),
        service.memory_bytes.map_or_else(dash, size),
        service.last_exit.as_ref().map_or_else(dash, exit),
    ]
}

fn exit(exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => signals::name(signal).into_owned(),
        (None, None) => "unknown".to_owned(),
    };
    let why = match (exit.oom, exit.intended) {
        (true, _) => ", out of memory",
        (false, true) => ", as asked",
        (false, false) => "",
    };
    format!("{how}{why}, {}", clock(exit.at))
}

fn restored(status: &Status) -> (bool, String) {
    let text = match &status.restore {
        None => "not yet".to_owned(),
        Some(restore) => match restore.commit {
            None => "nothing: the store was empty, this is a first boot".to_owned(),
            Some(commit) => format!(
                "{commit}: {} files, {} in {}",
                restore.files,
                size(restore.bytes),
                millis(restore.took_ms)
            ),
        },
    };
    match &status.restore_degraded {
        None => (true, text),
        Some(degraded) => (
            false,
            format!("{text}\n           not {}: {}", degraded.wanted, degraded.why),
        ),
    }
}

fn snapshot(status: &Status) -> (bool, String) {
    let snapshots = &status.snapshots;
    let last = match &snapshots.last {
        None => "none in this boot".to_owned(),
        Some(last) => format!(
            "{}, {} ago: {} files, {}, in {}",
            last.commit,
            age(last.age_seconds),
            last.files,
            size(last.state_bytes),
            millis(last.took_ms)
        ),
    };
    let behind = match (snapshots.behind_seconds, snapshots.pending_paths) {
        (0, 0) => "every change is durable".to_owned(),
        (seconds, paths) => format!("{} behind, {paths} paths pending", age(seconds)),
    };
    let text = format!("{last}; {behind}");
    match (&snapshots.failing, &snapshots.suspicious) {
        (Some(failure), _) => (
            false,
            format!(
                "{text}\n           failing since {}: {}",
                clock(failure.at),
                failure.why
            ),
        ),
        (None, Some(suspicious)) => (
            false,
            format!(
                "{text}\n           {} looks like a loss: {}",
                suspicious.commit, suspicious.why
            ),
        ),
        (None, None) => (true, text),
    }
}

fn store(status: &Status) -> (bool, String) {
    let store = &status.store;
    let path = store.path.as_deref().unwrap_or("no path yet");
    let held = match (store.objects, store.bytes) {
        (Some(objects), Some(bytes)) => format!(", {objects} objects, {}", size(bytes)),
        _ => String::new(),
    };
    let durable = match store.durable {
        Some(false) => ", NOT durable: it vanishes with this container",
        _ => "",
    };
    let why = store.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let fine = store.durable != Some(false)
        && matches!(store.state, StoreState::Available | StoreState::Unknown)
        && !(store.required && store.state != StoreState::Available);
    (fine, format!("{} at {path}{held}{durable}{why}", word(&store.state)))
}

fn browser(status: &Status) -> (bool, String) {
    let browser = &status.browser;
    let to = browser
        .upstream
        .as_ref()
        .map_or(String::new(), |to| format!(" to {to}"));
    let why = browser.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    (
        browser.state != BrowserState::Failed,
        format!("{}{to}, {} connections{why}", word(&browser.state), browser.connects),
    )
}

fn callbacks(status: &Status) -> (bool, String) {
    let callbacks = &status.callbacks;
    let to = callbacks.url.as_ref().map_or(String::new(), |url| format!(" to {url}"));
    let why = callbacks.failing.as_ref().map_or(String::new(), |failing| {
        format!(": {} ({} attempts)", failing.why, failing.attempts)
    });
    let lost = match status.events.dropped {
        0 => String::new(),
        dropped => format!(", {dropped} given up"),
    };
    let broken = status
        .events
        .failing
        .as_ref()
        .map_or(String::new(), |why| format!("; events cannot be stored: {why}"));
    (
        matches!(callbacks.state, CallbackState::Off | CallbackState::On) && broken.is_empty(),
        format!(
            "{}{to}, {} delivered, {} waiting{lost}{why}{broken}",
            word(&callbacks.state),
            callbacks.delivered,
            status.events.undelivered,
        ),
    )
}

fn memory(status: &Status) -> (bool, String) {
    let memory = &status.memory;
    let pressure = memory.pressure.as_ref().map_or(String::new(), |pressure| {
        let whom = pressure.service.as_deref().unwrap_or("the container");
        format!("; pressure in {whom} at {}", clock(pressure.at))
    });
    (
        true,
        format!(
            "{} of {}; moltinit itself {}{pressure}",
            size(memory.used_bytes),
            size(memory.limit_bytes),
            size(memory.moltinit_bytes)
        ),
    )
}

fn cost(status: &Status) -> (bool, String) {
    let costs = &status.costs;
    (
        true,
        format!(
            "about ${:.2} in {}: {} commits, {} store operations, {} written",
            costs.estimated_usd,
            costs.month,
            costs.commits,
            costs.write_operations,
            size(costs.written_bytes)
        ),
    )
}

/// The name that the status document has for it, in words.
fn word(name: &impl serde::Serialize) -> String {
    match serde_json::to_value(name) {
        Ok(serde_json::Value::String(name)) => name.replace('_', " "),
        _ => String::new(),
    }
}

/// `45s`, `12m`, `3h12m`, `5d2h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

fn millis(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms}ms")
    } else {
        format!("{:.1}s", ms as f64 / 1000.0)
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// To the second, in UTC.
fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;
    use crate::{event::Event, report::fold::fold};

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(
            [age(5), age(75), age(3700), age(90_000)],
            ["5s", "1m15s", "1h01m", "1d01h"]
        );
        assert_eq!([size(12), size(1536), size(5 << 30)], ["12 B", "1.5 KiB", "5.0 GiB"]);
    }

    #[test]
    fn a_crash_loop_is_told_with_its_reason() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let events = [
            Event::ServiceStarted {
                service: "gateway".into(),
                pid: 42,
            },
            Event::ServiceExited {
                service: "gateway".into(),
                pid: 42,
                code: None,
                signal: Some(9),
                oom: true,
                intended: false,
            },
            Event::ServiceChanged {
                service: "gateway".into(),
                state: ServiceState::CrashLoop,
                pid: None,
                restarts: 6,
                why: Some("6 restarts within 2m".into()),
            },
        ];
        let status = events
            .iter()
            .fold(Status::new("default", Ulid::nil(), true, now), |status, event| {
                fold(status, event, now)
            });
        let text = render(&status.at(now), false);
        assert!(text.contains("not ready: restore, gateway, store"), "{text}");
        assert!(
            text.contains(
                "gateway  crash loop  0s     -    6         -       SIGKILL, out of memory, 2026-11-23 12:00:00Z"
            ),
            "{text}"
        );
        assert!(text.contains("6 restarts within 2m"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(render(&status, true).contains("\x1b[31m"));
    }
}
