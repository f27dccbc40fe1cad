//! What of a message says whose it is. The rest stays text, however long it is.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

use super::text::{LONG, Text};

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
    /// All of it.
    #[serde(skip)]
    whole: Bytes,
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
    pub fn of(text: &'a Utf8Bytes) -> Option<Envelope<'a>> {
        let message: Envelope<'a> = serde_json::from_str(text).ok()?;
        let whole = text.clone().into();
        Some(Envelope { whole, ..message })
    }

    /// The same message under another id and session. What is long of it is shared with this one.
    pub fn readdressed(&self, id: Option<&str>, session: Option<&str>) -> Text {
        let shared = |value: &RawValue| self.whole.slice_ref(value.get().as_bytes());
        object([
            ("id", id.map(plain)),
            ("method", self.method.as_deref().map(quoted)),
            ("params", self.params.map(shared)),
            ("result", self.result.map(shared)),
            ("error", self.error.map(shared)),
            ("sessionId", session.map(quoted)),
        ])
    }

    /// An answer to it that is none.
    pub fn refusal(&self, id: &str, error: &str) -> Text {
        object([
            ("id", Some(plain(id))),
            ("error", Some(plain(error))),
            ("sessionId", self.session.as_deref().map(quoted)),
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

fn plain(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn quoted(text: &str) -> Bytes {
    serde_json::Value::from(text).to_string().into()
}

/// Of fields that are there, as they are. A long value becomes a part of its own.
fn object<const N: usize>(fields: [(&str, Option<Bytes>); N]) -> Text {
    let (mut parts, mut open) = (Vec::<Bytes>::new(), vec![b'{']);
    let there = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    for (index, (name, value)) in there.enumerate() {
        open.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        open.extend_from_slice(name.as_bytes());
        open.extend_from_slice(b"\":");
        if value.len() > LONG {
            parts.extend([std::mem::take(&mut open).into(), value]);
        } else {
            open.extend_from_slice(&value);
        }
    }
    open.push(b'}');
    parts.push(open.into());
    parts.into_iter().collect()
}
