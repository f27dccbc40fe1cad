use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn has(text: &Text, part: &str) -> bool {
    String::from(text.clone()).contains(part)
}

/// A browser, as far as sessions go.
#[derive(Default)]
struct Browser {
    /// With the session in which each was opened; the connection's own has no name.
    sessions: BTreeMap<String, String>,
    opened: usize,
}

fn name_of(message: &Value) -> String {
    message["sessionId"].as_str().unwrap_or_default().to_owned()
}

/// A message of a session's; none of the connection's has a session.
fn of(session: &str, mut message: Value) -> String {
    if !session.is_empty() {
        message["sessionId"] = json!(session);
    }
    message.to_string()
}

impl Browser {
    fn answers(&mut self, text: &str) -> Vec<String> {
        let command: Value = serde_json::from_str(text).unwrap();
        let (id, session) = (&command["id"], name_of(&command));
        assert!(session.is_empty() || self.sessions.contains_key(&session), "{command}");
        match command["method"].as_str().unwrap() {
            "Target.attachToBrowserTarget" | "Target.attachToTarget" => {
                self.opened += 1;
                let opened = format!("S{}", self.opened);
                self.sessions.insert(opened.clone(), session.clone());
                let event = json!({ "method": "Target.attachedToTarget", "params": { "sessionId": opened } });
                let answer = json!({ "id": id, "result": { "sessionId": opened } });
                vec![of(&session, event), of(&session, answer)]
            }
            "Target.detachFromTarget" => {
                let closed = self.close(command["params"]["sessionId"].as_str().unwrap());
                [closed, vec![of(&session, json!({ "id": id, "result": {} }))]].concat()
            }
            _ => vec![of(&session, json!({ "id": id, "result": { "in": session } }))],
        }
    }

    fn close(&mut self, name: &str) -> Vec<String> {
        let Some(parent) = self.sessions.remove(name) else {
            return Vec::new();
        };
        let below: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, of)| *of == name)
            .map(|(name, _)| name.clone())
            .collect();
        for below in below {
            self.close(&below);
        }
        let event = json!({ "method": "Target.detachedFromTarget", "params": { "sessionId": name } });
        vec![of(&parent, event)]
    }

    /// The session at the top of the one that has that name.
    fn top(&self, name: &str) -> String {
        match self.sessions.get(name).map(String::as_str) {
            None | Some("") => name.to_owned(),
            Some(parent) => self.top(parent),
        }
    }
}

/// A core before a browser, and what each client has been told.
#[derive(Default)]
struct World {
    core: Core,
    browser: Browser,
    told: BTreeMap<u64, Vec<Value>>,
    joined: BTreeSet<u64>,
    closed: BTreeMap<u64, String>,
    own: Vec<(u64, Result<Value, String>)>,
    is_over: bool,
}

impl World {
    fn with(clients: u64) -> World {
        let mut world = World::default();
        (0..clients).for_each(|client| world.join(client, &Place::Browser));
        world
    }

    fn join(&mut self, client: u64, place: &Place) {
        let outs = self.core.join(client, place);
        self.act(outs);
    }

    fn says(&mut self, client: u64, message: Value) -> Vec<Value> {
        let before = self.told.get(&client).map_or(0, Vec::len);
        let outs = self.core.client_says(client, message.to_string());
        self.act(outs);
        self.told
            .get(&client)
            .map_or_else(Vec::new, |told| told[before..].to_vec())
    }

    fn browser_says(&mut self, text: &str) {
        let outs = self.core.browser_says(text);
        self.act(outs);
    }

    fn act(&mut self, outs: Vec<Out>) {
        for out in outs {
            match out {
                Out::Browser(text) => {
                    for text in self.browser.answers(&String::from(text)) {
                        self.browser_says(&text);
                    }
                }
                Out::Client(client, text) => {
                    let message = serde_json::from_str(&String::from(text)).unwrap();
                    self.told.entry(client).or_default().push(message);
                }
                Out::Joined(client) => drop(self.joined.insert(client)),
                Out::Closed(client, why) => drop(self.closed.insert(client, why)),
                Out::Answered(number, answer) => self.own.push((number, answer)),
                Out::Over => self.is_over = true,
            }
        }
    }
}

