//! The three probes. They read memory and nothing else.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Shared;
use crate::event::Phase;

/// Does the supervisor's loop turn, and is what the other probes say kept up to date?
pub async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    if shared.control.alive() && shared.board.is_kept() {
        Json(json!({ "ok": true, "status": "live" })).into_response()
    } else {
        let body = json!({ "ok": false, "status": "stuck" });
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }
}

/// Is the boot over?
pub async fn startupz(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.board.now();
    // Over is over: no later event takes it back.
    if status.boot.done.is_some() {
        return Json(json!({ "ok": true, "status": "started" })).into_response();
    }
    let phase: Phase = status.boot.phase;
    let mut body = json!({ "ok": false, "status": "starting", "pendingReason": phase });
    if let Some(restoring) = &status.boot.restoring {
        body["progress"] = json!({ "doneBytes": restoring.done_bytes, "totalBytes": restoring.total_bytes });
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// May traffic come?
pub async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.board.now();
    if status.ready {
        Json(json!({ "ready": true })).into_response()
    } else {
        let body = json!({ "ready": false, "failing": status.failing });
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }
}
