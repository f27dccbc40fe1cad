//! What a client is told and what the shim is asked: a function of the messages so far.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::super::discovery;

const AGENT: &str = include_str!("agent.js");
/// The one browser context there is.
const CONTEXT: &str = "moltinit";
/// Contexts of a document: its own, and one for each world that a client has named.
const CONTEXTS_A_DOCUMENT: u64 = 100;
/// Looks at a page after something that may have changed it.
const LOOKS: u32 = 20;
/// A piece of a stream, in base64's characters: divisible by four, so that each piece can be decoded alone.
const PIECE: usize = 1 << 20;
/// Streams kept for a client that does not close them.
const STREAMS: usize = 4;

/// A message, and to whom.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    Client(Value),
    Shim(Value),
}

#[derive(Debug, Default)]
struct Target {
    url: String,
    title: String,
    /// The document that the page said it shows.
    document: Option<String>,
    opens: u64,
    /// Counts documents.
    generation: u64,
    loaded: bool,
    looks: u32,
    looking: bool,
}

impl Target {
    fn loader(&self, id: &str) -> String {
        format!("{id}-{}", self.generation)
    }

    fn context(&self, index: u64) -> u64 {
        self.generation * CONTEXTS_A_DOCUMENT + 1 + index
    }
}

/// Whose commands carry a session's id.
#[derive(Debug)]
enum Session {
    /// The browser's.
    Browser,
    /// A tab's, which only leads to its page's.
    Tab(String),
    Page {
        target: String,
        has_runtime: bool,
        worlds: Vec<String>,
    },
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
    Nothing,
}

/// Who waits for an answer.
#[derive(Debug, Clone)]
struct Reply {
    id: Value,
    session: Option<String>,
}

