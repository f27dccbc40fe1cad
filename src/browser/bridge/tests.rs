use proptest::prelude::*;

use super::*;

const GREETING: &str = r#"{"method":"Target.targetCreated","params":{"targetInfo":{"targetId":"T","type":"page","title":"","url":"about:blank","attached":true}}}"#;

/// The bridge after the shim's greeting.
fn greeted() -> Bridge {
    let mut bridge = Bridge::default();
    assert_eq!(bridge.shim_says(GREETING), []);
    bridge
}

fn say(bridge: &mut Bridge, id: u64, session: Option<&str>, method: &str, params: Value) -> Vec<Out> {
    let mut message = json!({ "id": id, "method": method, "params": params });
    if let Some(session) = session {
        message["sessionId"] = json!(session);
    }
    bridge.client_says(message.to_string())
}

/// A page's session of a client that attaches by itself.
fn attached(bridge: &mut Bridge) -> String {
    let outs = say(
        bridge,
        1,
        None,
        "Target.setAutoAttach",
        json!({ "autoAttach": true, "flatten": true }),
    );
    let [Out::Client(event), Out::Client(answer)] = &outs[..] else {
        panic!("{outs:?}")
    };
    assert_eq!(
        (&event["method"], &answer["id"]),
        (&json!("Target.attachedToTarget"), &json!(1))
    );
    assert_eq!(event["params"]["targetInfo"]["targetId"], "T");
    event["params"]["sessionId"].as_str().unwrap().to_owned()
}

fn asked(outs: &[Out]) -> &Value {
    let shim = outs.iter().find_map(|out| {
        if let Out::Shim(message) = out {
            Some(message)
        } else {
            None
        }
    });
    shim.unwrap_or_else(|| panic!("nothing is asked of the shim: {outs:?}"))
}

/// What the agent in the page answers to the command that was asked.
fn page_says(bridge: &mut Bridge, command: &Value, document: &str, body: Value) -> Vec<Out> {
    let mut said = json!({ "state": { "doc": document, "opens": 0, "url": "https://a.example/", "title": "A", "ready": "complete", "logs": [] } });
    said.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let answer =
        json!({ "id": command["id"], "result": { "result": { "type": "string", "value": said.to_string() } } });
    bridge.shim_says(answer.to_string())
}

fn methods(outs: &[Out]) -> Vec<&str> {
    let to_client = outs.iter().filter_map(|out| {
        if let Out::Client(message) = out {
            Some(message)
        } else {
            None
        }
    });
    to_client
        .map(|message| message["method"].as_str().unwrap_or("answer"))
        .collect()
}

/// Asks for a navigation; gives the id by which the shim was asked.
fn navigate(bridge: &mut Bridge, session: &str, params: Value) -> Value {
    asked(&say(bridge, 3, Some(session), "Page.navigate", params))["id"].clone()
}

#[test]
fn commands_of_a_session_go_to_its_page_and_answers_back_to_it() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let outs = say(
        &mut bridge,
        7,
        Some(&session),
        "Runtime.evaluate",
        json!({ "expression": "1 + 1", "returnByValue": true }),
    );
    let command = asked(&outs).clone();
    assert_eq!(
        (&command["method"], &command["params"]["targetId"]),
        (&json!("Runtime.evaluate"), &json!("T"))
    );
    assert!(command.get("sessionId").is_none(), "the shim knows none");
    let outs = page_says(
        &mut bridge,
        &command,
        "d1",
        json!({ "result": { "result": { "type": "number", "value": 2 } } }),
    );
    let answer =
        Out::Client(json!({ "id": 7, "result": { "result": { "type": "number", "value": 2 } }, "sessionId": session }));
    assert_eq!(outs.last(), Some(&answer));
    let outs = say(&mut bridge, 8, Some("none"), "Page.enable", json!({}));
    assert!(
        matches!(&outs[..], [Out::Client(answer)] if answer["error"]["message"].as_str().unwrap().contains("Session"))
    );
}

