//! One WebSocket of a client, from the upgrade to its end.
//!
//! The upstream is dialled on the first command. A probe opens a socket, perhaps asks for the version, and closes
//! it: that is answered here and launches nothing.

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    Shared,
    frame::{self, BadFrame, Header},
    hub,
    relay::{drain, relay},
    upstream::Upstream,
};
use crate::event::Event;

/// What a client may send before the upstream is there; beyond it, it waits.
const HELD_MAX: usize = 256 << 10;

/// Serves a client until either side ends it.
pub async fn run(mut client: impl AsyncRead + AsyncWrite + Unpin, path: &str, shared: &Shared) {
    let upstream = &*shared.upstream;
    let Ok(Some(mut held)) = begin(&mut client, upstream).await else {
        let _ = client.shutdown().await;
        return;
    };
    if let Some(hub) = &shared.hub {
        hub::serve(hub, client, path, held).await;
        return;
    }
    let name = upstream.name();
    let dialled = tokio::select! {
        dialled = upstream.dial(path) => dialled,
        farewell = hold(&mut client, &mut held) => {
            let _ = client.write_all(&farewell).await;
            let _ = client.shutdown().await;
            return;
        }
    };
    let failed = |why: &dyn std::fmt::Display| {
        let why = upstream.masked(&why.to_string());
        let upstream = name.clone();
        shared.events.emit(Event::BrowserFailed {
            upstream,
            why: why.clone(),
        });
        why
    };
    let browser = match dialled {
        Ok(browser) => browser,
        Err(error) => {
            refuse(&mut client, &held, &failed(&error)).await;
            return;
        }
    };
    shared.events.emit(Event::BrowserConnected { upstream: name.clone() });
    match relay(client, browser, held).await {
        Err(broken) if broken.is_the_browsers() => drop(failed(&broken)),
        Err(broken) => tracing::info!(upstream = %name, %broken, "a browser session ended"),
        Ok(()) => {}
    }
}

/// A whole frame.
struct Frame {
    header: Header,
    /// Unmasked.
    payload: Vec<u8>,
}

impl Frame {
    fn len(&self) -> usize {
        self.header.len + self.payload.len()
    }
}

/// The frame at the start of `bytes`, if all of it is there.
fn next_frame(bytes: &[u8]) -> Result<Option<Frame>, BadFrame> {
    let Some(header) = frame::header(bytes)? else {
        return Ok(None);
    };
    let end = usize::try_from(header.payload)
        .ok()
        .and_then(|len| len.checked_add(header.len));
    let Some(payload) = end.and_then(|end| bytes.get(header.len..end)) else {
        return Ok(None);
    };
    let mut payload = payload.to_vec();
    if let Some(mask) = header.mask {
        frame::apply_mask(&mut payload, mask, 0);
    }
    Ok(Some(Frame { header, payload }))
}

/// Answers what needs no browser, up to the first frame that does: gives everything that the client has sent and that
/// was not answered here, or nothing if it left. Nothing was launched then.
async fn begin(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &Upstream,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut held = Vec::new();
    loop {
        let frame = match next_frame(&held) {
            Ok(Some(frame)) => frame,
            Ok(None) if is_long(&held) => return Ok(Some(held)),
            Ok(None) if client.read_buf(&mut held).await? == 0 => return Ok(None),
            Ok(None) => continue,
            Err(bad) => {
                client.write_all(&not_a_frame(bad)).await?;
                return Ok(None);
            }
        };
        let answer = match frame.header.opcode {
            frame::CLOSE => {
                client.write_all(&echo(&frame)).await?;
                return Ok(None);
            }
            frame::PING => frame::encode(frame::PONG, &frame.payload, false),
            frame::PONG => Vec::new(),
            _ => match version_asked(&frame) {
                Some(id) => {
                    let answer = json!({ "id": id, "result": upstream.version().await.result() });
                    frame::encode(frame::TEXT, answer.to_string().as_bytes(), false)
                }
                None => return Ok(Some(held)),
            },
        };
        client.write_all(&answer).await?;
        held.drain(..frame.len());
    }
}

/// A command too long to be a probe's has begun.
fn is_long(bytes: &[u8]) -> bool {
    let header = frame::header(bytes).ok().flatten();
    header.is_some_and(|header| !header.is_control() && header.payload > frame::CONTROL_MAX as u64)
}

/// The answer to a close frame.
fn echo(close: &Frame) -> Vec<u8> {
    frame::encode(frame::CLOSE, &close.payload, false)
}

fn not_a_frame(bad: BadFrame) -> Vec<u8> {
    frame::close(1002, &bad.to_string(), false)
}

/// The id, if this is a plain `Browser.getVersion`.
fn version_asked(frame: &Frame) -> Option<Value> {
    let mut command: Value = serde_json::from_slice(&frame.payload)
        .ok()
        .filter(|_| frame.header.fin)?;
    let plain = command["method"] == "Browser.getVersion" && command.get("sessionId").is_none();
    plain.then(|| command["id"].take())
}

/// Takes in what the client sends meanwhile, up to a bound. Ends only when the client does; gives what it is still to be
/// told.
pub async fn hold(client: &mut (impl AsyncRead + Unpin), held: &mut Vec<u8>) -> Vec<u8> {
    let mut seen = 0;
    loop {
        match next_frame(&held[seen..]) {
            Ok(Some(frame)) if frame.header.opcode == frame::CLOSE => return echo(&frame),
            Ok(Some(frame)) => {
                seen += frame.len();
                continue;
            }
            Ok(None) => {}
            Err(bad) => return not_a_frame(bad),
        }
        let room = HELD_MAX.saturating_sub(held.len());
        if room == 0 {
            return std::future::pending().await;
        }
        match client.take(room as u64).read_buf(held).await {
            Ok(0) | Err(_) => return Vec::new(),
            Ok(_) => {}
        }
    }
}

/// Answers the command that was waiting with the reason, and closes.
pub async fn refuse(client: &mut (impl AsyncRead + AsyncWrite + Unpin), held: &[u8], why: &str) {
    let first = next_frame(held).ok().flatten();
    let command: Option<Value> = first.and_then(|frame| serde_json::from_slice(&frame.payload).ok());
    let mut farewell = Vec::new();
    if let Some(id) = command.as_ref().and_then(|command| command.get("id")) {
        let mut answer = json!({ "id": id, "error": { "code": -32000, "message": why } });
        if let Some(session) = command.as_ref().and_then(|command| command.get("sessionId")) {
            answer["sessionId"] = session.clone();
        }
        farewell.extend(frame::encode(frame::TEXT, answer.to_string().as_bytes(), false));
    }
    farewell.extend(frame::close(1011, why, false));
    let _ = client.write_all(&farewell).await;
    let _ = client.shutdown().await;
    drain(client).await;
}
