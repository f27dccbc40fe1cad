//! One WebSocket of a client, from the upgrade to its end.
//!
//! The upstream is dialled on the first command. A probe opens a socket, perhaps asks for the version, and closes
//! it: that is answered here and launches nothing.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    Shared,
    bridge::{Greeting, bridge, greet},
    discovery,
    frame::{self, Header},
    relay::relay,
    upstream::{DIAL, DialError},
};
use crate::event::Event;

/// What a client may send before the upstream is there; beyond it, it waits.
const HELD_MAX: usize = 256 << 10;

/// What the client's first frames come to.
enum Begin {
    /// It left, and nothing was launched.
    Left,
    /// It wants the browser. Everything it has sent that was not answered here.
    Wants(Vec<u8>),
}

/// Serves a client until either side ends it.
pub async fn run(mut client: impl AsyncRead + AsyncWrite + Unpin, path: &str, shared: &Shared) {
    let Ok(Begin::Wants(mut held)) = begin(&mut client).await else {
        let _ = client.shutdown().await;
        return;
    };
    let name = shared.upstream.name();
    let dial = async {
        let mut browser = shared.upstream.dial(path).await?;
        let greeting = match shared.upstream.may_be_shim() {
            true => timeout(DIAL, greet(&mut browser))
                .await
                .unwrap_or(Err(DialError::TimedOut(DIAL)))?,
            false => Greeting::Browser,
        };
        Ok::<_, DialError>((browser, greeting))
    };
    let dialled = tokio::select! {
        dialled = dial => dialled,
        () = hold(&mut client, &mut held) => return,
    };
    let (browser, greeting) = match dialled {
        Ok(dialled) => dialled,
        Err(error) => {
            shared.events.emit(Event::BrowserFailed {
                upstream: name,
                why: error.to_string(),
            });
            refuse(&mut client, &held, &error).await;
            return;
        }
    };
    shared.events.emit(Event::BrowserConnected { upstream: name.clone() });
    let ended = match greeting {
        Greeting::Browser => relay(client, browser, held, shared.upstream.message_max()).await,
        Greeting::Shim(greeting) => bridge(client, browser, held, &greeting).await,
    };
    if let Err(broken) = ended {
        tracing::warn!(upstream = %name, %broken, "a browser session ended");
    }
}

/// Answers what needs no browser, up to the first frame that does.
async fn begin(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Begin> {
    let mut held = Vec::new();
    loop {
        match frame::header(&held) {
            Ok(None) => {}
            // The relay says what is wrong with it, once there is somebody to relay to; here it is just refused.
            Err(bad) => {
                client.write_all(&frame::close(1002, &bad.to_string(), false)).await?;
                return Ok(Begin::Left);
            }
            Ok(Some(header)) => match whole(&held, &header) {
                // A command too long to be a probe's.
                None if !header.is_control() && header.payload > frame::CONTROL_MAX as u64 => {
                    return Ok(Begin::Wants(held));
                }
                None => {}
                Some(payload) => match header.opcode {
                    frame::CLOSE => {
                        client.write_all(&frame::encode(frame::CLOSE, &payload, false)).await?;
                        return Ok(Begin::Left);
                    }
                    frame::PING => {
                        client.write_all(&frame::encode(frame::PONG, &payload, false)).await?;
                        held.drain(..header.len + payload.len());
                        continue;
                    }
                    frame::PONG => {
                        held.drain(..header.len + payload.len());
                        continue;
                    }
                    _ => match version_asked(&header, &payload) {
                        Some(id) => {
                            let answer = json!({ "id": id, "result": discovery::browser_version() }).to_string();
                            client
                                .write_all(&frame::encode(frame::TEXT, answer.as_bytes(), false))
                                .await?;
                            held.drain(..header.len + payload.len());
                            continue;
                        }
                        None => return Ok(Begin::Wants(held)),
                    },
                },
            },
        }
        if client.read_buf(&mut held).await? == 0 {
            return Ok(Begin::Left);
        }
    }
}

/// The frame's payload, unmasked, if all of it is there.
fn whole(bytes: &[u8], header: &Header) -> Option<Vec<u8>> {
    let end = usize::try_from(header.payload).ok()?.checked_add(header.len)?;
    let mut payload = bytes.get(header.len..end)?.to_vec();
    if let Some(mask) = header.mask {
        frame::apply_mask(&mut payload, mask, 0);
    }
    Some(payload)
}

/// The id, if this is a plain `Browser.getVersion`.
fn version_asked(header: &Header, payload: &[u8]) -> Option<Value> {
    let mut command: Value = serde_json::from_slice(payload).ok().filter(|_| header.fin)?;
    let plain = command["method"] == "Browser.getVersion" && command.get("sessionId").is_none();
    plain.then(|| command["id"].take())
}

/// Takes in what the client sends meanwhile, up to a bound. Ends only when the client does.
async fn hold(client: &mut (impl AsyncRead + Unpin), held: &mut Vec<u8>) {
    while held.len() < HELD_MAX {
        let room = HELD_MAX - held.len();
        match client.take(room as u64).read_buf(held).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    std::future::pending().await
}

/// Answers the command that was waiting with the reason, and closes.
async fn refuse(client: &mut (impl AsyncRead + AsyncWrite + Unpin), held: &[u8], error: &DialError) {
    let first = frame::header(held).ok().flatten();
    let command: Option<Value> = first
        .and_then(|header| whole(held, &header))
        .and_then(|payload| serde_json::from_slice(&payload).ok());
    let mut farewell = Vec::new();
    if let Some(id) = command.as_ref().and_then(|command| command.get("id")) {
        let mut answer = json!({ "id": id, "error": { "code": -32000, "message": error.to_string() } });
        if let Some(session) = command.as_ref().and_then(|command| command.get("sessionId")) {
            answer["sessionId"] = session.clone();
        }
        farewell.extend(frame::encode(frame::TEXT, answer.to_string().as_bytes(), false));
    }
    farewell.extend(frame::close(1011, &error.to_string(), false));
    let _ = client.write_all(&farewell).await;
    // Until it has read that and closed, or the connection would be reset under it.
    let drained = async { while client.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), drained).await;
    let _ = client.shutdown().await;
}