#[test]
fn a_new_document_makes_the_events_of_a_navigation() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    assert_eq!(
        methods(&say(&mut bridge, 2, Some(&session), "Runtime.enable", json!({})))[0],
        "Runtime.executionContextCreated"
    );
    let first = asked(&bridge.tick()).clone();
    page_says(&mut bridge, &first, "d1", json!({ "result": {} }));
    let id = navigate(
        &mut bridge,
        &session,
        json!({ "url": "https://a.example/", "referrer": "" }),
    );
    // Cloudflare's Puppeteer says `errorText` for any answer that is not 2xx.
    let done = json!({ "id": id, "result": { "frameId": "T", "errorText": "Navigation failed" } });
    let look = asked(&bridge.shim_says(done.to_string())).clone();
    let outs = page_says(&mut bridge, &look, "d2", json!({ "result": {} }));
    let said = methods(&outs);
    let at = |method: &str| {
        said.iter()
            .position(|said| *said == method)
            .unwrap_or_else(|| panic!("{method}: {said:?}"))
    };
    assert!(at("Runtime.executionContextsCleared") < at("Page.frameNavigated"));
    assert!(at("Page.frameNavigated") < at("Runtime.executionContextCreated"));
    assert!(at("Runtime.executionContextCreated") < at("Page.loadEventFired"));
    let Some(Out::Client(answer)) = outs.last() else {
        panic!()
    };
    assert_eq!((&answer["id"], answer["result"].get("errorText")), (&json!(3), None));
    let navigated = outs.iter().find_map(|out| match out {
        Out::Client(message) if message["method"] == "Page.frameNavigated" => Some(&message["params"]["frame"]),
        _ => None,
    });
    assert_eq!(navigated.unwrap()["loaderId"], answer["result"]["loaderId"]);
}

#[test]
fn a_page_that_nobody_has_looked_at_yet_navigates_too() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let id = navigate(&mut bridge, &session, json!({ "url": "https://a.example/" }));
    let done = json!({ "id": id, "result": {} });
    let look = asked(&bridge.shim_says(done.to_string())).clone();
    let outs = page_says(&mut bridge, &look, "d1", json!({ "result": {} }));
    assert!(methods(&outs).contains(&"Page.frameNavigated"));
}

/// What is seen on the way is either still the old page or already the new one, and nobody knows which.
#[test]
fn a_look_during_a_navigation_is_not_taken_for_its_end() {
    for seen in ["d0", "d1"] {
        let mut bridge = greeted();
        let session = attached(&mut bridge);
        let look = asked(&bridge.tick()).clone();
        let id = navigate(&mut bridge, &session, json!({ "url": "https://a.example/" }));
        let outs = page_says(&mut bridge, &look, seen, json!({ "result": {} }));
        assert!(!methods(&outs).contains(&"Page.frameNavigated"), "{seen}: {outs:?}");
        let arrived = asked(&bridge.shim_says(json!({ "id": id, "result": {} }).to_string())).clone();
        let outs = page_says(&mut bridge, &arrived, "d1", json!({ "result": {} }));
        let navigated = methods(&outs)
            .into_iter()
            .filter(|method| *method == "Page.frameNavigated");
        assert_eq!(navigated.count(), 1, "{seen}");
        let look = say(&mut bridge, 5, Some(&session), "Page.getLayoutMetrics", json!({}));
        let outs = page_says(&mut bridge, asked(&look), "d1", json!({ "result": {} }));
        assert_eq!(methods(&outs), ["answer"], "{seen}");
    }
}

#[test]
fn a_page_that_cannot_be_reached_is_no_error_of_the_command() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let id = navigate(&mut bridge, &session, json!({ "url": "http://nowhere.invalid" }));
    let failed = json!({ "id": id, "error": { "code": -32000, "message": "net::ERR_NAME_NOT_RESOLVED at http://nowhere.invalid" } });
    let outs = bridge.shim_says(failed.to_string());
    assert!(
        matches!(&outs[..], [Out::Client(answer)] if answer["result"]["errorText"] == "net::ERR_NAME_NOT_RESOLVED")
    );
}

#[test]
fn puppeteer_comes_to_pages_by_their_tabs() {
    let mut bridge = greeted();
    let filter = json!([{ "type": "page", "exclude": true }, {}]);
    let outs = say(
        &mut bridge,
        1,
        None,
        "Target.setAutoAttach",
        json!({ "autoAttach": true, "filter": filter }),
    );
    let Out::Client(event) = &outs[0] else { panic!() };
    assert_eq!(event["params"]["targetInfo"]["type"], "tab");
    let tab = event["params"]["sessionId"].as_str().unwrap().to_owned();
    let outs = say(
        &mut bridge,
        2,
        Some(&tab),
        "Target.setAutoAttach",
        json!({ "autoAttach": true }),
    );
    let Out::Client(event) = &outs[0] else { panic!() };
    assert_eq!(
        (&event["params"]["targetInfo"]["type"], &event["sessionId"]),
        (&json!("page"), &json!(tab))
    );
}

