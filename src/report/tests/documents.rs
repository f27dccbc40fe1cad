//! The documents in `docs/` name what there is, and nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::report::{fold::fold, metrics};

const STATUS: &str = include_str!("../../../docs/status.md");
const GRAFANA: &str = include_str!("../../../docs/grafana.json");
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// A status in which everything has happened.
fn eventful() -> Status {
    let now = jiff::Timestamp::UNIX_EPOCH;
    let why = || "why".to_owned();
    let gateway = || "gateway".to_owned();
    let events = [
        Event::BootPhase { phase: Phase::Done },
        Event::RestoreProgress { done: 1, total: 2 },
        Event::StateRestored {
            commit: Some(commit()),
            files: 1,
            bytes: 2,
            took_ms: 3,
            aside: vec![why()],
        },
        Event::StateRestoreDegraded {
            wanted: commit(),
            used: None,
            why: why(),
        },
        Event::ServiceStarted {
            service: gateway(),
            pid: 1,
        },
        Event::ServiceReady {
            service: gateway(),
            after_ms: 1,
        },
        Event::ServiceMeasured {
            service: gateway(),
            memory: 1,
        },
        Event::ServiceExited {
            service: gateway(),
            pid: 1,
            code: Some(0),
            signal: None,
            oom: false,
            intended: false,
        },
        Event::SnapshotCommitted {
            commit: commit(),
            parent: None,
            files: 1,
            state_bytes: 1,
            stored_bytes: 1,
            operations: 1,
            took_ms: 1,
            warnings: vec![why()],
        },
        Event::SnapshotFailed {
            why: why(),
            retry_in_ms: 1,
        },
        Event::SnapshotSuspicious {
            commit: commit(),
            why: why(),
        },
        Event::StoreMeasured { objects: 1, bytes: 1 },
        Event::MemoryPressure {
            service: None,
            used: 1,
            limit: 2,
        },
        Event::GatewayConfigRolledBack {
            reason: why(),
            kept: why(),
        },
        Event::ShutdownStarted { why: why() },
    ];
    let status = Status::new("test", Ulid::nil(), true, now);
    events
        .iter()
        .fold(status, |status, event| fold(status, event, now))
        .at(now)
}

#[test]
fn every_field_of_the_status_is_explained() {
    let mut status = serde_json::to_value(eventful()).unwrap();
    // Explained as one: they tell of a failure what `at` and `why` always do.
    for detail in [
        &["snapshots", "failing"],
        &["snapshots", "suspicious"],
        &["memory", "pressure"],
    ] {
        status[detail[0]][detail[1]] = Value::Null;
    }
    let missing: Vec<String> = names(&status)
        .into_iter()
        .filter(|name| !STATUS.contains(&format!("`{name}`")) && !STATUS.contains(&format!("`{name}.NAME`")))
        .filter(|name| name != "gateway")
        .collect();
    assert!(missing.is_empty(), "docs/status.md does not explain {missing:?}");
}

fn names(value: &Value) -> BTreeSet<String> {
    let Some(object) = value.as_object() else {
        return BTreeSet::new();
    };
    let below = object.values().flat_map(names);
    object.keys().cloned().chain(below).collect()
}

/// Against the contract's list and the code that names them.
#[test]
fn every_type_of_event_is_explained() {
    let source = include_str!("../../event.rs");
    let types = source.lines().filter_map(|line| {
        let name = line.split_once("=> \"")?.1.split('"').next()?;
        (name == "heartbeat" || name.contains('.')).then_some(name)
    });
    let types: BTreeSet<&str> = types.chain(["events.dropped"]).collect();
    let section = STATUS.split("## Events").nth(1).unwrap().split("\n## ").next().unwrap();
    let explained: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(types, explained);
    assert_eq!(types.len(), 22);
}

#[test]
fn the_dashboard_and_the_alerts_use_metrics_that_exist() {
    let text = metrics::render(eventful());
    let word = |text: &'static str| {
        let rest = text.split("moltinit_").skip(1);
        rest.map(|rest| {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            &rest[..end.unwrap_or(rest.len())]
        })
    };
    let alerts = STATUS.split("## Metrics").nth(1).unwrap();
    let used: BTreeSet<&str> = word(GRAFANA).chain(word(alerts)).collect();
    assert!(used.len() > 20, "{used:?}");
    for name in used {
        let there = text.lines().any(|line| {
            let rest = line.strip_prefix("moltinit_").and_then(|line| line.strip_prefix(name));
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        assert!(there, "moltinit_{name} is not in\n{text}");
    }
    let dashboard: Value = serde_json::from_str(GRAFANA).unwrap();
    assert_eq!(dashboard["title"], "moltinit");
}

/// Whatever the status holds is in its schema, which allows nothing else.
#[test]
fn the_schema_of_the_status_is_closed_and_whole() {
    let api: Value = serde_json::from_str(OPENAPI).unwrap();
    let schema = &api["components"]["schemas"]["Status"];
    let status = serde_json::to_value(eventful()).unwrap();
    let described: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let present: BTreeSet<&String> = status.as_object().unwrap().keys().collect();
    assert_eq!(described, present);
    assert_eq!(schema["additionalProperties"], false);
}
