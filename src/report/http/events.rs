//! The event log for Workers that would rather ask than be called: long poll.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{
    Shared,
    problem::Problem,
    routes::{Wait, bad_request},
};
use crate::report::{outbox::Span, record::Record};

/// At most so many events in one answer.
const PAGE: u32 = 500;

#[derive(Debug, Deserialize)]
pub struct Ask {
    /// The last one the caller has; 0 if it has none.
    #[serde(default)]
    after: u64,
    /// The boot that `after` is a number of; the present one if it is left out.
    boot: Option<String>,
    #[serde(flatten)]
    wait: Wait,
}

/// A part of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Events {
    pub boot: Ulid,
    /// In order; empty if there was nothing new in time.
    pub events: Vec<Record>,
    /// What to ask for `after` this.
    pub next: u64,
    /// What the log holds of which boot, oldest first.
    pub boots: Vec<Span>,
}

pub async fn events(State(shared): State<Arc<Shared>>, Query(ask): Query<Ask>) -> Result<Json<Events>, Problem> {
    let boot = match ask.boot.as_deref() {
        None => shared.boot,
        Some(text) => text
            .parse()
            .map_err(|_| bad_request(&format!("boot: `{text}` is not the id of a boot")))?,
    };
    let wait = ask.wait.time()?;
    // Only the present boot goes on.
    if boot == shared.boot && !wait.is_zero() {
        let mut progress = shared.outbox.progress();
        let newer = progress.wait_for(|events| events.last_seq > ask.after);
        // Nothing new in time is an answer too.
        let _ = tokio::time::timeout(wait, newer).await;
    }
    let page = shared.outbox.read(boot, ask.after, PAGE).await?;
    Ok(Json(Events {
        boot,
        next: page.events.last().map_or(ask.after, |last| last.seq),
        events: page.events,
        boots: page.spans,
    }))
}
