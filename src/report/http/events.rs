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
    /// The boot that `after` is a number of; the present one if it is left out. After the last of an earlier boot come
    /// the first of the next, so with it nothing is missed across a restart.
    boot: Option<String>,
    #[serde(flatten)]
    wait: Wait,
}

/// A part of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Events {
    /// Of which boot they are: the one asked for, or one that followed it.
    pub boot: Ulid,
    /// In order; empty if there was nothing new in time.
    pub events: Vec<Record>,
    /// What to ask for `after` this, of that boot.
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
    let mut wait = Some(ask.wait.time()?).filter(|wait| !wait.is_zero());
    let mut from = (boot, ask.after);
    loop {
        let (boot, after) = from;
        let page = shared.outbox.read(boot, after, PAGE).await?;
        if page.events.is_empty() && boot != shared.boot {
            // An earlier boot does not go on; what followed it does.
            let later = page.spans.iter().map(|span| span.boot).filter(|later| *later > boot);
            from = (later.min().unwrap_or(shared.boot).min(shared.boot), 0);
        } else if page.events.is_empty()
            && let Some(wait) = wait.take()
        {
            let mut progress = shared.outbox.progress();
            let newer = progress.wait_for(|events| events.last_seq > after);
            // Nothing new in time is an answer too.
            let _ = tokio::time::timeout(wait, newer).await;
        } else {
            return Ok(Json(Events {
                boot,
                next: page.events.last().map_or(after, |last| last.seq),
                events: page.events,
                boots: page.spans,
            }));
        }
    }
}
