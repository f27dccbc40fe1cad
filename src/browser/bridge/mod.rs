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
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

pub use self::core::Bridge;
use self::core::Out;
use super::{
    frame,
    pulse::{CLOSING, LOOK_EVERY, OURS, Pulse, Watch, Watched},
    relay::{Broken, drain},
    upstream::{DialError, PLATFORM_MAX},
};

/// No client of ours counts up to this.
const PROBE: u64 = 0x7fff_fff0;
/// How often a page is asked what has become of it, while something may become of it.
const TICK: Duration = Duration::from_millis(150);
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
        .max_message_size(Some(PLATFORM_MAX as usize))
        .max_frame_size(Some(PLATFORM_MAX as usize));
    let (client, client_watch) = Watched::new(client);
    let (shim, shim_watch) = Watched::new(shim);
    let mut sides = Sides {
        client: WebSocketStream::from_partially_read(client, held, Role::Server, Some(limits)).await,
        shim: WebSocketStream::from_raw_socket(shim, Role::Client, Some(limits)).await,
        client_watch: client_watch.clone(),
        shim_watch: shim_watch.clone(),
    };
    let ended = tokio::select! {
        ended = sides.run(greeting) => ended,
        () = shim_watch.ends(|pulse, now| pulse.is_silent(now) || pulse.is_stuck(now)) => Err(Broken::Silent),
        () = client_watch.ends(Pulse::is_silent) => Err(Broken::ClientSilent),
    };
    sides.end(&ended).await;
    ended.map(drop)
}

struct Sides<C, S> {
    client: WebSocketStream<Watched<C>>,
    shim: WebSocketStream<Watched<S>>,
    client_watch: Watch,
    shim_watch: Watch,
}

/// Who said goodbye, and how.
enum Goodbye {
    Client(Option<CloseFrame>),
    Shim(Option<CloseFrame>),
}

impl<C, S> Sides<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn run(&mut self, greeting: &str) -> Result<Goodbye, Broken> {
        let mut core = Bridge::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outs = core.shim_says(greeting);
        loop {
            for out in outs.drain(..) {
                match out {
                    Out::Client(message) => self
                        .client
                        .feed(Message::text(message.to_string()))
                        .await
                        .map_err(client_gone)?,
                    Out::Shim(message) => self
                        .shim
                        .feed(Message::text(message.to_string()))
                        .await
                        .map_err(shim_cut)?,
                }
            }
            self.flush().await?;
            tokio::select! {
                message = self.client.next() => match message {
                    Some(Ok(Message::Text(text))) => outs = core.client_says(&text),
                    Some(Ok(Message::Close(frame))) => return Ok(Goodbye::Client(frame)),
                    Some(Ok(Message::Binary(_))) => return Err(Broken::Binary),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(client_gone(error)),
                    None => return Err(Broken::ClientGone),
                },
                message = self.shim.next() => match message {
                    Some(Ok(Message::Text(text))) => outs = core.shim_says(&text),
                    Some(Ok(Message::Close(frame))) => return Ok(Goodbye::Shim(frame)),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(shim_cut(error)),
                    None => return Err(Broken::Cut("it ended without a goodbye".into())),
                },
                _ = ticks.tick() => outs = core.tick(),
                _ = looks.tick() => self.ping().await?,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        // While a slow client is waited for, nobody listens to the shim.
        if let Ok(flushed) = timeout(LOOK_EVERY, self.client.flush()).await {
            flushed.map_err(client_gone)?;
        } else {
            self.shim_watch.pulse().pause();
            self.client.flush().await.map_err(client_gone)?;
        }
        self.shim.flush().await.map_err(shim_cut)
    }

    async fn ping(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        let due = |watch: &Watch| {
            let mut pulse = watch.pulse();
            let due = pulse.is_ping_due(now);
            if due {
                pulse.pinged(now);
            }
            due
        };
        if due(&self.client_watch) {
            self.client
                .feed(Message::Ping(OURS.into()))
                .await
                .map_err(client_gone)?;
        }
        if due(&self.shim_watch) {
            self.shim.feed(Message::Ping(OURS.into())).await.map_err(shim_cut)?;
        }
        Ok(())
    }

    /// Hands a goodbye on, or tells both why it ends.
    async fn end(&mut self, ended: &Result<Goodbye, Broken>) {
        let frame = |code: u16, reason: &str| {
            Some(CloseFrame {
                code: CloseCode::from(code),
                reason: frame::reason(reason).into(),
            })
        };
        let (to_client, to_shim) = match ended {
            Ok(Goodbye::Client(goodbye)) => (None, goodbye.clone()),
            Ok(Goodbye::Shim(goodbye)) => (goodbye.clone(), None),
            Err(broken) => (
                frame(broken.code(), &broken.to_string()),
                frame(1001, "the client is gone"),
            ),
        };
        let client = async {
            let _ = timeout(CLOSING, part(&mut self.client, to_client)).await;
            let stream = self.client.get_mut();
            let _ = timeout(CLOSING, stream.shutdown()).await;
            if !matches!(ended, Ok(Goodbye::Client(_))) {
                drain(stream).await;
            }
        };
        let shim = async {
            let _ = timeout(CLOSING, part(&mut self.shim, to_shim)).await;
            let _ = timeout(CLOSING, self.shim.get_mut().shutdown()).await;
        };
        tokio::join!(client, shim);
    }
}

/// Says goodbye, or answers one.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(with: &mut WebSocketStream<S>, goodbye: Option<CloseFrame>) {
    // Where the other side began, its answer is already waiting to be sent, and another is refused.
    let _ = with.close(goodbye).await;
    let _ = with.flush().await;
}

fn client_gone(error: Error) -> Broken {
    match error {
        Error::Capacity(_) => Broken::TooLong(PLATFORM_MAX),
        Error::Protocol(_) | Error::Utf8(_) => Broken::Garbled(error.to_string()),
        _ => Broken::ClientGone,
    }
}

fn shim_cut(error: Error) -> Broken {
    match error {
        Error::Capacity(_) => Broken::TooMuch(PLATFORM_MAX),
        Error::Protocol(_) | Error::Utf8(_) => Broken::BrowserGarbled(error.to_string()),
        error => Broken::Cut(error.to_string()),
    }
}
