//! A service's last lines, and its next ones as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::{Shared, problem::Problem, routes::bad_request};
use crate::{config::value, report::control::LogLine};

const DEFAULT_LINES: usize = 100;
const MOST_LINES: usize = 10_000;
/// Keeps connections open through whatever closes idle ones.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub struct Ask {
    n: Option<usize>,
    follow: Option<String>,
}

/// The last lines, oldest first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lines {
    pub lines: Vec<LogLine>,
}

pub async fn logs(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(ask): Query<Ask>,
) -> Result<Response, Problem> {
    let count = ask.n.unwrap_or(DEFAULT_LINES);
    if count > MOST_LINES {
        return Err(bad_request(&format!("n: at most {MOST_LINES} lines")));
    }
    let follow = match ask.follow.as_deref() {
        None => false,
        // `?follow` alone is what people type.
        Some("") => true,
        Some(text) => value::boolean(text).map_err(|why| bad_request(&format!("follow: {why}")))?,
    };
    if !follow {
        let lines = shared.control.logs(&name, count).await?;
        return Ok(Json(Lines { lines }).into_response());
    }
    let pieces = shared.control.follow(&name, count).await?;
    let events = pieces.map(|piece| Ok::<_, Infallible>(Event::default().json_data(piece).expect("plain data")));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}
