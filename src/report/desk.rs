//! Where every event comes in: masked, folded into the status, and handed to the outbox to be numbered and kept.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    board::Board,
    digest::Digest,
    fold::fold,
    outbox::{New, Outbox},
    settings::Settings,
    status::Status,
};
use crate::event::{Event, Phase};

/// A receiver that has heard nothing for much longer knows that something is wrong.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The single reader of the events.
pub struct Desk {
    pub board: Arc<Board>,
    pub outbox: Outbox,
    pub settings: watch::Receiver<Settings>,
    /// Where the outbox is carried over from and to, once it has been restored.
    pub data_dir: PathBuf,
    pub digest: Digest,
    pub adopted: bool,
}

impl Desk {
    /// Reads until every sender is gone. Whoever sends on `drain` is answered when everything said before is stored.
    pub async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut drain: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.digest.due_in(Instant::now());
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => self.take_safely(event),
                    None => break,
                },
                Some(done) = drain.recv() => {
                    while let Ok(event) = events.try_recv() {
                        self.take_safely(event);
                    }
                    self.tell_commits();
                    self.outbox.flush().await;
                    let _ = done.send(());
                }
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => self.tell_commits(),
                _ = heartbeat.tick() => self.take_safely(Event::Heartbeat),
            }
        }
        self.tell_commits();
    }

    /// An event that cannot be taken in must not be the last that is.
    fn take_safely(&mut self, event: Event) {
        let name = event.name();
        if catch_unwind(AssertUnwindSafe(|| self.take(event))).is_err() {
            tracing::error!(event = name, "an event could not be taken in; this is a bug");
        }
    }

    fn take(&mut self, mut event: Event) {
        let now = Timestamp::now();
        {
            let settings = self.settings.borrow();
            for text in event.texts() {
                if let std::borrow::Cow::Owned(masked) = settings.mask.apply(text) {
                    *text = masked;
                }
            }
        }
        self.board.update(|status| fold(status, &event, now));
        match &event {
            Event::SnapshotCommitted { .. } => self.digest.add(&event),
            Event::BootPhase { phase } if *phase > Phase::Restore => self.adopt(),
            // The last word of a boot is that it is over.
            Event::ShutdownFinished { .. } => self.tell_commits(),
            _ => {}
        }
        // Commits are told by the digest.
        if let Some(kind) = event
            .name()
            .filter(|_| !matches!(event, Event::SnapshotCommitted { .. }))
        {
            let data = match event {
                Event::Heartbeat => pulse(&self.board.now().at(now)),
                event => serde_json::to_value(event).expect("plain data"),
            };
            self.outbox.append(New {
                kind,
                time: now,
                data,
                costs: None,
            });
        }
    }

    fn tell_commits(&mut self) {
        if let Some(totals) = self.digest.take(Instant::now()) {
            self.outbox.append(New {
                kind: "snapshot.committed",
                time: Timestamp::now(),
                data: serde_json::to_value(totals).expect("plain data"),
                costs: Some(self.board.now().costs.clone()),
            });
        }
    }

    /// The state is in place, and with it what an earlier container left undelivered.
    fn adopt(&mut self) {
        if std::mem::replace(&mut self.adopted, true) {
            return;
        }
        let (outbox, board, dir) = (self.outbox.clone(), self.board.clone(), self.data_dir.clone());
        tokio::spawn(async move {
            match outbox.adopt(&dir).await {
                Ok(Some(earlier)) => board.update(|mut status| {
                    status.costs = status.costs.carry(&earlier, Timestamp::now());
                    status
                }),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "what an earlier container left undelivered stays so"),
            }
        });
    }
}

/// What a heartbeat says.
fn pulse(status: &Status) -> serde_json::Value {
    json!({
        "ready": status.ready,
        "failing": status.failing,
        "behind_seconds": status.snapshots.behind_seconds,
        "uptime_seconds": status.boot.uptime_seconds,
    })
}
