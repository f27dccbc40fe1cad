//! Events on their way to the disk: in order, and bounded for however long the disk takes none.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde_json::json;

use super::table::{BOUND, DROPPED, New, is_minor};

/// Filled from anywhere without a wait, emptied by the outbox's thread.
#[derive(Default)]
pub struct Queue(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    events: VecDeque<New>,
    /// Given up and not told yet, by type.
    lost: BTreeMap<String, u64>,
    /// Given up since the boot.
    given_up: u64,
}

impl Queue {
    /// True if there was nothing before, so whoever empties it may be asleep.
    pub fn push(&self, event: New) -> bool {
        let mut inner = self.inner();
        let was_empty = inner.events.is_empty() && inner.lost.is_empty();
        if inner.events.len() as u64 >= BOUND {
            // The oldest heartbeat or snapshot, and without one the oldest of all: as in the log.
            let minor = inner.events.iter().position(|event| is_minor(event.kind));
            if let Some(event) = inner.events.remove(minor.unwrap_or(0)) {
                inner.lose(event.kind, 1);
            }
        }
        inner.events.push_back(event);
        was_empty
    }

    /// The oldest, at most `most` of them; before them that some are missing, if that is so.
    pub fn take(&self, most: usize, now: Timestamp) -> Vec<New> {
        let mut inner = self.inner();
        let lost = std::mem::take(&mut inner.lost);
        let told = (!lost.is_empty()).then(|| New {
            kind: DROPPED,
            time: now,
            // They never had a number.
            data: json!({ "count": lost.values().sum::<u64>(), "types": lost, "first": null, "last": null }),
            costs: None,
        });
        let count = most.min(inner.events.len());
        told.into_iter().chain(inner.events.drain(..count)).collect()
    }

    /// Events that are gone from the log, to be told as those that never came into it.
    pub fn lose(&self, lost: BTreeMap<String, u64>) {
        let mut inner = self.inner();
        for (kind, count) in lost {
            inner.lose(&kind, count);
        }
    }

    pub fn is_empty(&self) -> bool {
        let inner = self.inner();
        inner.events.is_empty() && inner.lost.is_empty()
    }

    /// How many were given up since the boot.
    pub fn given_up(&self) -> u64 {
        self.inner().given_up
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lose(&mut self, kind: &str, count: u64) {
        *self.lost.entry(kind.to_owned()).or_default() += count;
        self.given_up += count;
    }
}