impl Reply {
    fn with(&self, body: (&str, Value)) -> Out {
        let mut message = json!({ "id": self.id, body.0: body.1 });
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

/// One client's view of one shim.
#[derive(Debug, Default)]
pub struct Bridge {
    targets: BTreeMap<String, Target>,
    sessions: BTreeMap<String, Session>,
    asked: HashMap<u64, Asked>,
    streams: BTreeMap<String, String>,
    counter: u64,
    /// New targets are announced.
    discovers: bool,
    /// New targets are attached to, as pages or as tabs.
    attaches: Option<Kind>,
}

/// Anything else than an object is no message.
fn message(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().filter(Value::is_object)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Page,
    Tab,
}

impl Bridge {
    /// Takes a message of the client's.
    pub fn client_says(&mut self, text: &str) -> Vec<Out> {
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
            Some(session) => match self.sessions.get(session) {
                None => return vec![reply.error("Session with given id not found.")],
                Some(Session::Page { target, .. }) => Some((session.clone(), target.clone())),
                Some(Session::Browser) => None,
                Some(Session::Tab(target)) => {
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
    pub fn shim_says(&mut self, text: &str) -> Vec<Out> {
        let Some(mut message) = message(text) else {
            return Vec::new();
        };
        match message["method"].as_str() {
            Some("Target.targetCreated") => return self.created(&message["params"]["targetInfo"]),
            Some("Target.targetDestroyed") => {
                let id = message["params"]["targetId"].as_str().unwrap_or_default().to_owned();
                return self.destroyed(&id);
            }
            // Its other events name the wrong frame, and are made up here.
            Some(_) => return Vec::new(),
            None => {}
        }
        let Some(asked) = message["id"].as_u64().and_then(|id| self.asked.remove(&id)) else {
            return Vec::new();
        };
        let error = message["error"]["message"].as_str().map(str::to_owned);
        self.answered(asked, message["result"].take(), error)
    }

    /// Looks at pages that something may have become of. To be called a few times a second.
    pub fn tick(&mut self) -> Vec<Out> {
        let busy: Vec<&String> = self.asked.values().filter_map(Asked::in_page).collect();
        let due = |(id, target): &(&String, &Target)| !target.looking && (target.looks > 0 || busy.contains(id));
        let due: Vec<String> = self.targets.iter().filter(due).map(|(id, _)| id.clone()).collect();
        let mut outs = Vec::new();
        for id in due {
            if let Some(target) = self.targets.get_mut(&id) {
                target.looks = target.looks.saturating_sub(1);
                target.looking = true;
            }
            outs.push(self.in_page(&id, None, &json!({ "op": "state" })));
        }
        outs
    }

    fn of_browser(&mut self, reply: &Reply, method: &str, params: Map<String, Value>) -> Vec<Out> {
        let id = params
            .get("targetId")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        match method {
            "Browser.getVersion" => vec![reply.ok(discovery::browser_version())],
            "Target.getBrowserContexts" => vec![reply.ok(json!({ "browserContextIds": [] }))],
            "Target.setDiscoverTargets" => {
                self.discovers = params.get("discover") == Some(&json!(true));
                let known: Vec<String> = self.targets.keys().filter(|_| self.discovers).cloned().collect();
                let mut outs: Vec<Out> = known.iter().flat_map(|id| self.announce(id)).collect();
                outs.push(reply.ok(json!({})));
                outs
            }
            "Target.setAutoAttach" => {
                let wants = params.get("autoAttach") == Some(&json!(true));
                self.attaches = wants.then(|| kind(params.get("filter")));
                let known: Vec<String> = self.targets.keys().filter(|_| wants).cloned().collect();
                let mut outs: Vec<Out> = known.iter().flat_map(|id| self.attach_automatically(id)).collect();
                outs.push(reply.ok(json!({})));
                outs
            }
            "Target.getTargets" => {
                let infos: Vec<Value> = self.targets.keys().map(|id| self.info(id, Kind::Page)).collect();
                vec![reply.ok(json!({ "targetInfos": infos }))]
            }
            "Target.getTargetInfo" if id.is_empty() => {
                let info = json!({
                    "targetId": CONTEXT, "type": "browser", "title": "", "url": "", "attached": true, "canAccessOpener": false,
                });
                vec![reply.ok(json!({ "targetInfo": info }))]
            }
            "Target.getTargetInfo" if self.targets.contains_key(&id) => {
                vec![reply.ok(json!({ "targetInfo": self.info(&id, Kind::Page) }))]
            }
            "Target.attachToBrowserTarget" => {
                let session = self.open(Session::Browser);
                vec![reply.ok(json!({ "sessionId": session }))]
            }
            "Target.attachToTarget" if self.targets.contains_key(&id) => {
                let (session, attached) = self.attach(&id, Kind::Page, reply.session.as_deref());
                vec![attached, reply.ok(json!({ "sessionId": session }))]
            }
            "Target.getTargetInfo" | "Target.attachToTarget" => vec![reply.error("No target with given id found")],
            "Target.detachFromTarget" => {
                let session = params.get("sessionId").and_then(Value::as_str).unwrap_or_default();
                self.sessions.remove(session);
                vec![reply.ok(json!({}))]
            }
            "Target.activateTarget" => {
                vec![self.ask(Asked::Plain(reply.clone()), "Page.bringToFront", Some(&id), params)]
            }
            "Target.createTarget" | "Target.closeTarget" | "Browser.close" => {
                vec![self.ask(Asked::Plain(reply.clone()), method, None, params)]
            }
            "Target.createBrowserContext" | "Target.disposeBrowserContext" => {
                vec![reply.error("this Worker's browser has one context only; use the default one")]
            }
            _ if is_setting(method) => vec![reply.ok(json!({}))],
            _ => vec![self.ask(Asked::Plain(reply.clone()), method, None, params)],
        }
    }

    /// A tab's session is only good for being led on to its page's.
    fn of_tab(&mut self, reply: &Reply, method: &str, target: &str) -> Vec<Out> {
        let mut outs = Vec::new();
        if method == "Target.setAutoAttach" && self.targets.contains_key(target) {
            outs.push(self.attach(target, Kind::Page, reply.session.as_deref()).1);
        }
        outs.push(reply.ok(json!({})));
        outs
    }

    fn of_page(
        &mut self,
        reply: &Reply,
        method: &str,
        mut params: Map<String, Value>,
        session: &str,
        target: &str,
    ) -> Vec<Out> {
        let get = |name: &str| params.get(name).cloned().unwrap_or(Value::Null);
        let flag = |name: &str| get(name) == json!(true);
        let in_page = |call: Value| (Some(reply.clone()), call);
        let (waits, call) = match method {
            "Runtime.evaluate" => in_page(json!({
                "op": "value", "expression": get("expression"), "awaited": flag("awaitPromise"), "byValue": flag("returnByValue"),
            })),
            "Runtime.callFunctionOn" => in_page(json!({
                "op": "value", "declaration": get("functionDeclaration"), "self": get("objectId"),
                "args": params.get("arguments").cloned().unwrap_or(json!([])),
                "awaited": flag("awaitPromise"), "byValue": flag("returnByValue"),
            })),
            "Runtime.getProperties" => in_page(json!({ "op": "properties", "objectId": get("objectId") })),
            "Runtime.releaseObject" => in_page(json!({ "op": "release", "objectId": get("objectId") })),
            "DOM.resolveNode" => in_page(json!({ "op": "resolve", "backendNodeId": get("backendNodeId") })),
            "DOM.describeNode" => in_page(json!({ "op": "node", "objectId": get("objectId") })),
            "DOM.getContentQuads" => in_page(json!({ "op": "quads", "objectId": get("objectId") })),
            "DOM.getBoxModel" if params.contains_key("objectId") => {
                in_page(json!({ "op": "box", "objectId": get("objectId") }))
            }
            "DOM.scrollIntoViewIfNeeded" if params.contains_key("objectId") => {
                in_page(json!({ "op": "scroll", "objectId": get("objectId") }))
            }
            "DOM.focus" if params.contains_key("objectId") => {
                in_page(json!({ "op": "focus", "objectId": get("objectId") }))
            }
            "Page.getLayoutMetrics" => in_page(json!({ "op": "metrics" })),
            _ => (None, Value::Null),
        };
        if waits.is_some() {
            self.watch(target);
            return vec![self.in_page(target, waits, &call)];
        }
        match method {
            "Page.navigate" | "Page.reload" => {
                // Whatever comes is new, even where nobody has looked yet at what was there.
                if let Some(target) = self.targets.get_mut(target) {
                    target.document.get_or_insert_default();
                }
                let asked = Asked::Navigate(reply.clone(), target.to_owned());
                let mut only = Map::new();
                if let Some(url) = params.remove("url") {
                    only.insert("url".into(), url);
                }
                vec![self.ask(asked, method, Some(target), only)]
            }
            "Page.getFrameTree" => vec![reply.ok(json!({ "frameTree": { "frame": self.frame(target) } }))],
            "Runtime.enable" => {
                if let Some(Session::Page { has_runtime, .. }) = self.sessions.get_mut(session) {
                    *has_runtime = true;
                }
                self.watch(target);
                let mut outs = self.contexts(session, target);
                outs.push(reply.ok(json!({})));
                outs
            }
            "Page.createIsolatedWorld" => {
                let world = get("worldName").as_str().unwrap_or_default().to_owned();
                let index = self.world(session, world);
                let context = self.targets.get(target).map_or(0, |target| target.context(index));
                let mut outs = self.contexts(session, target);
                outs.push(reply.ok(json!({ "executionContextId": context })));
                outs
            }
            "Page.addScriptToEvaluateOnNewDocument" => {
                if let Some(world) = params.get("worldName").and_then(Value::as_str) {
                    self.world(session, world.to_owned());
                }
                if get("source").as_str().unwrap_or_default().is_empty() {
                    return vec![reply.ok(json!({ "identifier": "0" }))];
                }
                let only = [("source".to_owned(), get("source"))].into_iter().collect();
                vec![self.ask(Asked::Plain(reply.clone()), method, Some(target), only)]
            }
            "Page.captureScreenshot" => {
                params.retain(|name, _| ["format", "quality", "clip"].contains(&name.as_str()));
                vec![self.ask(Asked::Plain(reply.clone()), method, Some(target), params)]
            }
            "Page.printToPDF" => {
                let streamed = params.remove("transferMode") == Some(json!("ReturnAsStream"));
                let asked = if streamed {
                    Asked::Stream(reply.clone())
                } else {
                    Asked::Plain(reply.clone())
                };
                vec![self.ask(asked, method, Some(target), params)]
            }
            "IO.read" => vec![self.read(reply, get("handle").as_str().unwrap_or_default())],
            "IO.close" => {
                self.streams.remove(get("handle").as_str().unwrap_or_default());
                vec![reply.ok(json!({}))]
            }
            "Page.close" => {
                let only = [("targetId".to_owned(), json!(target))].into_iter().collect();
                vec![self.ask(Asked::Plain(reply.clone()), "Target.closeTarget", None, only)]
            }
            "Target.getTargetInfo" | "Target.attachToTarget" | "Target.detachFromTarget" => {
                if !params.contains_key("targetId") {
                    params.insert("targetId".into(), json!(target));
                }
                self.of_browser(reply, method, params)
            }
            "Runtime.runIfWaitingForDebugger" | "Runtime.releaseObjectGroup" | "Runtime.addBinding" => {
                vec![reply.ok(json!({}))]
            }
            "Input.dispatchMouseEvent" => self.mouse(reply, target, params),
            "Input.dispatchKeyEvent" => self.key(reply, target, params),
            "Input.insertText" => {
                self.watch(target);
                vec![self.ask(Asked::Plain(reply.clone()), method, Some(target), params)]
            }
            _ if method.ends_with(".enable") || method.ends_with(".disable") || method.starts_with("Target.") => {
                vec![reply.ok(json!({}))]
            }
            _ if is_setting(method) => vec![self.ask(Asked::Optional(reply.clone()), method, Some(target), params)],
            _ => vec![self.ask(Asked::Plain(reply.clone()), method, Some(target), params)],
        }
    }

    /// The shim presses where its mouse is, whatever the command says.
    fn mouse(&mut self, reply: &Reply, target: &str, params: Map<String, Value>) -> Vec<Out> {
        self.watch(target);
        let mut outs = Vec::new();
        if params.get("type") != Some(&json!("mouseMoved")) {
            let mut there = params.clone();
            there.insert("type".into(), json!("mouseMoved"));
            outs.push(self.ask(Asked::Nothing, "Input.dispatchMouseEvent", Some(target), there));
        }
        outs.push(self.ask(
            Asked::Plain(reply.clone()),
            "Input.dispatchMouseEvent",
            Some(target),
            params,
        ));
        outs
    }

    /// The shim knows keys by the names of an American keyboard, and takes a raw press for a press and a release.
    fn key(&mut self, reply: &Reply, target: &str, mut params: Map<String, Value>) -> Vec<Out> {
        self.watch(target);
        let key = params.get("key").and_then(Value::as_str).unwrap_or_default();
        if key.chars().count() == 1 && !key.is_ascii() {
            let text = params
                .get("text")
                .cloned()
                .filter(|_| params.get("type") != Some(&json!("keyUp")));
            let Some(text) = text else {
                return vec![reply.ok(json!({}))];
            };
            let only = [("text".to_owned(), text)].into_iter().collect();
            return vec![self.ask(Asked::Plain(reply.clone()), "Input.insertText", Some(target), only)];
        }
        if params.get("type") == Some(&json!("rawKeyDown")) {
            params.insert("type".into(), json!("keyDown"));
        }
        vec![self.ask(
            Asked::Plain(reply.clone()),
            "Input.dispatchKeyEvent",
            Some(target),
            params,
        )]
    }

    fn read(&mut self, reply: &Reply, handle: &str) -> Out {
        let Some(rest) = self.streams.get_mut(handle) else {
            return reply.error("Invalid stream handle");
        };
        // Base64 is ASCII, so any byte is a boundary.
        let after = rest.split_off(PIECE.min(rest.len()));
        let piece = std::mem::replace(rest, after);
        let eof = piece.is_empty();
        reply.ok(json!({ "data": piece, "base64Encoded": true, "eof": eof }))
    }

    fn answered(&mut self, asked: Asked, result: Value, error: Option<String>) -> Vec<Out> {
        match (asked, error) {
            (Asked::Nothing, _) => Vec::new(),
            (Asked::Optional(reply), Some(error)) if error.starts_with("Unknown ") => vec![reply.ok(json!({}))],
            (Asked::Navigate(reply, target), Some(error)) => match error.find("net::") {
                // As a browser has it: that a page cannot be had is no error of the command.
                Some(at) => {
                    let text = error[at..].split_whitespace().next().unwrap_or_default();
                    vec![reply.ok(json!({ "frameId": target, "errorText": text }))]
                }
                None => vec![reply.error(&error)],
            },
            (Asked::Plain(reply) | Asked::Optional(reply) | Asked::Stream(reply), Some(error)) => {
                vec![reply.error(&error)]
            }
            (Asked::InPage(reply, target), Some(error)) => {
                self.looked(&target);
                reply.map(|reply| reply.error(&error)).into_iter().collect()
            }
            (Asked::Arrived(reply, _), Some(error)) => vec![reply.error(&error)],
            (Asked::Plain(reply) | Asked::Optional(reply), None) => vec![reply.ok(result)],
            (Asked::Stream(reply), None) => {
                let data = result["data"].as_str().unwrap_or_default().to_owned();
                self.counter += 1;
                let handle = self.counter.to_string();
                while self.streams.len() >= STREAMS {
                    self.streams.pop_first();
                }
                self.streams.insert(handle.clone(), data);
                vec![reply.ok(json!({ "data": "", "stream": handle }))]
            }
            (Asked::Navigate(reply, target), None) => {
                let id = self.next(Asked::Arrived(reply, target.clone()));
                vec![evaluate(id, &target, &json!({ "op": "state" }))]
            }
            (Asked::Arrived(reply, target), None) => {
                let mut outs =
                    agents_answer(&result).map_or_else(Vec::new, |mut said| self.saw(&target, said["state"].take()));
                let loader = self.targets.get(&target).map(|found| found.loader(&target));
                outs.push(reply.ok(json!({ "frameId": target, "loaderId": loader })));
                outs
            }
            (Asked::InPage(reply, target), None) => {
                self.looked(&target);
                let Some(mut said) = agents_answer(&result) else {
                    self.watch(&target);
                    // It went elsewhere meanwhile.
                    return reply
                        .map(|reply| reply.error("Cannot find context with specified id"))
                        .into_iter()
                        .collect();
                };
                // What happened to the page happened before or while it was asked.
                let mut outs = self.saw(&target, said["state"].take());
                if let Some(reply) = reply {
                    outs.push(match said.get_mut("error").map(Value::take) {
                        Some(error) => reply.with(("error", error)),
                        None => reply.ok(said["result"].take()),
                    });
                }
                outs
            }
        }
    }

    fn looked(&mut self, target: &str) {
        if let Some(target) = self.targets.get_mut(target) {
            target.looking = false;
        }
    }

    fn watch(&mut self, target: &str) {
        if let Some(target) = self.targets.get_mut(target) {
            target.looks = LOOKS;
        }
    }

    /// Takes in what a page says of itself; gives the events that this makes.
    fn saw(&mut self, id: &str, mut state: Value) -> Vec<Out> {
        let Some(target) = self.targets.get_mut(id) else {
            return Vec::new();
        };
        let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
        let (document, url, title) = (text("doc"), text("url"), text("title"));
        let (opens, complete) = (state["opens"].as_u64().unwrap_or(0), state["ready"] == "complete");
        let is_first = target.document.is_none();
        let is_new = !is_first && target.document.as_deref() != Some(&document);
        let was_rewritten = !is_new && opens > target.opens;
        let is_renamed = target.url != url || target.title != title;
        let moved = !is_new && !is_first && target.url != url;
        target.document = Some(document);
        (target.opens, target.url, target.title) = (opens, url.clone(), title);
        let mut events: Vec<(&str, Value)> = Vec::new();
        if is_new {
            target.generation += 1;
            target.looks = LOOKS;
        }
        if is_new || was_rewritten {
            target.loaded = false;
        }
        let loads = complete && !std::mem::replace(&mut target.loaded, complete);
        let loader = target.loader(id);
        let stage = |name: &str| {
            (
                "Page.lifecycleEvent",
                json!({ "frameId": id, "loaderId": loader, "name": name, "timestamp": 0 }),
            )
        };
        let frame = self.frame(id);
        if is_new {
            events.push(("Page.frameStartedLoading", json!({ "frameId": id })));
            events.push(stage("init"));
            events.push(("Runtime.executionContextsCleared", json!({})));
            events.push(("Page.frameNavigated", json!({ "frame": frame, "type": "Navigation" })));
        } else if was_rewritten {
            // What had loaded has not any more.
            events.push(stage("init"));
        } else if moved {
            events.push((
                "Page.navigatedWithinDocument",
                json!({ "frameId": id, "url": url, "navigationType": "other" }),
            ));
        }
        let mut outs = self.tell(id, &events);
        if is_new {
            for session in self.pages(id) {
                outs.extend(self.contexts(&session, id));
            }
        }
        let context = self.targets.get(id).map_or(0, |target| target.context(0));
        let mut logs: Vec<(&str, Value)> = Vec::new();
        for log in state["logs"].as_array_mut().into_iter().flatten() {
            logs.push((
                "Runtime.consoleAPICalled",
                json!({
                    "type": log[0].as_str().map(|kind| if kind == "warn" { "warning" } else { kind }), "args": log[1].take(),
                    "executionContextId": context, "timestamp": 0, "stackTrace": { "callFrames": [] },
                }),
            ));
        }
        outs.extend(self.tell(id, &logs));
        if loads {
            outs.extend(self.tell(
                id,
                &[
                    stage("DOMContentLoaded"),
                    ("Page.domContentEventFired", json!({ "timestamp": 0 })),
                    stage("load"),
                    ("Page.loadEventFired", json!({ "timestamp": 0 })),
                    stage("networkAlmostIdle"),
                    stage("networkIdle"),
                    ("Page.frameStoppedLoading", json!({ "frameId": id })),
                ],
            ));
        }
        if is_renamed && self.discovers {
            outs.push(event(
                "Target.targetInfoChanged",
                json!({ "targetInfo": self.info(id, Kind::Page) }),
                None,
            ));
        }
        outs
    }

    fn created(&mut self, info: &Value) -> Vec<Out> {
        let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        let id = text("targetId");
        if id.is_empty() || self.targets.contains_key(&id) {
            return Vec::new();
        }
        let target = Target {
            url: text("url"),
            title: text("title"),
            looks: LOOKS,
            ..Target::default()
        };
        self.targets.insert(id.clone(), target);
        let mut outs = if self.discovers { self.announce(&id) } else { Vec::new() };
        outs.extend(self.attach_automatically(&id));
        outs
    }

    fn destroyed(&mut self, id: &str) -> Vec<Out> {
        let mut outs = Vec::new();
        if self.targets.remove(id).is_none() {
            return outs;
        }
        let gone =
            |session: &Session| matches!(session, Session::Tab(of) | Session::Page { target: of, .. } if of == id);
        let sessions: Vec<(String, bool)> = self
            .sessions
            .iter()
            .filter(|(_, session)| gone(session))
            .map(|(name, session)| (name.clone(), matches!(session, Session::Tab(_))))
            .collect();
        for (session, is_tab) in sessions {
            self.sessions.remove(&session);
            let target = if is_tab { tab(id) } else { id.to_owned() };
            let gone = json!({ "sessionId": session, "targetId": target });
            outs.push(event("Target.detachedFromTarget", gone, None));
        }
        if self.discovers {
            outs.push(event("Target.targetDestroyed", json!({ "targetId": id }), None));
            outs.push(event("Target.targetDestroyed", json!({ "targetId": tab(id) }), None));
        }
        outs
    }

    fn announce(&self, id: &str) -> Vec<Out> {
        let mut kinds = vec![Kind::Page];
        // A client that asks for tabs asks for both.
        kinds.insert(0, Kind::Tab);
        let created = |kind| {
            event(
                "Target.targetCreated",
                json!({ "targetInfo": self.info(id, kind) }),
                None,
            )
        };
        kinds.into_iter().map(created).collect()
    }

    fn attach_automatically(&mut self, id: &str) -> Vec<Out> {
        let Some(kind) = self.attaches else {
            return Vec::new();
        };
        vec![self.attach(id, kind, None).1]
    }

    /// A session with a target, and the event that says so to `parent`.
    fn attach(&mut self, id: &str, kind: Kind, parent: Option<&str>) -> (String, Out) {
        let session = self.open(match kind {
            Kind::Tab => Session::Tab(id.to_owned()),
            Kind::Page => Session::Page {
                target: id.to_owned(),
                has_runtime: false,
                worlds: Vec::new(),
            },
        });
        let attached = json!({ "sessionId": session, "targetInfo": self.info(id, kind), "waitingForDebugger": false });
        (session, event("Target.attachedToTarget", attached, parent))
    }

    fn open(&mut self, session: Session) -> String {
        self.counter += 1;
        let name = format!("moltinit-{}", self.counter);
        self.sessions.insert(name.clone(), session);
        name
    }

    fn info(&self, id: &str, kind: Kind) -> Value {
        let target = self.targets.get(id);
        json!({
            "targetId": if kind == Kind::Tab { tab(id) } else { id.to_owned() },
            "type": if kind == Kind::Tab { "tab" } else { "page" },
            "title": target.map(|target| &target.title), "url": target.map(|target| &target.url),
            "attached": true, "canAccessOpener": false, "browserContextId": CONTEXT,
        })
    }

    fn frame(&self, id: &str) -> Value {
        let target = self.targets.get(id);
        json!({
            "id": id, "loaderId": target.map(|target| target.loader(id)), "url": target.map(|target| &target.url),
            "domainAndRegistry": "", "securityOrigin": "://", "mimeType": "text/html", "secureContextType": "Secure",
            "crossOriginIsolatedContextType": "NotIsolated", "gatedAPIFeatures": [],
        })
    }

    /// The index of a world's context.
    fn world(&mut self, session: &str, name: String) -> u64 {
        let Some(Session::Page { worlds, .. }) = self.sessions.get_mut(session) else {
            return 0;
        };
        if !worlds.contains(&name) {
            worlds.push(name.clone());
        }
        worlds
            .iter()
            .position(|world| *world == name)
            .map_or(0, |index| index as u64 + 1)
    }

    /// Tells a session of the contexts of the present document.
    fn contexts(&self, session: &str, id: &str) -> Vec<Out> {
        let (
            Some(Session::Page {
                has_runtime: true,
                worlds,
                ..
            }),
            Some(target),
        ) = (self.sessions.get(session), self.targets.get(id))
        else {
            return Vec::new();
        };
        let names = std::iter::once("").chain(worlds.iter().map(String::as_str));
        let created = names.zip(0..).map(|(name, index)| {
            let kind = if index == 0 { "default" } else { "isolated" };
            let context = target.context(index);
            let context = json!({
                "id": context, "uniqueId": format!("{id}-{context}"), "origin": "", "name": name,
                "auxData": { "isDefault": index == 0, "type": kind, "frameId": id },
            });
            event(
                "Runtime.executionContextCreated",
                json!({ "context": context }),
                Some(session),
            )
        });
        created.collect()
    }

    /// The sessions of a page.
    fn pages(&self, id: &str) -> Vec<String> {
        let of_page = |session: &Session| matches!(session, Session::Page { target, .. } if target == id);
        let found = self.sessions.iter().filter(|(_, session)| of_page(session));
        found.map(|(name, _)| name.clone()).collect()
    }

    fn tell(&self, id: &str, events: &[(&str, Value)]) -> Vec<Out> {
        let mut outs = Vec::new();
        for session in self.pages(id) {
            outs.extend(
                events
                    .iter()
                    .map(|(method, params)| event(method, params.clone(), Some(&session))),
            );
        }
        outs
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

impl Asked {
    /// The page in which a client waits for something.
    fn in_page(&self) -> Option<&String> {
        match self {
            Asked::InPage(Some(_), target) => Some(target),
            _ => None,
        }
    }
}

fn event(method: &str, params: Value, session: Option<&str>) -> Out {
    let mut message = json!({ "method": method, "params": params });
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

fn agents_answer(result: &Value) -> Option<Value> {
    serde_json::from_str(result["result"]["value"].as_str()?).ok()
}

/// What a client sets up, which a shim that cannot do it may leave undone.
fn is_setting(method: &str) -> bool {
    let command = method.split('.').nth(1).unwrap_or_default();
    command.starts_with("set") && command != "setContent" || command.starts_with("clear") || command == "enable"
}

/// Puppeteer comes to pages by way of their tabs, and says so by leaving pages out.
fn kind(filter: Option<&Value>) -> Kind {
    let excluded = |entry: &Value| entry["type"] == "page" && entry["exclude"] == true;
    let excludes = filter
        .and_then(Value::as_array)
        .is_some_and(|entries| entries.iter().any(excluded));
    if excludes { Kind::Tab } else { Kind::Page }
}

fn tab(id: &str) -> String {
    format!("tab-{id}")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
