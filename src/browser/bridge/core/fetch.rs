//! Requests that a client wants to see before they go out.
//!
//! The shim stops requests for good once it has been asked to, each time it is asked once more, and says neither whose
//! page makes one nor what becomes of it. So it is asked once for each page, what nobody wants to see goes on at once,
//! and the events of the network that a client needs to understand what it sees are made up here.

use serde_json::{Map, Value, json};

use super::{Asked, Bridge, Of, Out, Reply, event};

/// A request that waits for a client's word.
#[derive(Debug)]
pub(super) struct Paused {
    session: String,
    target: String,
}

impl Bridge {
    /// Shows a session its page's requests from now on.
    pub(super) fn intercept(&mut self, reply: &Reply, session: &str, target: &str) -> Vec<Out> {
        self.set_intercepts(session, true);
        let Some(found) = self.targets.get_mut(target) else {
            return vec![reply.error("No target with given id found")];
        };
        if std::mem::replace(&mut found.intercepted, true) {
            return vec![reply.ok(json!({}))];
        }
        vec![self.ask(
            Asked::Intercept(reply.clone(), target.to_owned()),
            "Fetch.enable",
            Some(target),
            Map::new(),
        )]
    }

    /// Does so no more; what it has not judged yet goes on.
    pub(super) fn let_pass(&mut self, reply: &Reply, session: &str) -> Vec<Out> {
        self.set_intercepts(session, false);
        let mut outs = self.release();
        outs.push(reply.ok(json!({})));
        outs
    }

    fn set_intercepts(&mut self, session: &str, wanted: bool) {
        if let Some(Of::Page { intercepts, .. }) = self.sessions.get_mut(session).map(|session| &mut session.of) {
            *intercepts = wanted;
        }
    }

    /// A client's word on a request.
    pub(super) fn judge(&mut self, reply: &Reply, method: &str, params: Map<String, Value>) -> Vec<Out> {
        let id = params.get("requestId").and_then(Value::as_str).unwrap_or_default();
        let Some(paused) = self.paused.remove(id) else {
            return vec![reply.error("Invalid InterceptionId.")];
        };
        let judged = Judged {
            id: id.to_owned(),
            session: paused.session,
            fails: method == "Fetch.failRequest",
        };
        vec![self.ask(
            Asked::Judged(reply.clone(), judged),
            method,
            Some(&paused.target),
            params,
        )]
    }

    /// A request of some page's waits.
    pub(super) fn paused(&mut self, params: &Value) -> Vec<Out> {
        let id = params["requestId"].as_str().unwrap_or_default().to_owned();
        let mut found = self.sessions.iter().filter_map(|(name, session)| match &session.of {
            Of::Page {
                target,
                intercepts: true,
                ..
            } => Some((name.clone(), target.clone())),
            _ => None,
        });
        let Some((session, target)) = found.next() else {
            return self.go_on(&id).into_iter().collect();
        };
        drop(found);
        let kind = resource(params["resourceType"].as_str().unwrap_or_default());
        let mut request = params["request"].clone();
        request["initialPriority"] = json!("Medium");
        request["referrerPolicy"] = json!("strict-origin-when-cross-origin");
        let loader = match kind.as_str() {
            "Document" => id.clone(),
            _ => self
                .targets
                .get(&target)
                .map_or_else(String::new, |found| found.loader(&target)),
        };
        let sent = json!({
            "requestId": id, "loaderId": loader, "documentURL": request["url"], "request": request, "timestamp": 0, "wallTime": 0,
            "initiator": { "type": "other" }, "redirectHasExtraInfo": false, "type": kind, "frameId": target,
        });
        let stopped = json!({
            "requestId": id, "networkId": id, "request": request, "frameId": target, "resourceType": kind,
        });
        self.paused.insert(
            id,
            Paused {
                session: session.clone(),
                target,
            },
        );
        vec![
            event("Network.requestWillBeSent", sent, Some(&session)),
            event("Fetch.requestPaused", stopped, Some(&session)),
        ]
    }

    /// Lets go on whatever waits for somebody who does not care any more.
    pub(super) fn release(&mut self) -> Vec<Out> {
        let cares = |name: &String| {
            let session = self.sessions.get(name).map(|session| &session.of);
            matches!(session, Some(Of::Page { intercepts: true, .. }))
        };
        let waits = self.paused.iter().filter(|(_, paused)| !cares(&paused.session));
        let waits: Vec<String> = waits.map(|(id, _)| id.clone()).collect();
        waits.iter().filter_map(|id| self.go_on(id)).collect()
    }

    /// It may be any page's: the shim knows a request by its id, but wants a page that there is.
    fn go_on(&mut self, id: &str) -> Option<Out> {
        self.paused.remove(id);
        let target = self.targets.keys().next()?.clone();
        let params = [("requestId".to_owned(), json!(id))].into_iter().collect();
        Some(self.ask(Asked::Nothing, "Fetch.continueRequest", Some(&target), params))
    }
}

/// A request on which a client has had its word.
#[derive(Debug)]
pub(super) struct Judged {
    id: String,
    session: String,
    fails: bool,
}

impl Judged {
    /// What a browser would say of it in the end. That is not known here; a client would wait for it.
    pub(super) fn end(&self) -> Out {
        let Judged { id, session, fails } = self;
        match fails {
            true => event(
                "Network.loadingFailed",
                json!({ "requestId": id, "timestamp": 0, "type": "Other", "errorText": "net::ERR_FAILED", "canceled": false }),
                Some(session),
            ),
            false => event(
                "Network.loadingFinished",
                json!({ "requestId": id, "timestamp": 0, "encodedDataLength": 0 }),
                Some(session),
            ),
        }
    }
}

/// The shim has Puppeteer's names of kinds, which are the protocol's in lower case.
fn resource(kind: &str) -> String {
    match kind {
        "xhr" => "XHR".to_owned(),
        "eventsource" => "EventSource".to_owned(),
        "websocket" => "WebSocket".to_owned(),
        "texttrack" => "TextTrack".to_owned(),
        kind => {
            let mut letters = kind.chars();
            letters.next().map_or_else(
                || "Other".to_owned(),
                |first| format!("{}{}", first.to_uppercase(), letters.as_str()),
            )
        }
    }
}
