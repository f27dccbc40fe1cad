//! What of a message says whose it is. The rest stays text, however long it is.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A message of the protocol.
#[derive(Debug, Default, Deserialize)]
pub struct Envelope<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub method: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "sessionId")]
    pub session: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// What a few events, answers and commands are read for.
#[derive(Debug, Default, Deserialize)]
struct Session<'a> {
    #[serde(borrow, rename = "sessionId")]
    id: Option<Cow<'a, str>>,
}

/// Why a browser did not do what it was asked.
#[derive(Debug, Deserialize)]
struct Failure<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
}

impl<'a> Envelope<'a> {
    /// Anything else than an object with these fields, each at most once, is no message.
    pub fn of(text: &'a str) -> Option<Envelope<'a>> {
        serde_json::from_str(text).ok()
    }

    /// The same message under another id and session.
    pub fn readdressed(&self, id: Option<&str>, session: Option<&str>) -> String {
        let method = self.method.as_deref().map(quoted);
        let session = session.map(quoted);
        object([
            ("id", id),
            ("method", method.as_deref()),
            ("params", self.params.map(RawValue::get)),
            ("result", self.result.map(RawValue::get)),
            ("error", self.error.map(RawValue::get)),
            ("sessionId", session.as_deref()),
        ])
    }

    /// An answer to it that is none.
    pub fn refusal(&self, id: &str, error: &str) -> String {
        let session = self.session.as_deref().map(quoted);
        object([
            ("id", Some(id)),
            ("error", Some(error)),
            ("sessionId", session.as_deref()),
        ])
    }

    /// The session that an event is about.
    pub fn subject(&self) -> Option<String> {
        session(self.params)
    }

    /// The session that an answer gives.
    pub fn given(&self) -> Option<String> {
        session(self.result)
    }

    /// Why it is no success, if it is an answer.
    pub fn failure(&self) -> Option<String> {
        let error = self.error?.get();
        let said = serde_json::from_str::<Failure<'_>>(error);
        Some(said.map_or_else(|_| error.to_owned(), |failure| failure.message.into_owned()))
    }

    pub fn result(&self) -> serde_json::Value {
        self.result
            .and_then(|result| serde_json::from_str(result.get()).ok())
            .unwrap_or_default()
    }
}

fn session(within: Option<&RawValue>) -> Option<String> {
    let found: Session<'_> = serde_json::from_str(within?.get()).ok()?;
    found.id.map(Cow::into_owned)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Of fields that are there, as they are.
fn object<const N: usize>(fields: [(&str, Option<&str>); N]) -> String {
    let there = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let length: usize = there.clone().map(|(name, value)| name.len() + value.len() + 4).sum();
    let mut text = String::with_capacity(length + 1);
    for (name, value) in there {
        text.push_str(if text.is_empty() { "{\"" } else { ",\"" });
        text.push_str(name);
        text.push_str("\":");
        text.push_str(value);
    }
    text.push('}');
    text
}