/// A session of the browser's.
fn opened(bridge: &mut Bridge, id: u64, parent: Option<&str>) -> String {
    let outs = say(bridge, id, parent, "Target.attachToBrowserTarget", json!({}));
    let [Out::Client(answer)] = &outs[..] else {
        panic!("{outs:?}")
    };
    answer["result"]["sessionId"].as_str().unwrap().to_owned()
}

/// However deep: a client that opens one session in the other is not to end PID 1.
#[test]
fn a_session_takes_along_all_that_were_opened_in_it() {
    let mut bridge = greeted();
    let stays = opened(&mut bridge, 1, None);
    let first = opened(&mut bridge, 2, None);
    let mut last = first.clone();
    for id in 0..100_000 {
        last = opened(&mut bridge, 3 + id, Some(&last));
    }
    say(
        &mut bridge,
        200_000,
        None,
        "Target.detachFromTarget",
        json!({ "sessionId": first }),
    );
    assert_eq!(bridge.sessions.keys().collect::<Vec<_>>(), [&stays]);
}

#[test]
fn each_session_of_the_browser_is_told_what_it_wants_to_know() {
    let mut bridge = greeted();
    let (discovers, attaches) = (opened(&mut bridge, 1, None), opened(&mut bridge, 2, None));
    say(
        &mut bridge,
        3,
        Some(&discovers),
        "Target.setDiscoverTargets",
        json!({ "discover": true }),
    );
    let outs = say(
        &mut bridge,
        4,
        Some(&attaches),
        "Target.setAutoAttach",
        json!({ "autoAttach": true }),
    );
    let [Out::Client(event), Out::Client(_)] = &outs[..] else {
        panic!("{outs:?}")
    };
    assert_eq!(event["sessionId"], attaches);
    let page = event["params"]["sessionId"].as_str().unwrap().to_owned();
    let told = |outs: Vec<Out>| -> Vec<(String, String)> {
        let of = |out: Out| match out {
            Out::Client(message) => [&message["method"], &message["sessionId"]]
                .map(|text| text.as_str().unwrap().to_owned())
                .into(),
            Out::Shim(_) => panic!("{out:?}"),
        };
        outs.into_iter().map(of).collect()
    };
    let event = |method: &str, session: &String| (method.to_owned(), session.clone());
    let created = bridge.shim_says(GREETING.replace("\"T\"", "\"U\""));
    let created_of_discovers = event("Target.targetCreated", &discovers);
    let expected = [
        created_of_discovers.clone(),
        created_of_discovers,
        event("Target.attachedToTarget", &attaches),
    ];
    assert_eq!(told(created), expected);
    let destroyed = bridge.shim_says(r#"{"method":"Target.targetDestroyed","params":{"targetId":"U"}}"#);
    let destroyed_of_discovers = event("Target.targetDestroyed", &discovers);
    let expected = [
        event("Target.detachedFromTarget", &attaches),
        destroyed_of_discovers.clone(),
        destroyed_of_discovers,
    ];
    assert_eq!(told(destroyed), expected);
    // A session ends with the one that it was opened in.
    say(
        &mut bridge,
        5,
        None,
        "Target.detachFromTarget",
        json!({ "sessionId": attaches }),
    );
    let outs = say(&mut bridge, 6, Some(&page), "Page.enable", json!({}));
    assert!(matches!(&outs[..], [Out::Client(answer)] if answer.get("error").is_some()));
    let outs = bridge.shim_says(GREETING.replace("\"T\"", "\"V\""));
    assert_eq!(told(outs).len(), 2);
}

#[test]
fn what_is_attached_to_is_not_attached_to_again() {
    let mut bridge = greeted();
    attached(&mut bridge);
    let again = |bridge: &mut Bridge, session: Option<&str>, attaches: bool| {
        let outs = say(
            bridge,
            5,
            session,
            "Target.setAutoAttach",
            json!({ "autoAttach": attaches }),
        );
        methods(&outs).len()
    };
    assert_eq!(again(&mut bridge, None, true), 1, "the answer alone");
    let another = GREETING.replace("\"T\"", "\"U\"");
    assert_eq!(methods(&bridge.shim_says(&another)), ["Target.attachedToTarget"]);
    assert_eq!(again(&mut bridge, None, false), 1);
    assert_eq!(again(&mut bridge, None, true), 3);
}

#[test]
fn what_cannot_be_had_is_not_feigned() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    for (method, session) in [("Runtime.addBinding", Some(session.as_str())), ("Fetch.enable", None)] {
        let outs = say(&mut bridge, 5, session, method, json!({}));
        assert!(
            matches!(&outs[..], [Out::Client(answer)] if answer["error"]["message"].is_string()),
            "{method}: {outs:?}"
        );
    }
}

