//! A bridge to moltworker's shim: a Worker that speaks a little of the protocol, on top of Cloudflare's Puppeteer.
//!
//! The shim launches a browser for each connection, drops what is sent before it is up, and then says
//! `Target.targetCreated`. It knows no sessions, no execution contexts and no remote objects, sends hardly any events,
//! and its `Runtime.callFunctionOn` cannot work in a Worker. Playwright, Puppeteer and OpenClaw's browser tool need all
//! of that. So sessions and contexts are kept here ([`core`]), objects in the page (`agent.js`, run by
//! `Runtime.evaluate`, which the shim has), and events are made of what the page says of itself.
//!
//! What cannot be had: isolated worlds (all contexts are the page's own), frames inside a page, network events, request
//! interception, downloads, and contexts of their own (`newContext`).

mod core;

use std::{io, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

pub use self::core::Bridge;
use self::core::Out;
use super::{frame, relay::Broken, upstream::DialError};

/// No client of ours counts up to this.
const PROBE: u64 = 0x7fff_fff0;
/// How often a page is asked what has become of it, while something may become of it.
const TICK: Duration = Duration::from_millis(150);
/// Between pings, which also keep idle connections from being cut on the way.
const PING_EVERY: Duration = Duration::from_secs(10);
/// A shim that sent nothing for so long, though pinged, is gone.
const SILENCE: Duration = Duration::from_secs(28);
/// The longest message that Cloudflare passes.
const MESSAGE_MAX: usize = 32 << 20;
/// The longest first message: an event or an answer of a few fields.
const GREETING_MAX: u64 = 64 << 10;

/// What is behind a Worker.
pub enum Greeting {
    /// A browser, passed through.
    Browser,
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
                let message: Value = serde_json::from_slice(&payload).unwrap_or_default();
                return Ok(match message["method"].as_str() {
                    Some("Target.targetCreated") => Greeting::Shim(String::from_utf8_lossy(&payload).into_owned()),
                    _ => Greeting::Browser,
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

/// Serves a client with the shim until either side ends it. `held` is what the client has sent already, `greeting` what
/// the shim has.
///
/// # Errors
/// What broke it; the client has been told.
pub async fn bridge(
    client: impl AsyncRead + AsyncWrite + Unpin,
    shim: impl AsyncRead + AsyncWrite + Unpin,
    held: Vec<u8>,
    greeting: &str,
) -> Result<(), Broken> {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    let mut client = WebSocketStream::from_partially_read(client, held, Role::Server, Some(limits)).await;
    let mut shim = WebSocketStream::from_raw_socket(shim, Role::Client, Some(limits)).await;
    let mut core = Bridge::default();
    let ended = turn(&mut core, greeting, &mut client, &mut shim).await;
    let goodbye = match &ended {
        Ok(frame) => frame.clone(),
        Err(broken) => Some(CloseFrame {
            code: CloseCode::from(broken.code()),
            reason: broken.to_string().chars().take(40).collect::<String>().into(),
        }),
    };
    let closing = Duration::from_secs(5);
    let _ = timeout(closing, client.close(goodbye)).await;
    let _ = timeout(closing, shim.close(None)).await;
    ended.map(drop)
}

async fn turn<C, S>(
    core: &mut Bridge,
    greeting: &str,
    client: &mut WebSocketStream<C>,
    shim: &mut WebSocketStream<S>,
) -> Result<Option<CloseFrame>, Broken>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pings = interval(PING_EVERY);
    let mut heard = tokio::time::Instant::now();
    let mut outs = core.shim_says(greeting);
    loop {
        for out in outs.drain(..) {
            let sent = match out {
                Out::Client(message) => client.feed(Message::text(message.to_string())).await,
                Out::Shim(message) => shim.feed(Message::text(message.to_string())).await,
            };
            sent.map_err(|error| Broken::Cut(error.to_string()))?;
        }
        client.flush().await.map_err(|_| Broken::ClientGone)?;
        shim.flush().await.map_err(|error| Broken::Cut(error.to_string()))?;
        tokio::select! {
            message = client.next() => match message {
                Some(Ok(Message::Text(text))) => outs = core.client_says(&text),
                Some(Ok(Message::Close(frame))) => return Ok(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Broken::ClientGone),
            },
            message = shim.next() => {
                heard = tokio::time::Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => outs = core.shim_says(&text),
                    Some(Ok(Message::Close(frame))) => return Ok(frame),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Broken::Cut(error.to_string())),
                    None => return Err(Broken::Cut("it ended without a goodbye".into())),
                }
            }
            _ = ticks.tick() => outs = core.tick(),
            _ = pings.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err(Broken::Silent);
                }
                let ping = Message::Ping("moltinit".into());
                shim.send(ping).await.map_err(|error| Broken::Cut(error.to_string()))?;
            }
        }
    }
}
