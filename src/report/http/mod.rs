//! The routes of the contract's section 4, on a TCP port with a token and on a socket without.

mod auth;
mod events;
mod logs;
mod operations;
mod probes;
mod problem;
mod routes;
mod server;
mod wire;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{get, post},
};
use tokio::sync::watch;
use ulid::Ulid;

use self::operations::Operations;
pub use self::{
    events::Events,
    logs::Lines,
    operations::{Operation, Outcome},
    problem::{Kind, Problem},
    routes::{Attach, Attached, Snapshots},
    server::{SocketError, serve, socket},
};
#[cfg(any(test, fuzzing))]
pub use self::{server::one as serve_one, wire::Activity};
use super::{board::Board, control::Control, outbox::Outbox, settings::Settings};

/// The longest that one request may wait for something to happen.
const LONGEST_POLL: std::time::Duration = std::time::Duration::from_secs(60);

/// Where a request comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From anywhere: needs the token.
    Network,
    /// Through the control socket, which only its owner can open.
    Socket,
}

/// What every route can reach.
pub struct Shared {
    board: Arc<Board>,
    outbox: Outbox,
    settings: watch::Receiver<Settings>,
    control: Arc<dyn Control>,
    operations: Operations,
    boot: Ulid,
}

impl Shared {
    pub fn new(
        board: Arc<Board>,
        outbox: Outbox,
        settings: watch::Receiver<Settings>,
        control: Arc<dyn Control>,
        boot: Ulid,
    ) -> Shared {
        Shared {
            board,
            outbox,
            settings,
            control,
            operations: Operations::default(),
            boot,
        }
    }
}

/// Every route there is on that way in.
pub fn router(shared: Arc<Shared>, way: Way) -> Router {
    let mut guarded = Router::new()
        .route("/status", get(routes::status))
        .route("/metrics", get(routes::metrics))
        .route("/openapi.json", get(routes::openapi))
        .route("/events", get(events::events))
        .route("/services/{name}/logs", get(logs::logs))
        .route("/services/{name}/start", post(routes::start))
        .route("/services/{name}/stop", post(routes::stop))
        .route("/services/{name}/restart", post(routes::restart))
        .route("/operations/{id}", get(routes::operation))
        .route("/snapshots", get(routes::snapshots).post(routes::snapshot_now))
        .route("/snapshots/{id}/restore", post(routes::restore))
        .route("/devices", get(routes::devices))
        .route("/devices/{id}/approve", post(routes::approve));
    if way == Way::Socket {
        guarded = guarded.route("/services/{name}/attach", post(routes::attach));
    }
    guarded = guarded.route_layer(middleware::from_fn(server::whole_body));
    if way == Way::Network {
        guarded = guarded.route_layer(middleware::from_fn_with_state(shared.clone(), auth::require));
    }
    Router::new()
        .route("/healthz", get(probes::healthz))
        .route("/startupz", get(probes::startupz))
        .route("/readyz", get(probes::readyz))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(shared.clone(), problem::everywhere))
        .with_state(shared)
}
