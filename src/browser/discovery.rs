//! `/json/version` and its kin, answered at once: a client on loopback gives discovery 300 ms.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::upstream::{BROWSER_PATH, Upstream};

/// An upstream on this machine answers well within a client's patience; one that does not is not waited for.
const SOON: Duration = Duration::from_millis(200);

/// What `/json/version` says where the upstream does not.
pub fn version(authority: &str) -> Value {
    json!({
        "Browser": "Chrome/0 (moltinit)",
        "Protocol-Version": "1.3",
        "User-Agent": concat!("moltinit/", env!("CARGO_PKG_VERSION")),
        "V8-Version": "0",
        "WebKit-Version": "0",
        "webSocketDebuggerUrl": format!("ws://{authority}{BROWSER_PATH}"),
    })
}

/// The answer to `Browser.getVersion`, which probes send and which must not launch a browser.
pub fn browser_version() -> Value {
    json!({
        "protocolVersion": "1.3",
        "product": "Chrome/0 (moltinit)",
        "revision": "",
        "userAgent": concat!("moltinit/", env!("CARGO_PKG_VERSION")),
        "jsVersion": "0",
    })
}

/// Answers a request under `/json`. `authority` is how the client calls this port.
pub async fn answer(
    upstream: &Upstream,
    method: &Method,
    path: &str,
    query: Option<&str>,
    authority: &str,
) -> (StatusCode, Value) {
    let path = path.trim_end_matches('/');
    let asked = match path {
        "/json/version" => {
            let theirs = tokio::time::timeout(SOON, upstream.ask("GET", path, None)).await;
            let mut version = version(authority);
            if let (Value::Object(ours), Ok(Ok(Value::Object(theirs)))) = (&mut version, theirs) {
                ours.extend(theirs);
                ours["webSocketDebuggerUrl"] = json!(format!("ws://{authority}{BROWSER_PATH}"));
            }
            return (StatusCode::OK, version);
        }
        "/json/new" if method != Method::PUT => {
            return (
                StatusCode::METHOD_NOT_ALLOWED,
                json!("Using unsafe HTTP verb GET to invoke /json/new. This action supports only PUT verb."),
            );
        }
        // Without discovery upstream there are no targets to name before somebody connects, and asking would launch.
        "/json" | "/json/list" if !upstream.has_discovery() => return (StatusCode::OK, json!([])),
        "/json" | "/json/list" | "/json/protocol" | "/json/new" => upstream.ask(method.as_str(), path, query).await,
        _ if path.starts_with("/json/activate/") || path.starts_with("/json/close/") => {
            upstream.ask(method.as_str(), path, query).await
        }
        _ => return (StatusCode::NOT_FOUND, json!("Unknown command")),
    };
    match asked {
        Ok(mut value) => {
            localise(&mut value, authority);
            (StatusCode::OK, value)
        }
        Err(_) if !upstream.has_discovery() => (
            StatusCode::NOT_IMPLEMENTED,
            json!("This browser has no discovery: connect to its WebSocket and use Target.createTarget"),
        ),
        Err(error) => (StatusCode::BAD_GATEWAY, json!(error.to_string())),
    }
}

/// Rewrites every URL that names the upstream's WebSocket so that it leads here. Their query may be a secret, and their
/// host means nothing to a client.
pub fn localise(value: &mut Value, authority: &str) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| localise(item, authority)),
        Value::Object(fields) => {
            fields.remove("devtoolsFrontendUrl");
            for (key, value) in fields {
                let found = value.as_str().filter(|_| key == "webSocketDebuggerUrl");
                match found.and_then(|url| url::Url::parse(url).ok()) {
                    Some(url) => *value = json!(format!("ws://{authority}{}", url.path())),
                    None => localise(value, authority),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_here_and_show_no_secret() {
        let mut targets = json!([{
            "id": "AB", "title": "ws://not-a-field.example/", "devtoolsFrontendUrl": "/x?ws=h",
            "webSocketDebuggerUrl": "wss://far.example/devtools/page/AB?secret=s3cret",
        }]);
        localise(&mut targets, "localhost:9222");
        assert_eq!(
            targets,
            json!([{
                "id": "AB", "title": "ws://not-a-field.example/",
                "webSocketDebuggerUrl": "ws://localhost:9222/devtools/page/AB",
            }])
        );
    }
}