#[test]
fn streams_that_nobody_reads_are_not_kept_for_ever() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    for _ in 0..STREAMS {
        let params = json!({ "transferMode": "ReturnAsStream" });
        let outs = say(&mut bridge, 2, Some(&session), "Page.printToPDF", params);
        let told = answer(
            &mut bridge,
            &outs,
            ("result", json!({ "data": "x".repeat(STREAMED / 2) })),
        );
        let [Out::Client(told)] = &told[..] else {
            panic!("{}", told.len())
        };
        let handle = told["result"]["stream"].as_str().unwrap();
        assert!(bridge.streams.contains_key(handle));
    }
    assert_eq!(bridge.streams.len(), 2);
}

fn stopped(bridge: &mut Bridge, id: &str) -> Vec<Out> {
    let params = json!({ "requestId": id, "request": { "url": "https://a.example/", "method": "GET", "headers": {} }, "frameId": "T", "resourceType": "document" });
    bridge.shim_says(json!({ "method": "Fetch.requestPaused", "params": params }).to_string())
}

fn answer(bridge: &mut Bridge, outs: &[Out], body: (&str, Value)) -> Vec<Out> {
    let id = asked(outs)["id"].clone();
    bridge.shim_says(json!({ "id": id, body.0: body.1 }).to_string())
}

#[test]
fn requests_wait_for_the_client_that_wants_to_see_them() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let session = Some(session.as_str());
    let enable = |bridge: &mut Bridge| say(bridge, 5, session, "Fetch.enable", json!({ "patterns": [{}] }));
    // A shim that cannot is not taken for one that does.
    for _ in 0..2 {
        let outs = enable(&mut bridge);
        let told = answer(
            &mut bridge,
            &outs,
            ("error", json!({ "message": "Unknown domain: Fetch" })),
        );
        assert!(matches!(&told[..], [Out::Client(told)] if told["error"].is_object()));
    }
    let outs = enable(&mut bridge);
    assert_eq!(asked(&outs)["params"], json!({ "targetId": "T" }));
    answer(&mut bridge, &outs, ("result", json!({})));
    let told = stopped(&mut bridge, "R");
    assert_eq!(methods(&told), ["Network.requestWillBeSent", "Fetch.requestPaused"]);
    let [Out::Client(sent), Out::Client(paused)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(sent["params"]["loaderId"], paused["params"]["networkId"]);
    assert_eq!(
        (&paused["params"]["frameId"], &paused["params"]["resourceType"]),
        (&json!("T"), &json!("Document"))
    );
    let outs = say(
        &mut bridge,
        6,
        session,
        "Fetch.failRequest",
        json!({ "requestId": "R", "errorReason": "AccessDenied" }),
    );
    assert_eq!(
        asked(&outs)["params"],
        json!({ "requestId": "R", "errorReason": "AccessDenied", "targetId": "T" })
    );
    assert_eq!(
        methods(&answer(&mut bridge, &outs, ("result", json!({})))),
        ["answer", "Network.loadingFailed"]
    );
    // One word for each.
    let again = say(
        &mut bridge,
        7,
        session,
        "Fetch.continueRequest",
        json!({ "requestId": "R" }),
    );
    assert!(matches!(&again[..], [Out::Client(told)] if told["error"].is_object()));
    // Whoever does not want to see them any more keeps none.
    stopped(&mut bridge, "S");
    let outs = say(&mut bridge, 8, session, "Fetch.disable", json!({}));
    assert_eq!(
        (&asked(&outs)["method"], methods(&outs)),
        (&json!("Fetch.continueRequest"), vec!["answer"])
    );
    assert_eq!(asked(&stopped(&mut bridge, "U"))["params"]["requestId"], "U");
    // And the shim has stopped them already.
    assert_eq!(methods(&enable(&mut bridge)), ["answer"]);
    stopped(&mut bridge, "V");
    say(
        &mut bridge,
        9,
        None,
        "Target.detachFromTarget",
        json!({ "sessionId": session }),
    );
    assert!(
        bridge
            .tick()
            .iter()
            .any(|out| matches!(out, Out::Shim(asked) if asked["params"]["requestId"] == "V"))
    );
}

