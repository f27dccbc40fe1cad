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
use serde_json::Value;
use sha1::{Digest, Sha1};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use super::{Shared, discovery, guard, session};

/// Connections at one time; more wait to be accepted.
const MOST: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 6455, section 1.3.
const ACCEPT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Accepts until the process ends. A connection stays with what is current when it comes.
pub async fn serve(listener: TcpListener, current: watch::Receiver<Arc<Shared>>) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some will be given back.
                tracing::warn!(%error, "a connection to the browser port was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&current.borrow());
        tokio::spawn(async move {
            let place = Arc::new(place);
            let service = service_fn(|request| {
                let (shared, place) = (Arc::clone(&shared), Arc::clone(&place));
                async move { Ok::<_, Infallible>(answer(request, shared, place).await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let _ = served.await;
        });
    }
}

type Place = Arc<tokio::sync::OwnedSemaphorePermit>;

async fn answer(mut request: Request<Incoming>, shared: Arc<Shared>, place: Place) -> Response<Full<Bytes>> {
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
        let (method, query) = (request.method(), request.uri().query());
        let (status, value) = discovery::answer(&shared.upstream, method, &path, query, authority).await;
        return json(status, &value);
    }
    let Some(accept) = accept(request.headers()) else {
        return json(
            StatusCode::NOT_FOUND,
            &Value::String("nothing here; see /json/version".into()),
        );
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