#[test]
fn a_client_does_not_know_that_it_is_not_alone() {
    let mut world = World::with(2);
    assert_eq!(world.joined, BTreeSet::from([0, 1]));
    let params = json!({ "number": 1.0, "text": "\u{1F600}", "nested": [{}] });
    for client in [0, 1] {
        let told = world.says(
            client,
            json!({ "id": 1, "method": "Target.getTargets", "params": params }),
        );
        // Which session it was is not said.
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0]["id"], told[0].get("sessionId")), (&json!(1), None));
        assert_eq!(told[0]["result"]["in"], format!("S{}", client + 1));
    }
    world.browser_says(r#"{"method":"Target.targetCreated","params":{"n":1.0},"sessionId":"S2"}"#);
    assert!(world.told[&0].len() == 1);
    let event = world.told[&1].last().unwrap();
    assert_eq!(
        event.to_string(),
        r#"{"method":"Target.targetCreated","params":{"n":1.0}}"#
    );
}

#[test]
fn sessions_are_whose_they_are_to_the_end() {
    let mut world = World::with(2);
    let told = world.says(
        0,
        json!({ "id": 5, "method": "Target.attachToTarget", "params": { "targetId": "T" } }),
    );
    assert_eq!(told[0]["method"], "Target.attachedToTarget");
    let session = told[1]["result"]["sessionId"].clone();
    let inside = json!({ "id": 6, "method": "Page.enable", "sessionId": session });
    let expected = json!({ "id": 6, "result": { "in": session }, "sessionId": session });
    assert_eq!(world.says(0, inside.clone()), [expected]);
    let refusal = json!({ "id": 6, "error": { "code": -32001, "message": "Session with given id not found." }, "sessionId": session });
    assert_eq!(world.says(1, inside.clone())[0], refusal);
    // Neither by the name of its own.
    assert!(world.says(1, json!({ "id": 7, "method": "Page.enable", "sessionId": "S2" }))[0]["error"].is_object());
    let closed = world.browser.close(session.as_str().unwrap());
    world.browser_says(&closed[0]);
    assert_eq!(world.told[&0].last().unwrap()["method"], "Target.detachedFromTarget");
    assert_eq!(world.says(0, inside)[0], refusal);
}

