//! From one status to the next by what happened: pure, so that every event's effect can be tested.

use jiff::{SignedDuration, Timestamp};

use super::status::{
    BrowserState, Commit, Degraded, Exit, Failure, Pressure, Restore, Restoring, RolledBack, Service, Shutdown, Status,
    Store, StoreState, Suspicious,
};
use crate::event::{Event, Phase, ServiceState};

/// The status after `event`, which happened at `now`.
pub fn fold(mut status: Status, event: &Event, now: Timestamp) -> Status {
    match event.clone() {
        Event::BootStarted { pid1, .. } => status.boot.pid1 = pid1,
        Event::BootPhase { phase } => {
            status.boot.phase = phase;
            status.boot.restoring = None;
            if phase == Phase::Done {
                status.boot.done.get_or_insert(now);
            }
        }
        Event::RestoreProgress { done, total } => {
            status.boot.restoring = Some(Restoring {
                done_bytes: done,
                total_bytes: total,
            });
        }
        Event::StateRestored {
            commit,
            files,
            bytes,
            took_ms,
            aside,
        } => {
            status.restore = Some(Restore {
                commit,
                at: now,
                files,
                bytes,
                took_ms,
                aside,
            });
        }
        Event::StateRestoreDegraded { wanted, used, why } => {
            status.restore_degraded = Some(Degraded { wanted, used, why });
        }
        Event::SnapshotPending {
            paths,
            oldest_ms,
            warnings,
        } => {
            status.snapshots.warnings = warnings;
            status.snapshots.pending_paths = paths;
            status.snapshots.pending_since = (paths > 0).then(|| before(now, oldest_ms));
            if paths == 0 {
                // Nothing is left to fail for: there was nothing new after all.
                status.snapshots.failing = None;
            }
        }
        Event::SnapshotCommitted {
            commit,
            parent,
            files,
            state_bytes,
            stored_bytes,
            operations,
            took_ms,
            warnings: _,
        } => {
            // What it lacks, and what has changed meanwhile, is said by the `SnapshotPending` that comes with it.
            status.costs = status.costs.spend(stored_bytes, operations, now);
            let snapshots = &mut status.snapshots;
            snapshots.last = Some(Commit {
                commit,
                parent,
                at: now,
                age_seconds: 0,
                files,
                state_bytes,
                stored_bytes,
                operations,
                took_ms,
            });
            snapshots.commits += 1;
            snapshots.failing = None;
        }
        Event::SnapshotFailed { why, retry_in_ms } => {
            status.snapshots.failures += 1;
            status.snapshots.failing = Some(Failure {
                at: now,
                why,
                retry_in_ms,
            });
        }
        Event::SnapshotSuspicious { commit, why } => {
            status.snapshots.suspicious = Some(Suspicious { at: now, commit, why });
        }
        Event::StorePlaced { required } => status.store.required = required,
        Event::StoreAvailable { path, durable } => {
            status.store.path = Some(path);
            status.store.durable = Some(durable);
            turn(&mut status.store, StoreState::Available, None, now);
        }
        Event::StoreUnavailable { why } => turn(&mut status.store, StoreState::Unavailable, Some(why), now),
        Event::StoreRecovered { .. } => turn(&mut status.store, StoreState::Available, None, now),
        Event::StoreFenced { by, why } => {
            let why = format!("{why} (by {by})");
            turn(&mut status.store, StoreState::Fenced, Some(why), now);
        }
        // Commits here are the ones that a boot follows.
        Event::StoreBranched { .. } => {}
        Event::StoreMeasured { objects, bytes } => {
            // Upkeep counts only what nobody has taken over.
            if status.store.state == StoreState::Fenced {
                status.store.state = StoreState::Available;
                status.store.since = Some(now);
                status.store.why = None;
            }
            status.store.objects = Some(objects);
            status.store.bytes = Some(bytes);
        }
        Event::BrowserOffered { upstream } => {
            let browser = &mut status.browser;
            browser.state = BrowserState::Unused;
            browser.since = Some(now);
            browser.upstream = Some(upstream);
            browser.why = None;
        }
        Event::BrowserConnected { upstream } => {
            let browser = &mut status.browser;
            browser.state = BrowserState::Connected;
            browser.since = Some(now);
            browser.upstream = Some(upstream);
            browser.why = None;
            browser.connects += 1;
        }
        Event::BrowserFailed { upstream, why } => {
            let browser = &mut status.browser;
            browser.state = BrowserState::Failed;
            browser.since = Some(now);
            browser.upstream = Some(upstream);
            browser.why = Some(why);
            browser.failures += 1;
        }
        Event::MemoryPressure { service, used, limit } => {
            status.memory.pressure = Some(Pressure {
                at: now,
                service,
                used_bytes: used,
                limit_bytes: limit,
            });
        }
        Event::GatewayFound { version } => status.versions.gateway = Some(version),
        Event::GatewayConfigRolledBack { reason, kept } => {
            status.config_rolled_back = Some(RolledBack { at: now, reason, kept });
        }
        Event::ShutdownStarted { why } => {
            status.shutdown.get_or_insert(Shutdown {
                at: now,
                why,
                finished: false,
            });
        }
        Event::ShutdownFinished { .. } => {
            if let Some(shutdown) = &mut status.shutdown {
                shutdown.finished = true;
            }
        }
        Event::ServiceChanged {
            service,
            state,
            pid,
            restarts,
            why,
        } => {
            let entry = entry(&mut status, service, now);
            if entry.state != state {
                entry.since = now;
            }
            entry.state = state;
            entry.pid = pid;
            entry.restarts = restarts;
            entry.memory_bytes = entry.memory_bytes.filter(|_| pid.is_some());
            entry.why = why;
        }
        Event::ServiceStarted { service, pid } => {
            let entry = entry(&mut status, service, now);
            entry.pid = Some(pid);
            entry.starts += 1;
            entry.ready_after_ms = None;
        }
        Event::ServiceReady { service, after_ms } => entry(&mut status, service, now).ready_after_ms = Some(after_ms),
        Event::ServiceMeasured { service, memory } => entry(&mut status, service, now).memory_bytes = Some(memory),
        Event::ServiceExited {
            service,
            code,
            signal,
            oom,
            intended,
            ..
        } => {
            entry(&mut status, service, now).last_exit = Some(Exit {
                at: now,
                code,
                signal,
                oom,
                intended,
            });
        }
        // Where the service stands is said by the `ServiceChanged` that comes with these.
        Event::ServiceUnhealthy { .. } | Event::ServiceCrashLoop { .. } | Event::Heartbeat => {}
    }
    status.judged()
}

