//! A bridge to moltworker's shim: a Worker that speaks a little of the protocol, on top of Cloudflare's Puppeteer.
//!
//! The shim launches a browser for each connection, drops what is sent before it is up, and then says
//! `Target.targetCreated`. It knows no sessions, no execution contexts and no remote objects, sends hardly any events,
//! and its `Runtime.callFunctionOn` cannot work in a Worker. Playwright, Puppeteer and OpenClaw's browser tool need all
//! of that. So sessions and contexts are kept here ([`core`]), objects in the page (`agent.js`, run by
//! `Runtime.evaluate`, which the shim has), and events are made of what the page says of itself.
//!
//! What cannot be had: isolated worlds (all contexts are the page's own), frames inside a page, what the network answers,
//! downloads, and contexts of their own (`newContext`). A request can be intercepted; where several pages have theirs
//! intercepted at once, the shim does not say whose it is, and the client of the first of them is asked.

mod core;

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use self::core::{Bridge, Out};
use super::{frame, upstream::DialError};

/// No client of ours counts up to this.
const PROBE: u64 = 0x7fff_fff0;
/// How often a page is asked what has become of it, while something may become of it.
pub const TICK: Duration = Duration::from_millis(150);
/// The longest first message: an event or an answer of a few fields.
const GREETING_MAX: u64 = 64 << 10;

/// What is behind a Worker.
pub enum Greeting {
    /// A browser, passed through, and what it says of itself.
    Browser(Value),
    /// The shim, and its first message.
    Shim(String),
}

/// Finds out which: a browser answers a question, the shim speaks unasked.
///
/// # Errors
/// It closed, or said what neither would say.
pub async fn greet(upstream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Greeting, DialError> {
    let ask = json!({ "id": PROBE, "method": "Browser.getVersion" }).to_string();
    let cut = |error: io::Error| DialError::Unreachable(error.to_string());
    upstream
        .write_all(&frame::encode(frame::TEXT, ask.as_bytes(), true))
        .await
        .map_err(cut)?;
    upstream.flush().await.map_err(cut)?;
    loop {
        let (opcode, payload) = read_frame(upstream).await.map_err(cut)?;
        match opcode {
            frame::PING => upstream
                .write_all(&frame::encode(frame::PONG, &payload, true))
                .await
                .map_err(cut)?,
            frame::CLOSE => {
                let why = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                return Err(DialError::Nonsense(format!("it closed at once: {why}")));
            }
            frame::TEXT => {
                let mut message: Value = serde_json::from_slice(&payload).unwrap_or_default();
                return Ok(match message["method"].as_str() {
                    Some("Target.targetCreated") => Greeting::Shim(String::from_utf8_lossy(&payload).into_owned()),
                    _ => Greeting::Browser(message["result"].take()),
                });
            }
            _ => {}
        }
    }
}

/// One frame and not a byte more, so that the rest is for whoever comes next.
async fn read_frame(upstream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut bytes = Vec::new();
    let header = loop {
        bytes.push(upstream.read_u8().await?);
        if let Some(header) = frame::header(&bytes).map_err(|error| bad(error.to_string()))? {
            break header;
        }
    };
    if !header.fin || header.payload > GREETING_MAX {
        return Err(bad("its first message is none of a browser's".into()));
    }
    let mut payload = vec![0; header.payload as usize];
    upstream.read_exact(&mut payload).await?;
    Ok((header.opcode, payload))
}
