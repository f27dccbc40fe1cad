//! Who gets what: a function of the messages so far.
//!
//! Each client has a session of its own with the browser, or with a page, on the one connection that there is. It does not
//! know of it: what it says to the connection goes to that session, and what that session says comes to it as the
//! connection's. Sessions that open below a client's are that client's, and nobody else's.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{envelope::Envelope, text::Text};
use crate::browser::{below::with_all_below, upstream::PLATFORM_MAX};

/// Sessions that one client may have open.
const SESSIONS: usize = 1_024;
/// Commands of one client that may be without an answer.
const UNANSWERED: usize = 16_384;
/// No id is longer: browsers take integers.
const ID: usize = 32;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    /// It goes to the browser.
    Browser(Text),
    /// It goes to a client.
    Client(u64, Text),
    /// A client is where it wanted to be, and may speak.
    Joined(u64),
    /// A client is not where it wanted to be, or not any more, and why.
    Closed(u64, String),
    /// What was asked under this number is answered.
    Answered(u64, Result<Value, String>),
    /// The browser was closed by a client.
    Over,
}

/// Where a client wants to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Browser,
    Page(String),
}

/// A command that is not answered yet.
#[derive(Debug)]
enum Asked {
    /// A client's session, to be opened.
    Root(u64),
    /// A client's own.
    Client(Command),
    /// Asked by us, under that number.
    Own(u64),
    Nothing,
}

#[derive(Debug)]
struct Command {
    client: u64,
    id: String,
    session: Option<String>,
    /// It opens a session.
    attaches: bool,
    /// It ends the browser.
    closes: bool,
}

#[derive(Debug)]
struct Session {
    client: u64,
    /// None of a client's first.
    parent: Option<String>,
}

#[derive(Debug, Default)]
pub struct Core {
    /// The first session of each client, once it is open.
    clients: BTreeMap<u64, Option<String>>,
    sessions: HashMap<String, Session>,
    asked: HashMap<u32, Asked>,
    last: u32,
}

impl Core {
    pub fn join(&mut self, client: u64, place: &Place) -> Vec<Out> {
        self.clients.insert(client, None);
        let asked = Asked::Root(client);
        vec![match place {
            Place::Browser => self.ask(asked, "Target.attachToBrowserTarget", json!({})),
            Place::Page(id) => self.ask(
                asked,
                "Target.attachToTarget",
                json!({ "targetId": id, "flatten": true }),
            ),
        }]
    }

    /// What it opened stays, as with a browser's own port.
    pub fn leave(&mut self, client: u64) -> Vec<Out> {
        let root = self.forget(client);
        root.map(|root| self.detach(&root)).into_iter().collect()
    }

    fn forget(&mut self, client: u64) -> Option<String> {
        self.sessions.retain(|_, session| session.client != client);
        self.asked
            .retain(|_, asked| !matches!(asked, Asked::Client(command) if command.client == client));
        self.clients.remove(&client).flatten()
    }

    /// Asks the browser something of our own.
    pub fn own(&mut self, number: u64, method: &str, params: Value) -> Vec<Out> {
        vec![self.ask(Asked::Own(number), method, params)]
    }

    pub fn client_says(&mut self, client: u64, text: impl Into<Utf8Bytes>) -> Vec<Out> {
        let text = text.into();
        let Some(Some(root)) = self.clients.get(&client) else {
            return Vec::new();
        };
        let nameless = |code: i32, why: &str| {
            let refusal = json!({ "error": { "code": code, "message": why } });
            vec![Out::Client(client, refusal.to_string().into())]
        };
        let Some(message) = Envelope::of(&text) else {
            return nameless(-32700, "JSON: this is no message");
        };
        let Some(id) = message.id.filter(|id| id.get().len() <= ID) else {
            return nameless(-32600, "Message must have integer 'id' property");
        };
        let session = message.session.as_deref();
        let is_own = |name: &str| {
            let found = self.sessions.get(name);
            found.is_some_and(|session| session.client == client && session.parent.is_some())
        };
        let refused = |code: i32, why: &str| {
            let error = json!({ "code": code, "message": why }).to_string();
            Out::Client(client, message.refusal(id.get(), &error))
        };
        if session.is_some_and(|name| !is_own(name)) {
            return vec![refused(-32001, "Session with given id not found.")];
        }
        let to = session.unwrap_or(root).to_owned();
        let method = message.method.as_deref().unwrap_or_default();
        let attaches = matches!(method, "Target.attachToTarget" | "Target.attachToBrowserTarget");
        if attaches && self.has_many(client) {
            let why = format!("{SESSIONS} sessions are open here already; detach from some");
            return vec![refused(-32000, &why)];
        }
        if self.asks_much(client) {
            let why = format!("{UNANSWERED} commands wait for their answers already; wait for some");
            return vec![refused(-32000, &why)];
        }
        let command = Command {
            client,
            id: id.get().to_owned(),
            session: session.map(str::to_owned),
            attaches,
            closes: method == "Browser.close",
        };
        let number = self.number(Asked::Client(command));
        let whole = message.readdressed(Some(&number.to_string()), Some(&to));
        if whole.len() as u64 > PLATFORM_MAX {
            self.asked.remove(&number);
            let why = format!("a command is longer than the {PLATFORM_MAX} bytes that this browser takes");
            return vec![refused(-32000, &why)];
        }
        vec![Out::Browser(whole)]
    }