fn entry(status: &mut Status, service: String, now: Timestamp) -> &mut Service {
    status.services.entry(service).or_insert(Service {
        state: ServiceState::Stopped,
        since: now,
        since_seconds: 0,
        pid: None,
        why: None,
        starts: 0,
        restarts: 0,
        ready_after_ms: None,
        last_exit: None,
        memory_bytes: None,
    })
}

/// A store that was taken over stays so whether or not it answers.
fn turn(store: &mut Store, state: StoreState, why: Option<String>, now: Timestamp) {
    if store.state == StoreState::Fenced {
        return;
    }
    if store.state != state {
        store.since = Some(now);
    }
    store.state = state;
    store.why = why;
}

/// `ms` before `now`; `now` itself where time does not reach that far back.
fn before(now: Timestamp, ms: u64) -> Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| now.checked_sub(SignedDuration::from_millis(ms)).ok())
        .unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;

    #[test]
    fn nothing_fails_when_nothing_is_left_to_be_committed() {
        let now = Timestamp::UNIX_EPOCH;
        let mut status = Status::new("test", Ulid::nil(), true, now);
        let pending = |paths| Event::SnapshotPending {
            paths,
            oldest_ms: 0,
            warnings: Vec::new(),
        };
        let failed = Event::SnapshotFailed {
            why: "why".into(),
            retry_in_ms: 0,
        };
        for (event, is_failing) in [(failed, true), (pending(1), true), (pending(0), false)] {
            status = fold(status, &event, now);
            assert_eq!(status.snapshots.failing.is_some(), is_failing);
        }
    }

    #[test]
    fn a_store_that_was_taken_over_stays_so_until_it_is_ours_again() {
        let now = Timestamp::UNIX_EPOCH;
        let then = |status, event| fold(status, &event, now);
        let available = || Event::StoreAvailable {
            path: "/store".into(),
            durable: true,
        };
        let why = || "why".to_owned();
        let mut status = then(Status::new("test", Ulid::nil(), true, now), available());
        status = then(status, Event::StoreFenced { by: why(), why: why() });
        for event in [
            Event::StoreUnavailable { why: why() },
            Event::StoreRecovered { away_ms: 1 },
            available(),
        ] {
            status = then(status, event);
            assert_eq!(status.store.state, StoreState::Fenced);
            assert!(status.failing.contains(&"store".to_owned()));
        }
        let status = then(status, Event::StoreMeasured { objects: 1, bytes: 1 });
        assert_eq!((status.store.state, status.store.why), (StoreState::Available, None));
    }
}
