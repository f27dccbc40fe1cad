//! Every error as a problem document (RFC 9457).

use axum::{
    Json,
    body::to_bytes,
    extract::Request,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::report::{control::Refusal, outbox::OutboxError};

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The longest explanation that axum gives by itself.
const LONGEST_DETAIL: usize = 4096;

/// What went wrong. Its `type` is left out: `about:blank`, so the status says it all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub status: u16,
    pub title: String,
    pub detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(CONTENT_TYPE, MEDIA_TYPE)], Json(self)).into_response()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match &refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Failed(_) => StatusCode::BAD_GATEWAY,
        };
        Problem::new(status, refusal.to_string())
    }
}

impl From<OutboxError> for Problem {
    fn from(error: OutboxError) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

/// Turns the plain-text errors of the framework (no such route, a bad query) into problem documents too.
pub async fn everywhere(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().ends_with(b"json"));
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let said = to_bytes(body, LONGEST_DETAIL).await.unwrap_or_default();
    let detail = match String::from_utf8_lossy(&said).trim() {
        "" if status == StatusCode::NOT_FOUND => format!("there is nothing at `{asked}`"),
        "" => format!("`{asked}` is not possible"),
        said => said.to_owned(),
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(CONTENT_TYPE);
    // What the framework said beside the text stays, such as `Allow`.
    let mut problem = Problem::new(status, detail).into_response();
    for (name, value) in &parts.headers {
        problem.headers_mut().append(name, value.clone());
    }
    problem
}
