//! What the shim's answers, and the agent's in the page, become.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{Asked, Bridge, Out, STREAMED, STREAMS, evaluate};

impl Bridge {
    pub(super) fn answered(&mut self, asked: Asked, result: Value, error: Option<String>) -> Vec<Out> {
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
            (Asked::Intercept(reply, target), Some(error)) => {
                if let Some(target) = self.targets.get_mut(&target) {
                    target.intercepted = false;
                }
                vec![reply.error(&error)]
            }
            (Asked::Intercept(reply, _), None) => vec![reply.ok(json!({}))],
            (Asked::Judged(reply, judged), Some(error)) => vec![reply.error(&error), judged.end()],
            (Asked::Judged(reply, judged), None) => vec![reply.ok(json!({})), judged.end()],
            (Asked::Plain(reply) | Asked::Optional(reply), None) => vec![reply.ok(result)],
            (Asked::Stream(reply), None) => {
                let data = result["data"].as_str().unwrap_or_default().to_owned();
                self.counter += 1;
                let handle = self.counter.to_string();
                let held = |streams: &BTreeMap<String, String>| streams.values().map(String::len).sum::<usize>();
                while self.streams.len() >= STREAMS || held(&self.streams) + data.len() > STREAMED {
                    if self.streams.pop_first().is_none() {
                        break;
                    }
                }
                self.streams.insert(handle.clone(), data);
                vec![reply.ok(json!({ "data": "", "stream": handle }))]
            }
            (Asked::Navigate(reply, target), None) => {
                let id = self.next(Asked::Arrived(reply, target.clone()));
                vec![evaluate(id, &target, &json!({ "op": "state" }))]
            }
            (Asked::Arrived(reply, target), None) => {
                let mut outs = agents_answer(result)
                    .map_or_else(Vec::new, |mut said| self.saw(&target, said["state"].take(), true));
                let loader = self.targets.get(&target).map(|found| found.loader(&target));
                outs.push(reply.ok(json!({ "frameId": target, "loaderId": loader })));
                outs
            }
            (Asked::InPage(reply, target), None) => {
                self.looked(&target);
                let Some(mut said) = agents_answer(result) else {
                    self.watch(&target);
                    // It went elsewhere meanwhile.
                    return reply
                        .map(|reply| reply.error("Cannot find context with specified id"))
                        .into_iter()
                        .collect();
                };
                // What happened to the page happened before or while it was asked.
                let mut outs = self.saw(&target, said["state"].take(), false);
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
}

/// What the agent in the page gave, without all else that the shim says of it, and still spelled as a string of JSON: that
/// it is read only when the shim's message is gone keeps few copies of it at a time.
pub(super) fn agents_text(result: &RawValue) -> Value {
    #[derive(Deserialize)]
    struct Evaluated<'a> {
        #[serde(borrow)]
        result: Given<'a>,
    }
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(borrow)]
        value: &'a RawValue,
    }
    let evaluated = serde_json::from_str::<Evaluated<'_>>(result.get());
    evaluated.map_or(Value::Null, |evaluated| evaluated.result.value.get().into())
}

/// What that says.
fn agents_answer(spelled: Value) -> Option<Value> {
    let said: String = serde_json::from_str(spelled.as_str()?).ok()?;
    drop(spelled);
    serde_json::from_str(&said).ok()
}
