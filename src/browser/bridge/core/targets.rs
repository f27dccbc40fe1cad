//! Pages: how they come and go, what each says of itself, and the events that this makes.

use serde_json::{Value, json};

use super::{Bridge, CONTEXT, Kind, Of, Out, event};

/// Contexts of a document: its own, and one for each world that a client has named.
const CONTEXTS_A_DOCUMENT: u64 = 100;
/// Looks at a page after something that may have changed it.
const LOOKS: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Target {
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
    /// It goes elsewhere, and nobody had looked at what was there.
    leaves_unseen: bool,
    /// The shim stops its requests.
    pub(super) intercepted: bool,
}

impl Target {
    pub(super) fn loader(&self, id: &str) -> String {
        format!("{id}-{}", self.generation)
    }

    pub(super) fn context(&self, index: u64) -> u64 {
        self.generation * CONTEXTS_A_DOCUMENT + 1 + index
    }

    /// One look at a time, and one whenever a client waits for something in the page.
    pub(super) fn is_due(&self, is_busy: bool) -> bool {
        !self.looking && (self.looks > 0 || is_busy)
    }

    pub(super) fn look(&mut self) {
        self.looks = self.looks.saturating_sub(1);
        self.looking = true;
    }

    /// What it arrives at is new, even where nobody has looked yet at what was there. What is seen on the way may still be
    /// that.
    pub(super) fn leave(&mut self) {
        self.leaves_unseen |= self.document.is_none();
    }
}

impl Bridge {
    pub(super) fn created(&mut self, info: &Value) -> Vec<Out> {
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
        let mut outs = Vec::new();
        for session in self.interested(|interest| interest.discovers) {
            outs.extend(self.announce(&id, session.as_deref()));
        }
        for session in self.interested(|interest| interest.attaches.is_some()) {
            outs.extend(self.attach_automatically(&id, session.as_deref()));
        }
        outs
    }

    pub(super) fn destroyed(&mut self, id: &str) -> Vec<Out> {
        let mut outs = Vec::new();
        if self.targets.remove(id).is_none() {
            return outs;
        }
        // Pages before the tabs that led to them.
        for of in [Kind::Page, Kind::Tab] {
            for name in self.sessions_of(id, of) {
                let Some(gone) = self.sessions.remove(&name) else {
                    continue;
                };
                let target = if of == Kind::Tab { tab(id) } else { id.to_owned() };
                let detached = json!({ "sessionId": name, "targetId": target });
                outs.push(event("Target.detachedFromTarget", detached, gone.parent.as_deref()));
            }
        }
        for session in self.interested(|_| true) {
            let session = session.as_deref();
            let Some(interest) = self.interest(session) else {
                continue;
            };
            interest.automatic.remove(id);
            if interest.discovers {
                for id in [id.to_owned(), tab(id)] {
                    outs.push(event("Target.targetDestroyed", json!({ "targetId": id }), session));
                }
            }
        }
        outs
    }

    pub(super) fn announce(&self, id: &str, session: Option<&str>) -> Vec<Out> {
        // A client that asks for tabs asks for both.
        let created = |kind| {
            let info = json!({ "targetInfo": self.info(id, kind) });
            event("Target.targetCreated", info, session)
        };
        [Kind::Tab, Kind::Page].map(created).into()
    }

    pub(super) fn watch(&mut self, target: &str) {
        if let Some(target) = self.targets.get_mut(target) {
            target.looks = LOOKS;
        }
    }

    pub(super) fn looked(&mut self, target: &str) {
        if let Some(target) = self.targets.get_mut(target) {
            target.looking = false;
        }
    }

    /// Takes in what a page says of itself, and whether it does so when a navigation is over; gives the events that this
    /// makes.
    pub(super) fn saw(&mut self, id: &str, mut state: Value, has_arrived: bool) -> Vec<Out> {
        let Some(target) = self.targets.get_mut(id) else {
            return Vec::new();
        };
        let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
        let (document, url, title) = (text("doc"), text("url"), text("title"));
        let (opens, complete) = (state["opens"].as_u64().unwrap_or(0), state["ready"] == "complete");
        let is_first = target.document.is_none();
        let arrives_unseen = has_arrived && std::mem::take(&mut target.leaves_unseen);
        let is_new = arrives_unseen || !is_first && target.document.as_deref() != Some(&document);
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
            for session in self.sessions_of(id, Kind::Page) {
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
        if is_renamed {
            let info = json!({ "targetInfo": self.info(id, Kind::Page) });
            for session in self.interested(|interest| interest.discovers) {
                outs.push(event("Target.targetInfoChanged", info.clone(), session.as_deref()));
            }
        }
        outs
    }

    pub(super) fn info(&self, id: &str, kind: Kind) -> Value {
        let target = self.targets.get(id);
        json!({
            "targetId": if kind == Kind::Tab { tab(id) } else { id.to_owned() },
            "type": if kind == Kind::Tab { "tab" } else { "page" },
            "title": target.map(|target| &target.title), "url": target.map(|target| &target.url),
            "attached": true, "canAccessOpener": false, "browserContextId": CONTEXT,
        })
    }

    pub(super) fn frame(&self, id: &str) -> Value {
        let target = self.targets.get(id);
        json!({
            "id": id, "loaderId": target.map(|target| target.loader(id)), "url": target.map(|target| &target.url),
            "domainAndRegistry": "", "securityOrigin": "://", "mimeType": "text/html", "secureContextType": "Secure",
            "crossOriginIsolatedContextType": "NotIsolated", "gatedAPIFeatures": [],
        })
    }

    /// The index of a world's context.
    pub(super) fn world(&mut self, session: &str, name: String) -> u64 {
        let Some(Of::Page { worlds, .. }) = self.sessions.get_mut(session).map(|session| &mut session.of) else {
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
    pub(super) fn contexts(&self, session: &str, id: &str) -> Vec<Out> {
        let (
            Some(Of::Page {
                has_runtime: true,
                worlds,
                ..
            }),
            Some(target),
        ) = (
            self.sessions.get(session).map(|session| &session.of),
            self.targets.get(id),
        )
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

    fn tell(&self, id: &str, events: &[(&str, Value)]) -> Vec<Out> {
        let mut outs = Vec::new();
        for session in self.sessions_of(id, Kind::Page) {
            outs.extend(
                events
                    .iter()
                    .map(|(method, params)| event(method, params.clone(), Some(&session))),
            );
        }
        outs
    }

    /// The sessions with a page, or with its tab.
    fn sessions_of(&self, id: &str, kind: Kind) -> Vec<String> {
        let is_of = |of: &Of| match of {
            Of::Page { target, .. } => kind == Kind::Page && target == id,
            Of::Tab(target, _) => kind == Kind::Tab && target == id,
            Of::Browser(_) => false,
        };
        let found = self.sessions.iter().filter(|(_, session)| is_of(&session.of));
        found.map(|(name, _)| name.clone()).collect()
    }
}

fn tab(id: &str) -> String {
    format!("tab-{id}")
}
