//! Every error as a problem document (RFC 9457).

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::report::{control::Refusal, outbox::OutboxError};

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The longest explanation that axum gives by itself.
const LONGEST_DETAIL: usize = 4096;

/// What a caller may want to act on, where the status does not say it all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[default]
    #[serde(rename = "about:blank")]
    Plain,
    /// The store is not there, or does not answer.
    #[serde(rename = "urn:moltinit:problem:store")]
    Store,
    /// The configuration is wrong.
    #[serde(rename = "urn:moltinit:problem:configuration")]
    Configuration,
}

impl Kind {
    pub fn of(refusal: &Refusal) -> Kind {
        match refusal {
            Refusal::Store(_) => Kind::Store,
            Refusal::Configuration(_) => Kind::Configuration,
            _ => Kind::Plain,
        }
    }

    pub fn is_plain(&self) -> bool {
        *self == Kind::Plain
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Left out where it is `about:blank`, which means the same.
    #[serde(rename = "type", default, skip_serializing_if = "Kind::is_plain")]
    pub kind: Kind,
    pub status: u16,
    pub title: String,
    pub detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: Kind::Plain,
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
        }
    }
}

impl IntoResponse for Problem {
    /// [`everywhere`] writes the document.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Extension(self)).into_response()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match &refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Unavailable(_) | Refusal::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Configuration(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Failed(_) => StatusCode::BAD_GATEWAY,
        };
        Problem {
            kind: Kind::of(&refusal),
            ..Problem::new(status, refusal.to_string())
        }
    }
}

impl From<OutboxError> for Problem {
    fn from(error: OutboxError) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

/// Writes every error as a problem document, without a secret in it: ours, and the plain texts of the framework (no
/// such route, a bad query).
pub async fn everywhere(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == JSON);
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut problem = match parts.extensions.remove::<Problem>() {
        Some(problem) => problem,
        None => {
            let said = to_bytes(body, LONGEST_DETAIL).await.unwrap_or_default();
            let detail = match String::from_utf8_lossy(&said).trim() {
                "" if status == StatusCode::NOT_FOUND => format!("there is nothing at `{asked}`"),
                "" => format!("`{asked}` is not possible"),
                said => said.to_owned(),
            };
            Problem::new(status, detail)
        }
    };
    problem.detail = shared.settings.borrow().mask.apply(&problem.detail).into_owned();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, MEDIA_TYPE);
    let body = serde_json::to_vec(&problem).expect("plain data");
    // What was said beside the text stays, such as `Allow`.
    Response::from_parts(parts, Body::from(body))
}
