//! The status document as OpenMetrics: `/metrics`.
//!
//! Nothing is counted here. Every figure is the status document's, so the two cannot disagree.

use std::fmt;

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use super::status::{BrowserState, CallbackState, Status, StoreState};
use crate::event::ServiceState;

/// Of the answer.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a document in which every age is filled in.
pub fn render(status: Status) -> String {
    let mut registry = Registry::with_prefix("moltinit");
    registry.register_collector(Box::new(Figures(status)));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a string takes all that is written");
    out
}

#[derive(Debug)]
struct Figures(Status);

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let status = &self.0;
        let mut out = Out(encoder);
        out.build(status)?;
        out.boot(status)?;
        out.services(status)?;
        out.snapshots(status)?;
        out.store(status)?;
        out.outside(status)?;
        out.memory(status)
    }
}

type Label<'a> = (&'static str, &'a str);

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn build(&mut self, status: &Status) -> fmt::Result {
        let versions = &status.versions;
        let gateway = versions.gateway.as_deref().unwrap_or("unknown");
        let info = Info::new([
            ("version", versions.moltinit.as_str()),
            ("gateway", gateway),
            ("instance", status.instance.as_str()),
        ]);
        let encoder = self
            .0
            .encode_descriptor("build", "Versions.", None, info.metric_type())?;
        info.encode(encoder)
    }

    fn boot(&mut self, status: &Status) -> fmt::Result {
        self.gauge("ready", "1 if traffic may come.", None, flag(status.ready))?;
        self.gauge(
            "boot_start_timestamp",
            "When this boot began.",
            Some(&Unit::Seconds),
            seconds(status.boot.started),
        )?;
        let took = status
            .boot
            .done
            .map(|done| seconds(done) - seconds(status.boot.started));
        self.maybe("boot_duration", "How long this boot took.", Some(&Unit::Seconds), took)?;
        let restore = status.restore.as_ref();
        self.maybe(
            "restore_duration",
            "How long the restore took.",
            Some(&Unit::Seconds),
            restore.map(|restore| restore.took_ms as f64 / 1000.0),
        )?;
        self.maybe(
            "restore_size",
            "What the restore put in place.",
            Some(&Unit::Bytes),
            restore.map(|restore| restore.bytes as f64),
        )?;
        self.gauge(
            "restore_degraded",
            "1 if something older than the newest commit had to do.",
            None,
            flag(status.restore_degraded.is_some()),
        )
    }

    fn services(&mut self, status: &Status) -> fmt::Result {
        let services = &status.services;
        let states: Vec<(String, &str, f64)> = services
            .iter()
            .flat_map(|(name, service)| STATES.map(|(state, word)| (name.clone(), word, flag(service.state == state))))
            .collect();
        self.gauges(
            "service_state",
            "1 for the state that a service is in.",
            None,
            states
                .iter()
                .map(|(name, state, value)| ([("service", name.as_str()), ("state", *state)], *value)),
        )?;
        self.counters(
            "service_starts",
            "Starts of a service in this boot.",
            services
                .iter()
                .map(|(name, service)| ([("service", name.as_str())], service.starts)),
        )?;
        self.gauges(
            "service_memory",
            "Resident memory of a service's whole process tree.",
            Some(&Unit::Bytes),
            services
                .iter()
                .filter_map(|(name, service)| Some(([("service", name.as_str())], service.memory_bytes? as f64))),
        )
    }

    fn snapshots(&mut self, status: &Status) -> fmt::Result {
        let snapshots = &status.snapshots;
        self.counter("snapshot_commits", "Commits in this boot.", snapshots.commits)?;
        self.counter("snapshot_failures", "Failed commits in this boot.", snapshots.failures)?;
        self.gauge(
            "snapshot_behind",
            "Age of the oldest change that is not durable yet.",
            Some(&Unit::Seconds),
            snapshots.behind_seconds as f64,
        )?;
        self.gauge(
            "snapshot_pending_paths",
            "Paths that changed since the last commit.",
            None,
            snapshots.pending_paths as f64,
        )?;
        let last = snapshots.last.as_ref();
        self.maybe(
            "snapshot_last_timestamp",
            "When the last commit was made.",
            Some(&Unit::Seconds),
            last.map(|last| seconds(last.at)),
        )?;
        self.maybe(
            "snapshot_last_duration",
            "How long the last commit took.",
            Some(&Unit::Seconds),
            last.map(|last| last.took_ms as f64 / 1000.0),
        )?;
        self.maybe(
            "snapshot_files",
            "Files in the last commit.",
            None,
            last.map(|last| last.files as f64),
        )?;
        self.maybe(
            "snapshot_state_size",
            "Size of the state in the last commit.",
            Some(&Unit::Bytes),
            last.map(|last| last.state_bytes as f64),
        )
    }

    fn store(&mut self, status: &Status) -> fmt::Result {
        let store = &status.store;
        self.gauge(
            "store_available",
            "1 if the store can be written.",
            None,
            flag(store.state == StoreState::Available),
        )?;
        self.maybe(
            "store_objects",
            "Objects of this instance in the store, when last counted.",
            None,
            store.objects.map(|objects| objects as f64),
        )?;
        self.maybe(
            "store_size",
            "Size of this instance in the store, when last counted.",
            Some(&Unit::Bytes),
            store.bytes.map(|bytes| bytes as f64),
        )?;
        let costs = &status.costs;
        self.gauge(
            "month_write_operations",
            "Write operations on the store in the present calendar month.",
            None,
            costs.write_operations as f64,
        )?;
        self.gauge(
            "month_written",
            "Bytes written to the store in the present calendar month.",
            Some(&Unit::Bytes),
            costs.written_bytes as f64,
        )?;
        self.gauge(
            "month_estimated_cost",
            "What the store costs in the present calendar month at R2's list prices.",
            Some(&Unit::Other("usd".into())),
            costs.estimated_usd,
        )
    }

    /// The browser and the callbacks.
    fn outside(&mut self, status: &Status) -> fmt::Result {
        let browser = &status.browser;
        self.gauge(
            "browser_failing",
            "1 if the last try to reach the browser failed.",
            None,
            flag(browser.state == BrowserState::Failed),
        )?;
        self.counter(
            "browser_connects",
            "Browser connections in this boot.",
            browser.connects,
        )?;
        self.counter(
            "browser_failures",
            "Failed browser connections in this boot.",
            browser.failures,
        )?;
        let callbacks = &status.callbacks;
        self.gauge(
            "callbacks_failing",
            "1 if the last callback failed or was answered 410.",
            None,
            flag(matches!(callbacks.state, CallbackState::Retrying | CallbackState::Gone)),
        )?;
        self.counter(
            "callbacks_delivered",
            "Events delivered in this boot.",
            callbacks.delivered,
        )?;
        self.counter(
            "callback_failures",
            "Callbacks that failed in this boot.",
            callbacks.failures,
        )?;
        let events = &status.events;
        self.counter("events", "Events of this boot.", events.last_seq)?;
        self.counter(
            "events_dropped",
            "Undelivered events given up in this boot.",
            events.dropped,
        )?;
        self.gauge(
            "events_undelivered",
            "Events that wait for delivery.",
            None,
            events.undelivered as f64,
        )
    }

    fn memory(&mut self, status: &Status) -> fmt::Result {
        let memory = &status.memory;
        let bytes = Some(&Unit::Bytes);
        self.gauge(
            "resident_memory",
            "Resident memory of moltinit itself.",
            bytes,
            memory.moltinit_bytes as f64,
        )?;
        self.gauge(
            "container_memory",
            "Memory in use in the whole container.",
            bytes,
            memory.used_bytes as f64,
        )?;
        self.gauge(
            "container_memory_limit",
            "Memory that the container has.",
            bytes,
            memory.limit_bytes as f64,
        )
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        self.maybe(name, help, unit, Some(value))
    }

    /// A gauge that has no value yet is not there.
    fn maybe(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: Option<f64>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        let gauge = ConstGauge::new(value);
        let encoder = self.0.encode_descriptor(name, help, unit, gauge.metric_type())?;
        gauge.encode(encoder)
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl Iterator<Item = ([Label<'l>; N], f64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0.0).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        let encoder = self.0.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(encoder)
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Every state and its name in the status document.
const STATES: [(ServiceState, &str); 10] = [
    (ServiceState::Stopped, "stopped"),
    (ServiceState::Waiting, "waiting"),
    (ServiceState::Starting, "starting"),
    (ServiceState::Running, "running"),
    (ServiceState::Ready, "ready"),
    (ServiceState::Unhealthy, "unhealthy"),
    (ServiceState::Stopping, "stopping"),
    (ServiceState::BackingOff, "backing_off"),
    (ServiceState::CrashLoop, "crash_loop"),
    (ServiceState::Held, "held"),
];

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;
    use crate::{event::Event, report::fold::fold};

    #[test]
    fn the_states_are_named_as_in_the_status_document() {
        for (state, name) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), name);
        }
    }

    #[test]
    fn figures_come_from_the_status_document() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let status = Status::new("a\"b", Ulid::nil(), true, now);
        let status = fold(
            status,
            &Event::ServiceChanged {
                service: "gateway".into(),
                state: ServiceState::Ready,
                pid: None,
                restarts: 0,
                why: None,
            },
            now,
        );
        let text = render(status.at(now));
        for line in [
            "# UNIT moltinit_boot_start_timestamp_seconds seconds",
            "moltinit_boot_start_timestamp_seconds 1795435200.0",
            "moltinit_service_state{service=\"gateway\",state=\"ready\"} 1.0",
            "moltinit_service_state{service=\"gateway\",state=\"held\"} 0.0",
            "moltinit_snapshot_commits_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"instance="a\"b""#), "{text}");
    }
}
