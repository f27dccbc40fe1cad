//! The routes that ask the supervisor for something.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use futures_util::TryFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ulid::Ulid;

use super::{
    LONGEST_POLL, Shared,
    operations::Why,
    problem::{Kind, Problem},
};
use crate::{
    config::value,
    report::{
        control::{Action, Answer, Devices},
        metrics,
        status::Status,
    },
    state::model::{CommitId, Meta},
};

type Ctx = State<Arc<Shared>>;

pub async fn status(State(shared): Ctx) -> Json<Status> {
    Json(shared.board.document())
}

pub async fn metrics(State(shared): Ctx) -> impl IntoResponse {
    let kind = [(CONTENT_TYPE, metrics::MEDIA_TYPE)];
    (kind, metrics::render(shared.board.document()))
}

/// All of this, described for machines; the tests hold the server to it.
pub async fn openapi() -> impl IntoResponse {
    let kind = [(CONTENT_TYPE, "application/json")];
    (kind, include_str!("../../../docs/openapi.json"))
}

pub async fn start(ctx: Ctx, name: Path<String>) -> Result<Response, Problem> {
    service(ctx, name, Action::Start, "start")
}

pub async fn stop(ctx: Ctx, name: Path<String>) -> Result<Response, Problem> {
    service(ctx, name, Action::Stop, "stop")
}

pub async fn restart(ctx: Ctx, name: Path<String>) -> Result<Response, Problem> {
    service(ctx, name, Action::Restart, "restart")
}

fn service(State(shared): Ctx, Path(name): Path<String>, action: Action, verb: &str) -> Result<Response, Problem> {
    let answer = shared.control.service(&name, action)?;
    Ok(accepted(&shared, format!("{verb} {name}"), answer))
}

/// 202, and where to ask what has become of it.
fn accepted(shared: &Shared, what: String, answer: Answer<()>) -> Response {
    let mask = shared.settings.borrow().mask.clone();
    let answer = answer.map_err(move |refusal| Why {
        kind: Kind::of(&refusal),
        text: mask.apply(&refusal.to_string()).into_owned(),
    });
    let operation = shared.operations.begin(what, answer);
    let location = [(LOCATION, format!("/operations/{}", operation.id))];
    (StatusCode::ACCEPTED, location, Json(operation)).into_response()
}

/// How long a request may be kept open until there is something to say.
#[derive(Debug, Deserialize)]
pub struct Wait {
    wait: Option<String>,
}

impl Wait {
    pub fn time(&self) -> Result<Duration, Problem> {
        let text = self.wait.as_deref().unwrap_or("0");
        let wait = value::duration(text).map_err(|why| bad_request(&format!("wait: {why}")))?;
        Ok(wait.min(LONGEST_POLL))
    }
}

pub fn bad_request(why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, why)
}

pub async fn operation(
    State(shared): Ctx,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Response, Problem> {
    let gone = || Problem::new(StatusCode::NOT_FOUND, format!("there is no operation `{id}`"));
    let id: Ulid = id.parse().map_err(|_| gone())?;
    let operation = shared.operations.get(id, wait.time()?).await.ok_or_else(gone)?;
    Ok(Json(operation).into_response())
}

/// What `moltinit attach` hands over. `Debug` is not derived: the values are secrets.
#[derive(Serialize, Deserialize)]
pub struct Attach {
    pub env: BTreeMap<String, String>,
}

/// What became of the service.
#[derive(Debug, Serialize, Deserialize)]
pub struct Attached {
    pub exit_code: i32,
}

pub async fn attach(State(shared): Ctx, Path(name): Path<String>, body: Bytes) -> Result<Json<Attached>, Problem> {
    // The parser's own words would quote the values.
    let Attach { env } = serde_json::from_slice(&body)
        .map_err(|_| bad_request("the body must be `{\"env\": {…}}` with a text for each name"))?;
    let exit_code = shared.control.attach(&name, env)?.await?;
    Ok(Json(Attached { exit_code }))
}

/// Every commit, oldest first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshots {
    pub snapshots: Vec<Meta>,
}

pub async fn snapshots(State(shared): Ctx) -> Result<Json<Snapshots>, Problem> {
    let snapshots = shared.control.snapshots().await?;
    Ok(Json(Snapshots { snapshots }))
}

pub async fn snapshot_now(State(shared): Ctx) -> Result<Json<Meta>, Problem> {
    Ok(Json(shared.control.snapshot_now().await?))
}

pub async fn restore(State(shared): Ctx, Path(id): Path<String>) -> Result<Response, Problem> {
    let commit: CommitId = id.parse().map_err(|error| bad_request(&format!("{error}")))?;
    let answer = shared.control.restore(commit)?;
    Ok(accepted(&shared, format!("restore {commit}"), answer))
}

pub async fn devices(State(shared): Ctx) -> Result<Json<Devices>, Problem> {
    Ok(Json(shared.control.devices().await?))
}

pub async fn approve(State(shared): Ctx, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    shared.control.approve(&id).await?;
    Ok(Json(json!({ "approved": id })))
}
