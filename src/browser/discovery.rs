//! `/json/version` and its kin, answered at once: a client on loopback gives discovery 300 ms.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::{
    Shared, guard, hub,
    upstream::{BROWSER_PATH, DialError, Upstream},
};
use crate::config::secret::Secret;

/// For a list, which clients wait for longer than for the version, but not long.
const LISTED: Duration = Duration::from_secs(2);
/// For what makes or ends something.
const DONE: Duration = Duration::from_secs(10);

/// How a client reaches this port: by what authority, and with what token.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    pub authority: &'a str,
    pub token: Option<&'a Secret>,
}

impl Here<'_> {
    pub fn url(&self, path: &str) -> String {
        let query = self
            .token
            .map_or_else(String::new, |token| format!("?token={}", token.expose()));
        format!("ws://{}{path}{query}", self.authority)
    }
}

/// Answers a request under `/json`.
pub async fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: Option<&str>,
    here: Here<'_>,
) -> (StatusCode, Value) {
    let upstream = &*shared.upstream;
    let path = path.trim_end_matches('/');
    let query = query.map(|query| guard::without_token(query, here.token));
    // With a token before it, some clients give the new page's address a name.
    let query = query.map(|query| query.strip_prefix("url=").map(str::to_owned).unwrap_or(query));
    let within = match path {
        "/json/version" => return (StatusCode::OK, version(upstream, here).await),
        "/json/new" if method != Method::PUT => {
            return (
                StatusCode::METHOD_NOT_ALLOWED,
                json!("Using unsafe HTTP verb GET to invoke /json/new. This action supports only PUT verb."),
            );
        }
        // Without discovery upstream there are no targets to name before somebody connects, and asking would launch.
        "/json" | "/json/list" if shared.hub.is_none() && !upstream.has_discovery() => {
            return (StatusCode::OK, json!([]));
        }
        "/json" | "/json/list" => LISTED,
        "/json/protocol" | "/json/new" => DONE,
        _ if path.starts_with("/json/activate/") || path.starts_with("/json/close/") => DONE,
        _ => return (StatusCode::NOT_FOUND, json!("Unknown command")),
    };
    if let Some(hub) = &shared.hub {
        return hub::answer(hub, path, query.as_deref(), here, within).await;
    }
    if !upstream.has_discovery() {
        let why = "This browser has no discovery: connect to its WebSocket and use Target.createTarget";
        return (StatusCode::NOT_IMPLEMENTED, json!(why));
    }
    match upstream.ask(method.as_str(), path, query.as_deref(), within).await {
        Ok((status, mut value)) => {
            localise(&mut value, here, upstream);
            (status, value)
        }
        Err(error @ DialError::TimedOut(_)) => (StatusCode::GATEWAY_TIMEOUT, json!(error.to_string())),
        Err(error) => (StatusCode::BAD_GATEWAY, json!(upstream.masked(&error.to_string()))),
    }
}

/// What is known of the browser, and how to connect to it.
async fn version(upstream: &Upstream, here: Here<'_>) -> Value {
    let mut version = upstream.version_page().await;
    localise(&mut version, here, upstream);
    version["webSocketDebuggerUrl"] = json!(here.url(BROWSER_PATH));
    version
}

/// Makes every URL that names the upstream's WebSocket lead here, and leaves out what else leads to it: its query may be
/// a secret, and its host means nothing to a client.
pub fn localise(value: &mut Value, here: Here<'_>, upstream: &Upstream) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| localise(item, here, upstream)),
        Value::Object(fields) => {
            fields.retain(|key, value| !leads_away(key, value, upstream));
            for (key, value) in fields {
                let found = value.as_str().filter(|_| key == "webSocketDebuggerUrl");
                match found.and_then(|url| Url::parse(url).ok()) {
                    Some(url) => *value = json!(here.url(url.path())),
                    None => localise(value, here, upstream),
                }
            }
        }
        Value::String(text) => *text = upstream.masked(text),
        _ => {}
    }
}

/// Addresses of the upstream's own, under whatever name. What pages are called and where they are is theirs.
fn leads_away(key: &str, value: &Value, upstream: &Upstream) -> bool {
    let is_of_page = matches!(
        key,
        "webSocketDebuggerUrl" | "url" | "title" | "description" | "faviconUrl"
    );
    let holds = |text: &str| text.contains(&upstream.authority());
    key.starts_with("devtoolsFrontendUrl") || !is_of_page && value.as_str().is_some_and(holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Machine};

    #[test]
    fn urls_lead_here_and_show_no_secret() {
        let env = [("MOLTINIT_CDP_UPSTREAM", "https://far.example/?token=s3cret-canary")];
        let config = config::load(None, env.into_iter().collect(), &Machine::look()).unwrap();
        let upstream = Upstream::of(&config).unwrap().unwrap();
        let token = Secret::new("local".to_owned());
        let here = |token| Here {
            authority: "localhost:9222",
            token,
        };
        let mut targets = json!([{
            "id": "AB", "title": "ws://not-a-field.example/ s3cret-canary", "devtoolsFrontendUrl": "/x?ws=h",
            "devtoolsFrontendUrlCompat": "/x", "other": "wss://far.example/x?token=1",
            "webSocketDebuggerUrl": "wss://far.example/devtools/page/AB?token=s3cret-canary",
        }]);
        let mut with_token = targets.clone();
        localise(&mut targets, here(None), &upstream);
        assert_eq!(
            targets,
            json!([{
                "id": "AB", "title": "ws://not-a-field.example/ [secret]",
                "webSocketDebuggerUrl": "ws://localhost:9222/devtools/page/AB",
            }])
        );
        localise(&mut with_token, here(Some(&token)), &upstream);
        let url = "ws://localhost:9222/devtools/page/AB?token=local";
        assert_eq!(with_token[0]["webSocketDebuggerUrl"], url);
    }
}