#[test]
fn a_pdf_is_streamed_in_pieces() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let outs = say(
        &mut bridge,
        2,
        Some(&session),
        "Page.printToPDF",
        json!({ "transferMode": "ReturnAsStream" }),
    );
    assert!(asked(&outs)["params"].get("transferMode").is_none());
    let data = "QUJD".repeat(PIECE / 4 + 1);
    let answer = json!({ "id": asked(&outs)["id"], "result": { "data": data } });
    let Out::Client(answer) = &bridge.shim_says(answer.to_string())[0] else {
        panic!()
    };
    let handle = answer["result"]["stream"].clone();
    let mut read = String::new();
    loop {
        let Out::Client(answer) = &say(&mut bridge, 3, Some(&session), "IO.read", json!({ "handle": handle }))[0]
        else {
            panic!()
        };
        read += answer["result"]["data"].as_str().unwrap();
        if answer["result"]["eof"] == true {
            break;
        }
    }
    assert_eq!(read, data);
}

#[test]
fn a_closed_page_takes_its_sessions_along() {
    let mut bridge = greeted();
    let session = attached(&mut bridge);
    let outs = bridge.shim_says(r#"{"method":"Target.targetDestroyed","params":{"targetId":"T"}}"#);
    assert_eq!(methods(&outs), ["Target.detachedFromTarget"]);
    let outs = say(&mut bridge, 9, Some(&session), "Page.enable", json!({}));
    assert!(matches!(&outs[..], [Out::Client(answer)] if answer.get("error").is_some()));
}

proptest! {
    /// Whatever a client asks, it gets exactly one answer once the shim has answered all that it was asked.
    #[test]
    fn every_command_is_answered_once(
        commands in prop::collection::vec((prop::sample::select(vec![
            "Runtime.evaluate", "Runtime.callFunctionOn", "Page.navigate", "Page.reload", "Page.captureScreenshot", "Page.enable",
            "Input.dispatchMouseEvent", "Input.dispatchKeyEvent", "Target.createTarget", "Target.getTargets", "No.such",
            "Emulation.setFocusEmulationEnabled", "Page.createIsolatedWorld", "Target.attachToBrowserTarget", "IO.read",
        ]), any::<bool>(), any::<bool>()), 1..20),
    ) {
        let mut bridge = greeted();
        let session = attached(&mut bridge);
        let mut answers = 0;
        for (id, (method, in_session, fails)) in commands.iter().enumerate() {
            let session = in_session.then_some(session.as_str());
            let mut outs = say(&mut bridge, 100 + id as u64, session, method, json!({}));
            outs.extend(bridge.tick());
            while let Some(out) = outs.pop() {
                match out {
                    Out::Client(message) => answers += usize::from(message["id"] == json!(100 + id)),
                    Out::Shim(command) => outs.extend(match fails {
                        true => bridge.shim_says(json!({ "id": command["id"], "error": { "message": "Unknown domain" } }).to_string()),
                        false => page_says(&mut bridge, &command, "d", json!({ "result": {} })),
                    }),
                }
            }
        }
        prop_assert_eq!(answers, commands.len());
        prop_assert!(bridge.asked.is_empty());
    }

    #[test]
    fn no_message_makes_it_panic(text in ".{0,60}", id: u64) {
        let mut bridge = greeted();
        bridge.client_says(&text);
        bridge.shim_says(&text);
        bridge.shim_says(json!({ "id": id, "result": text }).to_string());
    }
}
