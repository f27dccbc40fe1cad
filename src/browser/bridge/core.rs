//! What a client is told and what the shim is asked: a function of the messages so far.

mod answers;
mod commands;
mod fetch;
mod targets;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use self::{
    answers::agents_text,
    fetch::{Judged, Paused},
    targets::Target,
};
use crate::browser::below::with_all_below;

const AGENT: &str = include_str!("agent.js");
/// The one browser context there is.
const CONTEXT: &str = "moltinit";
/// A piece of a stream, in base64's characters: divisible by four, so that each piece can be decoded alone.
const PIECE: usize = 1 << 20;
/// Streams kept for a client that does not close them.
const STREAMS: usize = 4;
/// Bytes of them all, but for a longer one that is alone.
const STREAMED: usize = 16 << 20;

/// A message, and to whom.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    Client(Value),
    Shim(Value),
}

/// What commands with a session's id are about.
#[derive(Debug)]
struct Session {
    of: Of,
    /// The session in which it was opened; none is the connection's own.
    parent: Option<String>,
}

#[derive(Debug)]
enum Of {
    /// The browser.
    Browser(Interest),
    /// A tab, which only leads to its page, and whether it has.
    Tab(String, bool),
    Page {
        target: String,
        has_runtime: bool,
        worlds: Vec<String>,
        /// It is asked before each request.
        intercepts: bool,
    },
}

/// What a session of the browser's is told of targets.
#[derive(Debug, Default)]
struct Interest {
    /// New targets are announced.
    discovers: bool,
    /// New targets are attached to, as pages or as tabs.
    attaches: Option<Kind>,
    /// Targets that have been attached to so.
    automatic: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Page,
    Tab,
}

/// A command of the shim's that is not answered yet.
#[derive(Debug)]
enum Asked {
    /// The client's own: it gets the answer as it is.
    Plain(Reply),
    /// The same, where a shim that does not know the command does no harm.
    Optional(Reply),
    /// Something in the page.
    InPage(Option<Reply>, String),
    /// A navigation, after which the page is looked at.
    Navigate(Reply, String),
    /// That look.
    Arrived(Reply, String),
    /// A PDF that is wanted as a stream.
    Stream(Reply),
    /// Whether a page's requests are stopped.
    Intercept(Reply, String),
    /// What is to become of a request.
    Judged(Reply, Judged),
    Nothing,
}

impl Asked {
    /// It is the agent in the page that answers.
    fn is_of_agent(&self) -> bool {
        matches!(self, Asked::InPage(..) | Asked::Arrived(..))
    }

    /// The page in which a client waits for something.
    fn in_page(&self) -> Option<&String> {
        match self {
            Asked::InPage(Some(_), target) => Some(target),
            _ => None,
        }
    }
}

/// A message of the shim's. What may be long of it is not looked into yet.
#[derive(Debug, Deserialize)]
struct Said<'a> {
    #[serde(default)]
    id: Value,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(default)]
    params: Value,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Value,
}

/// Who waits for an answer.
#[derive(Debug, Clone)]
struct Reply {
    id: Value,
    session: Option<String>,
}

impl Reply {
    fn with(&self, (name, value): (&str, Value)) -> Out {
        let mut message = json!({ "id": self.id });
        message[name] = value;
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        Out::Client(message)
    }

    fn ok(&self, result: Value) -> Out {
        self.with(("result", result))
    }

    fn error(&self, message: &str) -> Out {
        self.with(("error", json!({ "code": -32000, "message": message })))
    }
}

/// A shim's browser, as a browser would be: any number of sessions on one connection.
#[derive(Debug, Default)]
pub struct Bridge {
    targets: BTreeMap<String, Target>,
    sessions: BTreeMap<String, Session>,
    asked: HashMap<u64, Asked>,
    streams: BTreeMap<String, String>,
    /// Requests that wait for a client's word.
    paused: BTreeMap<String, Paused>,
    counter: u64,
    /// The connection's own.
    interest: Interest,
}

impl Bridge {
    /// Takes a message of the client's.
    pub fn client_says(&mut self, text: impl AsRef<str>) -> Vec<Out> {
        let Some(mut message) = message(text) else {
            return Vec::new();
        };
        let session = message["sessionId"].as_str().map(str::to_owned);
        let reply = Reply {
            id: message["id"].take(),
            session: session.clone(),
        };
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        let params = match message["params"].take() {
            Value::Object(params) => params,
            _ => Map::new(),
        };
        let page = match &session {
            None => None,
            Some(session) => match self.sessions.get(session).map(|session| &session.of) {
                None => return vec![reply.error("Session with given id not found.")],
                Some(Of::Page { target, .. }) => Some((session.clone(), target.clone())),
                Some(Of::Browser(_)) => None,
                Some(Of::Tab(target, _)) => {
                    let target = target.clone();
                    return self.of_tab(&reply, &method, &target);
                }
            },
        };
        match page {
            None => self.of_browser(&reply, &method, params),
            Some((session, target)) => self.of_page(&reply, &method, params, &session, &target),
        }
    }