#[test]
fn a_session_whose_opening_no_event_tells_is_its_askers_too() {
    let mut world = World::with(1);
    let outs = world
        .core
        .client_says(0, r#"{"id":1,"method":"Target.attachToBrowserTarget"}"#);
    let [Out::Browser(asked)] = &outs[..] else {
        panic!("{outs:?}")
    };
    let asked: Value = serde_json::from_str(&String::from(asked.clone())).unwrap();
    world.browser.sessions.insert("quiet".into(), "S1".into());
    world
        .browser_says(&json!({ "id": asked["id"], "result": { "sessionId": "quiet" }, "sessionId": "S1" }).to_string());
    let told = world.says(0, json!({ "id": 2, "method": "Page.enable", "sessionId": "quiet" }));
    assert_eq!(told[0]["result"]["in"], "quiet");
}

#[test]
fn a_page_that_goes_away_takes_its_client_along_and_no_other() {
    let mut world = World::with(1);
    world.join(7, &Place::Page("T".into()));
    let told = world.says(7, json!({ "id": 1, "method": "Page.enable" }));
    assert_eq!(told[0]["result"]["in"], "S2");
    for text in world.browser.close("S2") {
        world.browser_says(&text);
    }
    assert_eq!(world.closed.keys().collect::<Vec<_>>(), [&7]);
    assert!(world.says(7, json!({ "id": 2, "method": "Page.enable" })).is_empty());
    assert_eq!(world.says(0, json!({ "id": 2, "method": "Page.enable" })).len(), 1);
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let mut core = Core::default();
    core.join(3, &Place::Page("nobody".into()));
    let outs = core.browser_says(r#"{"id":1,"error":{"code":-32602,"message":"No target with given id found"}}"#);
    assert_eq!(outs, [Out::Closed(3, "No target with given id found".into())]);
    // And a session that comes for somebody who has left is given back.
    core.join(4, &Place::Browser);
    assert_eq!(core.leave(4), []);
    let outs = core.browser_says(r#"{"id":2,"result":{"sessionId":"late"}}"#);
    assert!(matches!(&outs[..], [Out::Browser(text)] if has(text, "detachFromTarget") && has(text, "late")));
}

#[test]
fn what_is_no_command_is_said_to_be_none() {
    let mut world = World::with(1);
    for text in [
        "",
        "[]",
        "{",
        r#"{"id":1,"id":2,"method":"A.b"}"#,
        r#"{"method":"A.b"}"#,
        r#"{"id":1,"sessionId":3}"#,
    ] {
        let outs = world.core.client_says(0, text);
        assert!(
            matches!(&outs[..], [Out::Client(0, answer)] if has(answer, "error")),
            "{text}: {outs:?}"
        );
        assert_eq!(world.core.browser_says(text), [], "{text}");
    }
}

#[test]
fn a_command_that_becomes_too_long_is_answered() {
    let mut world = World::with(1);
    let command = |room: u64| {
        format!(
            r#"{{"id":9,"method":"A.b","params":"{}"}}"#,
            "x".repeat((PLATFORM_MAX - room) as usize)
        )
    };
    let outs = world.core.client_says(0, command(40));
    assert!(
        matches!(&outs[..], [Out::Client(0, answer)] if String::from(answer.clone()).starts_with(r#"{"id":9,"error""#)),
        "{}",
        outs.len()
    );
    assert!(matches!(
        &world.core.client_says(0, command(200))[..],
        [Out::Browser(_)]
    ));
}

#[test]
fn no_client_opens_or_asks_without_end() {
    let mut world = World::with(2);
    let attach = |world: &mut World, client| {
        let told = world.says(
            client,
            json!({ "id": 1, "method": "Target.attachToTarget", "params": { "targetId": "T" } }),
        );
        told.last().unwrap().clone()
    };
    let opened = (0..2 * SESSIONS)
        .take_while(|_| attach(&mut world, 0)["result"].is_object())
        .count();
    // One is its own.
    assert_eq!(opened, SESSIONS - 1);
    assert!(
        attach(&mut world, 0)["error"]["message"]
            .as_str()
            .unwrap()
            .contains("detach")
    );
    assert!(attach(&mut world, 1)["result"].is_object());
    // Of what a browser does not answer.
    let mut ask = |client| world.core.client_says(client, r#"{"id":1,"method":"A.b"}"#);
    let asked = (0..2 * UNANSWERED)
        .take_while(|_| matches!(ask(0)[..], [Out::Browser(_)]))
        .count();
    assert_eq!(asked, UNANSWERED);
    assert!(matches!(&ask(0)[..], [Out::Client(0, answer)] if has(answer, "wait for")));
    assert!(matches!(ask(1)[..], [Out::Browser(_)]));
    let id = "9".repeat(ID + 1);
    let outs = world.core.client_says(1, format!(r#"{{"id":{id},"method":"A.b"}}"#));
    assert!(matches!(&outs[..], [Out::Client(1, answer)] if has(answer, "-32600")));
}

#[test]
fn questions_of_our_own_and_the_end_of_the_browser() {
    let mut world = World::with(1);
    let outs = world.core.own(5, "Target.getTargets", json!({}));
    world.act(outs);
    assert_eq!(world.own, [(5, Ok(json!({ "in": "" })))]);
    let told = world.says(0, json!({ "id": 1, "method": "Browser.close" }));
    assert_eq!((told.len(), world.is_over), (1, true));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Join,
    Leave,
    Command,
    /// In one of the sessions that there are, whosever it is.
    Inside(usize),
    Attach(usize),
    Detach(usize),
    /// Something happens in one of them.
    Happens(usize),
    /// The browser ends one of them.
    Closes(usize),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        Just(Step::Join),
        Just(Step::Leave),
        Just(Step::Command),
        (0..20usize).prop_map(Step::Inside),
        (0..20usize).prop_map(Step::Attach),
        (0..20usize).prop_map(Step::Detach),
        (0..20usize).prop_map(Step::Happens),
        (0..20usize).prop_map(Step::Closes),
    ];
    prop::collection::vec((0..4u64, step), 1..60)
}

proptest! {
    /// Whatever clients do, each command of a client that stays gets one answer, by a session of that client's own; and
    /// nobody hears of a session that is not below its own.
    #[test]
    fn each_gets_its_own_and_nothing_else(steps in steps()) {
        let mut world = World::default();
        let mut next = 1;
        for (client, step) in steps {
            let is_there = world.core.clients.contains_key(&client);
            let names: Vec<String> = world.browser.sessions.keys().cloned().collect();
            let pick = |at: usize| names.get(at % names.len().max(1)).cloned();
            let root = world.core.clients.get(&client).cloned().flatten();
            world.told.clear();
            let (mut session, mut method, mut params) = (None, "Page.enable", json!({}));
            match step {
                Step::Join if !is_there => world.join(client, &Place::Browser),
                Step::Leave if is_there => {
                    let outs = world.core.leave(client);
                    world.act(outs);
                    let root = root.clone().unwrap();
                    prop_assert!(!world.browser.sessions.contains_key(&root));
                }
                Step::Happens(at) => {
                    let Some(name) = pick(at) else { continue };
                    world.browser_says(&json!({ "method": "Page.happened", "sessionId": name }).to_string());
                    let top = world.browser.top(&name);
                    let told: Vec<u64> = world.told.keys().copied().collect();
                    let owner = world.core.sessions[&top].client;
                    prop_assert_eq!(told, [owner]);
                    let seen = world.told[&owner][0].get("sessionId").cloned();
                    prop_assert_eq!(seen, (top != name).then(|| json!(name)));
                }
                Step::Closes(at) => {
                    let Some(name) = pick(at) else { continue };
                    for text in world.browser.close(&name) {
                        world.browser_says(&text);
                    }
                }
                Step::Inside(at) => session = pick(at),
                Step::Attach(at) => {
                    (session, method) = (pick(at).filter(|_| at % 2 == 0), "Target.attachToTarget");
                }
                Step::Detach(at) => {
                    (method, params) = ("Target.detachFromTarget", json!({ "sessionId": pick(at) }));
                    // A browser ends none but those of whoever asks.
                    let Some(name) = pick(at) else { continue };
                    if root.is_none() || Some(world.browser.top(&name)) != root || Some(&name) == root.as_ref() {
                        continue;
                    }
                }
                _ => {}
            }
            let speaks = matches!(step, Step::Command | Step::Inside(_) | Step::Attach(_) | Step::Detach(_));
            if speaks && is_there {
                next += 1;
                let mut command = json!({ "id": next, "method": method, "params": params });
                if let Some(session) = &session {
                    command["sessionId"] = json!(session);
                }
                let told = world.says(client, command);
                let answers: Vec<&Value> = told.iter().filter(|message| message["id"] == next).collect();
                prop_assert_eq!(answers.len(), 1);
                let root = root.unwrap();
                match &session {
                    Some(name) if *name == root || world.browser.top(name) != root => {
                        prop_assert!(answers[0]["error"].is_object());
                    }
                    _ if method == "Page.enable" => {
                        let by = session.clone().unwrap_or(root);
                        prop_assert_eq!(&answers[0]["result"]["in"], &json!(by));
                    }
                    _ => prop_assert!(answers[0]["result"].is_object()),
                }
                prop_assert_eq!(world.told.keys().filter(|told| **told != client).count(), 0);
            }
            // What is known of sessions is what there is.
            let known: BTreeSet<&String> = world.core.sessions.keys().collect();
            prop_assert_eq!(known, world.browser.sessions.keys().collect::<BTreeSet<_>>());
            prop_assert!(world.core.asked.is_empty());
        }
    }

    #[test]
    fn no_message_makes_it_panic(text in ".{0,60}", id: u32) {
        let mut core = Core::default();
        core.join(1, &Place::Browser);
        core.browser_says(r#"{"id":1,"result":{"sessionId":"S"}}"#);
        core.client_says(1, &text);
        core.browser_says(&text);
        core.client_says(1, json!({ "id": id, "method": text, "sessionId": "S" }).to_string());
        core.browser_says(json!({ "id": id, "result": text }).to_string());
    }
}
