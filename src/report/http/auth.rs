//! The bearer token (RFC 6750).

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{
        StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Shared, problem::Problem};

/// Lets a request pass that has the token.
pub async fn require(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let token = shared.settings.borrow().admin_token.clone();
    let Some(token) = token else {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "no token is configured, so only the probes are served; set MOLTINIT_ADMIN_TOKEN or OPENCLAW_GATEWAY_TOKEN",
        )
        .into_response();
    };
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, token)| token.trim_ascii());
    if presented.is_some_and(|presented| token.matches(presented)) {
        return next.run(request).await;
    }
    let detail = match presented {
        Some(_) => "the bearer token is wrong",
        None => "this needs the header `Authorization: Bearer` with the admin token",
    };
    (
        [(WWW_AUTHENTICATE, "Bearer realm=\"moltinit\"")],
        Problem::new(StatusCode::UNAUTHORIZED, detail),
    )
        .into_response()
}
