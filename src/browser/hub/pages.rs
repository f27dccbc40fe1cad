//! `/json/list` and its kin, for a browser that is reached over one connection.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use super::{Ask, Hub, Which};
use crate::browser::{discovery::Here, upstream::DialError};

/// Where a page's WebSocket is, below the port's address.
const PAGE: &str = "/devtools/page/";

/// Answers a request under `/json` but for the version. Only a new page launches a browser.
pub async fn answer(
    hub: &Arc<Hub>,
    path: &str,
    query: Option<&str>,
    here: Here<'_>,
    within: Duration,
) -> (StatusCode, Value) {
    let ask = |which, method, params| hub.question(which, method, params, within);
    let entry = |info: &Value| {
        let id = info["targetId"].as_str().unwrap_or_default();
        let said = |name: &str| hub.upstream.masked(info[name].as_str().unwrap_or_default());
        json!({
            "description": "", "id": id, "title": said("title"), "type": info["type"], "url": said("url"),
            "webSocketDebuggerUrl": here.url(&format!("{PAGE}{id}")),
        })
    };
    let (command, done) = match path {
        "/json" | "/json/list" => {
            return match ask(Which::Up, "Target.getTargets", json!({})).await {
                // Nor has one that is still being dialled any pages.
                Err(Unanswered::NotUp) => (StatusCode::OK, json!([])),
                found => answered(found, |found| {
                    let infos = found["targetInfos"].as_array().cloned().unwrap_or_default();
                    infos.iter().map(entry).collect()
                }),
            };
        }
        "/json/new" => {
            let wanted = percent_decode_str(query.unwrap_or_default()).decode_utf8_lossy();
            let url = url::Url::parse(&wanted).map_or_else(|_| "about:blank".to_owned(), String::from);
            let made = ask(Which::Any, "Target.createTarget", json!({ "url": url })).await;
            return answered(made, |made| {
                entry(&json!({ "targetId": made["targetId"], "type": "page", "url": url }))
            });
        }
        _ if path.starts_with("/json/activate/") => ("Target.activateTarget", "Target activated"),
        _ if path.starts_with("/json/close/") => ("Target.closeTarget", "Target is closing"),
        _ => {
            let why = "This browser is not asked for its protocol; a client brings it along";
            return (StatusCode::NOT_IMPLEMENTED, json!(why));
        }
    };
    let id = path.rsplit('/').next().unwrap_or_default();
    let missing = (StatusCode::NOT_FOUND, json!(format!("No such target id: {id}")));
    match ask(Which::Up, command, json!({ "targetId": id })).await {
        Err(Unanswered::NotUp | Unanswered::Refused(_)) => missing,
        other => answered(other, |_| json!(done)),
    }
}

enum Unanswered {
    /// There is no browser that could be asked.
    NotUp,
    /// By the browser, or because it has gone.
    Refused(String),
    TimedOut(Duration),
}

impl Hub {
    async fn question(
        self: &Arc<Self>,
        which: Which,
        method: &'static str,
        params: Value,
        within: Duration,
    ) -> Result<Value, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.ask(which, Ask::Own(method, params, answer))
            .ok_or(Unanswered::NotUp)?;
        match timeout(within, answered).await {
            Ok(Ok(answer)) => answer.map_err(Unanswered::Refused),
            Ok(Err(_)) => Err(Unanswered::Refused("the browser is gone".to_owned())),
            Err(_) => Err(Unanswered::TimedOut(within)),
        }
    }
}

fn answered(answer: Result<Value, Unanswered>, of: impl FnOnce(&Value) -> Value) -> (StatusCode, Value) {
    match answer {
        Ok(value) => (StatusCode::OK, of(&value)),
        Err(Unanswered::NotUp) => (StatusCode::BAD_GATEWAY, json!("no browser is up")),
        Err(Unanswered::Refused(why)) => (StatusCode::BAD_GATEWAY, json!(why)),
        Err(Unanswered::TimedOut(within)) => {
            let why = DialError::TimedOut(within).to_string();
            (StatusCode::GATEWAY_TIMEOUT, json!(why))
        }
    }
}
