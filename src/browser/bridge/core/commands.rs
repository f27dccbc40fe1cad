//! What a client's commands become: an answer at once, or what the shim is asked.

use serde_json::{Map, Value, json};

use super::{Asked, Bridge, CONTEXT, Interest, Kind, Of, Out, PIECE, Reply};
use crate::browser::version::Version;

impl Bridge {
    pub(super) fn of_browser(&mut self, reply: &Reply, method: &str, params: Map<String, Value>) -> Vec<Out> {
        let id = params
            .get("targetId")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        match method {
            "Browser.getVersion" => vec![reply.ok(Version::default().result())],
            "Target.getBrowserContexts" => vec![reply.ok(json!({ "browserContextIds": [] }))],
            "Target.setDiscoverTargets" => {
                let wants = params.get("discover") == Some(&json!(true));
                let session = reply.session.as_deref();
                if let Some(interest) = self.interest(session) {
                    interest.discovers = wants;
                }
                let known = self.targets.keys().filter(|_| wants);
                let mut outs: Vec<Out> = known.flat_map(|id| self.announce(id, session)).collect();
                outs.push(reply.ok(json!({})));
                outs
            }
            "Target.setAutoAttach" => {
                let wants = params.get("autoAttach") == Some(&json!(true));
                let session = reply.session.as_deref();
                if let Some(interest) = self.interest(session) {
                    interest.attaches = wants.then(|| kind(params.get("filter")));
                    interest.automatic.retain(|_| wants);
                }
                let known: Vec<String> = self.targets.keys().filter(|_| wants).cloned().collect();
                let attach = |id: &String| self.attach_automatically(id, session);
                let mut outs: Vec<Out> = known.iter().flat_map(attach).collect();
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
                let session = self.open(Of::Browser(Interest::default()), reply.session.as_deref());
                vec![reply.ok(json!({ "sessionId": session }))]
            }
            "Target.attachToTarget" if self.targets.contains_key(&id) => {
                let (session, attached) = self.attach(&id, Kind::Page, reply.session.as_deref());
                vec![attached, reply.ok(json!({ "sessionId": session }))]
            }
            "Target.getTargetInfo" | "Target.attachToTarget" => vec![reply.error("No target with given id found")],
            "Target.detachFromTarget" => {
                let session = params.get("sessionId").and_then(Value::as_str).unwrap_or_default();
                self.detach(session);
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
            "Fetch.enable" => vec![reply.error("this Worker's browser has requests of its pages only")],
            _ if is_setting(method) => vec![reply.ok(json!({}))],
            _ => vec![self.ask(Asked::Plain(reply.clone()), method, None, params)],
        }
    }

    /// A tab's session is only good for being led on to its page's.
    pub(super) fn of_tab(&mut self, reply: &Reply, method: &str, target: &str) -> Vec<Out> {
        let mut outs = Vec::new();
        let session = reply.session.as_deref();
        if method == "Target.setAutoAttach" && self.targets.contains_key(target) && self.leads(session) {
            outs.push(self.attach(target, Kind::Page, session).1);
        }
        outs.push(reply.ok(json!({})));
        outs
    }

    /// A tab's session leads to its page once.
    fn leads(&mut self, session: Option<&str>) -> bool {
        let session = session.and_then(|name| self.sessions.get_mut(name));
        match session.map(|session| &mut session.of) {
            Some(Of::Tab(_, has_led)) => !std::mem::replace(has_led, true),
            _ => false,
        }
    }

    pub(super) fn of_page(
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
            "Page.setDocumentContent" => in_page(json!({ "op": "content", "html": get("html") })),
            "Page.getLayoutMetrics" => in_page(json!({ "op": "metrics" })),
            _ => (None, Value::Null),
        };
        if waits.is_some() {
            self.watch(target);
            return vec![self.in_page(target, waits, &call)];
        }
        match method {
            "Page.navigate" | "Page.reload" => {
                if let Some(target) = self.targets.get_mut(target) {
                    target.leave();
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
                if let Some(Of::Page { has_runtime, .. }) =
                    self.sessions.get_mut(session).map(|session| &mut session.of)
                {
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
            "Runtime.runIfWaitingForDebugger" | "Runtime.releaseObjectGroup" => vec![reply.ok(json!({}))],
            // A client would wait for events that do not come.
            "Runtime.addBinding" => vec![reply.error("this Worker's browser cannot call back from a page")],
            "Fetch.enable" => self.intercept(reply, session, target),
            "Fetch.disable" => self.let_pass(reply, session),
            "Fetch.continueRequest" | "Fetch.fulfillRequest" | "Fetch.failRequest" => self.judge(reply, method, params),
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
