//! The local port: HTTP/1.1, discovery, and the upgrade to a WebSocket, which never waits for the upstream.

use std::{convert::Infallible, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use sha1::{Digest, Sha1};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use super::{
    Shared,
    discovery::{self, Here},
    guard, session,
};

/// WebSockets at one time; more are refused.
const SESSIONS: usize = 256;
/// Other connections at one time; more wait to be accepted, which is not long: one that says nothing is closed.
const CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 6455, section 1.3.
const ACCEPT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Accepts until the process ends or nobody holds the sender any more. A connection stays with what is current when it
/// comes.
pub async fn serve(listener: TcpListener, mut current: watch::Receiver<Arc<Shared>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let sessions = Arc::new(Semaphore::new(SESSIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = gone(&mut current) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some will be given back.
                tracing::warn!(%error, "a connection to the browser port was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        // For a client that vanishes without a word before it has a session, which has pings.
        let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
        let shared = Arc::clone(&current.borrow());
        let sessions = Arc::clone(&sessions);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (shared, sessions) = (Arc::clone(&shared), Arc::clone(&sessions));
                async move { Ok::<_, Infallible>(answer(request, shared, sessions).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let _ = served.await;
            drop(place);
        });
    }
}

/// Ends when the port is served elsewhere.
async fn gone(current: &mut watch::Receiver<Arc<Shared>>) {
    while current.changed().await.is_ok() {}
}

async fn answer(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    sessions: Arc<Semaphore>,
) -> Response<Full<Bytes>> {
    if let Err(refused) = guard::check(request.headers(), request.uri().query(), shared.token.as_ref()) {
        tracing::warn!(%refused, "a request to the browser port");
        return json(StatusCode::FORBIDDEN, &Value::String(refused.to_string()));
    }
    let path = request.uri().path().to_owned();
    if path == "/json" || path.starts_with("/json/") {
        let authority = request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        let here = Here {
            authority,
            token: shared.token.as_ref(),
        };
        let (method, query) = (request.method(), request.uri().query());
        let (status, value) = discovery::answer(&shared, method, &path, query, here).await;
        return json(status, &value);
    }
    let Some(accept) = accept(request.headers()) else {
        return json(
            StatusCode::NOT_FOUND,
            &Value::String("nothing here; see /json/version".into()),
        );
    };
    let Ok(place) = sessions.try_acquire_owned() else {
        tracing::warn!(
            sessions = SESSIONS,
            "a WebSocket to the browser port was refused: there are too many"
        );
        let why = format!("there are {SESSIONS} WebSockets open here already; close some");
        return json(StatusCode::SERVICE_UNAVAILABLE, &Value::String(why));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            session::run(TokioIo::new(client), &path, &shared).await;
        }
        drop(place);
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// The answer to a client's key, if the request is for a WebSocket.
fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return None;
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    // Chrome answers some of these in plain words, and clients know them so.
    let (kind, body) = match value {
        Value::String(text) => ("text/plain; charset=UTF-8", text.clone()),
        value => ("application/json; charset=UTF-8", value.to_string()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