    fn has_many(&self, client: u64) -> bool {
        let of_client = self.sessions.values().filter(|session| session.client == client);
        of_client.count() >= SESSIONS
    }

    fn asks_much(&self, client: u64) -> bool {
        let is_theirs = |asked: &&Asked| matches!(asked, Asked::Client(command) if command.client == client);
        // Nobody is counted as long as all together are few.
        self.asked.len() >= UNANSWERED && self.asked.values().filter(is_theirs).count() >= UNANSWERED
    }

    pub fn browser_says(&mut self, text: impl Into<Utf8Bytes>) -> Vec<Out> {
        let text = text.into();
        let Some(message) = Envelope::of(&text) else {
            return Vec::new();
        };
        let Some(id) = message.id else {
            return self.event(&message);
        };
        let asked = id.get().parse().ok().and_then(|id: u32| self.asked.remove(&id));
        match asked {
            Some(Asked::Client(command)) => self.answered(&message, &command),
            Some(Asked::Root(client)) => self.opened(&message, client),
            Some(Asked::Own(number)) => {
                let answer = message.failure().map_or_else(|| Ok(message.result()), Err);
                vec![Out::Answered(number, answer)]
            }
            Some(Asked::Nothing) | None => Vec::new(),
        }
    }

    fn opened(&mut self, message: &Envelope<'_>, client: u64) -> Vec<Out> {
        let opened = message.given();
        match (opened, self.clients.get_mut(&client)) {
            (Some(root), Some(place)) => {
                *place = Some(root.clone());
                self.sessions.insert(root, Session { client, parent: None });
                vec![Out::Joined(client)]
            }
            (Some(root), None) => vec![self.detach(&root)],
            (None, Some(_)) => {
                self.clients.remove(&client);
                let why = message
                    .failure()
                    .unwrap_or_else(|| "the browser gives no session".to_owned());
                vec![Out::Closed(client, why)]
            }
            (None, None) => Vec::new(),
        }
    }

    fn answered(&mut self, message: &Envelope<'_>, command: &Command) -> Vec<Out> {
        let Command {
            client, id, session, ..
        } = command;
        if command.attaches {
            let parent = session.clone().or_else(|| self.clients.get(client).cloned().flatten());
            if let (Some(opened), Some(parent)) = (message.given(), parent) {
                self.open(opened, &parent);
            }
        }
        let mut outs = vec![Out::Client(*client, message.readdressed(Some(id), session.as_deref()))];
        if command.closes && message.failure().is_none() {
            outs.push(Out::Over);
        }
        outs
    }

    fn event(&mut self, message: &Envelope<'_>) -> Vec<Out> {
        let method = message.method.as_deref().unwrap_or_default();
        let from = message.session.as_deref();
        let to = from
            .and_then(|from| self.sessions.get(from))
            .map(|session| (session.client, session.parent.is_none()));
        let mut outs = Vec::new();
        if let Some((client, is_root)) = to {
            let session = from.filter(|_| !is_root);
            outs.push(Out::Client(client, message.readdressed(None, session)));
        }
        match (method, message.subject(), from) {
            ("Target.attachedToTarget", Some(opened), Some(parent)) => self.open(opened, parent),
            ("Target.detachedFromTarget", Some(closed), _) => outs.extend(self.close(&closed)),
            _ => {}
        }
        outs
    }

    fn open(&mut self, name: String, parent: &str) {
        let Some(client) = self.sessions.get(parent).map(|session| session.client) else {
            return;
        };
        let parent = Some(parent.to_owned());
        self.sessions.entry(name).or_insert(Session { client, parent });
    }

    /// A session is gone, and all below it.
    fn close(&mut self, name: &str) -> Vec<Out> {
        let Some(closed) = self.sessions.remove(name) else {
            return Vec::new();
        };
        let sessions = self.sessions.iter();
        let parents = sessions.map(|(name, session)| (name.as_str(), session.parent.as_deref()));
        let gone = with_all_below(name, parents);
        self.sessions.retain(|name, _| !gone.contains(name));
        // Nothing answers any more.
        let waits_in_vain = |asked: &Asked| matches!(asked, Asked::Client(command) if command.session.as_ref().is_some_and(|session| gone.contains(session)));
        self.asked.retain(|_, asked| !waits_in_vain(asked));
        if closed.parent.is_some() {
            return Vec::new();
        }
        self.forget(closed.client);
        vec![Out::Closed(
            closed.client,
            "what it was attached to is closed".to_owned(),
        )]
    }

    fn detach(&mut self, session: &str) -> Out {
        self.ask(
            Asked::Nothing,
            "Target.detachFromTarget",
            json!({ "sessionId": session }),
        )
    }

    fn ask(&mut self, asked: Asked, method: &str, params: Value) -> Out {
        let id = self.number(asked);
        Out::Browser(
            json!({ "id": id, "method": method, "params": params })
                .to_string()
                .into(),
        )
    }

    /// A number that no unanswered command has. Browsers take 31 bits.
    fn number(&mut self, asked: Asked) -> u32 {
        loop {
            self.last = self.last % (i32::MAX as u32) + 1;
            if let std::collections::hash_map::Entry::Vacant(free) = self.asked.entry(self.last) {
                free.insert(asked);
                return self.last;
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