    /// Takes a message of the shim's.
    pub fn shim_says(&mut self, text: impl AsRef<str>) -> Vec<Out> {
        let Ok(said) = serde_json::from_str::<Said<'_>>(text.as_ref()) else {
            return Vec::new();
        };
        match said.method.as_deref() {
            Some("Target.targetCreated") => return self.created(&said.params["targetInfo"]),
            Some("Target.targetDestroyed") => {
                let id = said.params["targetId"].as_str().unwrap_or_default().to_owned();
                return self.destroyed(&id);
            }
            Some("Fetch.requestPaused") => return self.paused(&said.params),
            // Its other events name the wrong frame, and are made up here.
            Some(_) => return Vec::new(),
            None => {}
        }
        let Some(asked) = said.id.as_u64().and_then(|id| self.asked.remove(&id)) else {
            return Vec::new();
        };
        let error = said.error["message"].as_str().map(str::to_owned);
        let result = match said.result {
            Some(result) if asked.is_of_agent() => agents_text(result),
            Some(result) => serde_json::from_str(result.get()).unwrap_or_default(),
            None => Value::Null,
        };
        drop(text);
        self.answered(asked, result, error)
    }

    /// Looks at pages that something may have become of. To be called a few times a second.
    pub fn tick(&mut self) -> Vec<Out> {
        let busy: Vec<&String> = self.asked.values().filter_map(Asked::in_page).collect();
        let due = |(id, target): &(&String, &Target)| target.is_due(busy.contains(id));
        let due: Vec<String> = self.targets.iter().filter(due).map(|(id, _)| id.clone()).collect();
        let mut outs = self.release();
        for id in due {
            if let Some(target) = self.targets.get_mut(&id) {
                target.look();
            }
            outs.push(self.in_page(&id, None, &json!({ "op": "state" })));
        }
        outs
    }

    /// What a session of the browser's, or the connection itself, is told of targets.
    fn interest(&mut self, session: Option<&str>) -> Option<&mut Interest> {
        let Some(session) = session else {
            return Some(&mut self.interest);
        };
        match &mut self.sessions.get_mut(session)?.of {
            Of::Browser(interest) => Some(interest),
            _ => None,
        }
    }

    /// The browser's sessions in which something of targets is wanted; none is the connection itself.
    fn interested(&self, wants: impl Fn(&Interest) -> bool) -> Vec<Option<String>> {
        let own = wants(&self.interest).then_some(None);
        let others = self.sessions.iter().filter_map(|(name, session)| match &session.of {
            Of::Browser(interest) if wants(interest) => Some(Some(name.clone())),
            _ => None,
        });
        own.into_iter().chain(others).collect()
    }

    fn attach_automatically(&mut self, id: &str, session: Option<&str>) -> Vec<Out> {
        let Some(interest) = self.interest(session) else {
            return Vec::new();
        };
        match interest.attaches {
            Some(kind) if interest.automatic.insert(id.to_owned()) => vec![self.attach(id, kind, session).1],
            _ => Vec::new(),
        }
    }

    /// A session with a target, and the event that says so to `parent`.
    fn attach(&mut self, id: &str, kind: Kind, parent: Option<&str>) -> (String, Out) {
        let of = match kind {
            Kind::Tab => Of::Tab(id.to_owned(), false),
            Kind::Page => Of::Page {
                target: id.to_owned(),
                has_runtime: false,
                worlds: Vec::new(),
                intercepts: false,
            },
        };
        let session = self.open(of, parent);
        let attached = json!({ "sessionId": session, "targetInfo": self.info(id, kind), "waitingForDebugger": false });
        (session, event("Target.attachedToTarget", attached, parent))
    }

    fn open(&mut self, of: Of, parent: Option<&str>) -> String {
        self.counter += 1;
        let name = format!("moltinit-{}", self.counter);
        let parent = parent.map(str::to_owned);
        self.sessions.insert(name.clone(), Session { of, parent });
        name
    }

    /// Ends a session, and all that were opened in it.
    fn detach(&mut self, name: &str) {
        let sessions = self.sessions.iter();
        let parents = sessions.map(|(name, session)| (name.as_str(), session.parent.as_deref()));
        for gone in with_all_below(name, parents) {
            self.sessions.remove(&gone);
        }
    }

    fn in_page(&mut self, target: &str, reply: Option<Reply>, call: &Value) -> Out {
        let id = self.next(Asked::InPage(reply, target.to_owned()));
        evaluate(id, target, call)
    }

    fn ask(&mut self, asked: Asked, method: &str, target: Option<&str>, mut params: Map<String, Value>) -> Out {
        if let Some(target) = target {
            params.insert("targetId".into(), json!(target));
        }
        let id = self.next(asked);
        Out::Shim(json!({ "id": id, "method": method, "params": params }))
    }

    fn next(&mut self, asked: Asked) -> u64 {
        self.counter += 1;
        self.asked.insert(self.counter, asked);
        self.counter
    }
}

/// Anything else than an object is no message. Takes the text, as it may be long.
fn message(text: impl AsRef<str>) -> Option<Value> {
    serde_json::from_str(text.as_ref()).ok().filter(Value::is_object)
}

fn event(method: &str, params: Value, session: Option<&str>) -> Out {
    let mut message = json!({ "method": method });
    message["params"] = params;
    if let Some(session) = session {
        message["sessionId"] = json!(session);
    }
    Out::Client(message)
}

/// The shim awaits what an expression comes to, and gives it by value.
fn evaluate(id: u64, target: &str, call: &Value) -> Out {
    let agent = AGENT.trim_end();
    let at = agent.find("(async").unwrap_or_default();
    let params = json!({ "expression": format!("({})({call})", &agent[at..]), "targetId": target });
    Out::Shim(json!({ "id": id, "method": "Runtime.evaluate", "params": params }))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
