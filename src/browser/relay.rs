//! Bytes from one side to the other.
//!
//! Frames go through as they are: a client's mask is as good for the upstream as for us, so payloads are neither
//! copied nor gathered, and a message of any size costs one buffer. Headers are read on the way, for three things:
//! to know where a frame of our own may go in between, to count a message's length, and to keep our own pings'
//! answers from a client that never asked.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::frame::{self, BadFrame, Header};

/// Between our pings to the upstream, which also keep idle connections from being cut on the way.
const PING_EVERY: Duration = Duration::from_secs(10);
/// An upstream that sent nothing for so long, though pinged, is gone.
const SILENCE: Duration = Duration::from_secs(28);
/// For the other side's part of a closing handshake.
const CLOSING: Duration = Duration::from_secs(5);
/// What is in flight in each direction.
const BUFFER: usize = 64 << 10;
/// What our pings carry, to know their answers by.
const OURS: &[u8] = b"moltinit";

/// Why a relay ended other than by its sides closing it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the browser was not heard of for {} s", SILENCE.as_secs())]
    Silent,
    #[error("a message is longer than the {0} bytes that this browser takes")]
    TooLong(u64),
    #[error("{0} sent what is no WebSocket frame: {1}")]
    Garbled(&'static str, BadFrame),
    #[error("the connection to the browser was cut: {0}")]
    Cut(String),
    #[error("the client is gone")]
    ClientGone,
}

impl Broken {
    /// The close code that says it (RFC 6455, section 7.4.1).
    pub fn code(&self) -> u16 {
        match self {
            Broken::TooLong(_) => 1009,
            Broken::Garbled(..) => 1002,
            Broken::Silent | Broken::Cut(_) | Broken::ClientGone => 1011,
        }
    }
}

/// Where a stream of frames is.
#[derive(Debug, Default)]
pub struct Position {
    /// A header of which there is more to come.
    header: Vec<u8>,
    /// Bytes of the present frame's payload still to come.
    payload: u64,
    /// Bytes of the present message so far.
    message: u64,
    /// The payload now coming is the answer to a ping of ours, or may be.
    pong: Option<Vec<u8>>,
    closed: bool,
}

impl Position {
    /// Between two frames.
    fn is_between(&self) -> bool {
        self.header.is_empty() && self.payload == 0
    }

    /// Takes `bytes` in and puts out what is to be passed on.
    fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>, limit: Option<u64>) -> Result<(), Pass> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= here as u64;
                match &mut self.pong {
                    None => out.extend(&bytes[..here]),
                    Some(held) => {
                        held.extend(&bytes[..here]);
                        if self.payload == 0 {
                            self.end_pong(out);
                        }
                    }
                }
                bytes = &bytes[here..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(header) = frame::header(&self.header).map_err(Pass::Garbled)? {
                self.begin(&header, out, limit)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: &Header, out: &mut Vec<u8>, limit: Option<u64>) -> Result<(), Pass> {
        let bytes = std::mem::take(&mut self.header);
        if !header.is_control() {
            self.message = self.message.saturating_add(header.payload);
            if let Some(limit) = limit.filter(|limit| self.message > *limit) {
                return Err(Pass::TooLong(limit));
            }
            if header.fin {
                self.message = 0;
            }
        }
        self.closed |= header.opcode == frame::CLOSE;
        self.payload = header.payload;
        if header.opcode == frame::PONG && header.mask.is_none() && header.payload == OURS.len() as u64 {
            self.pong = Some(bytes);
        } else {
            out.extend(bytes);
        }
        Ok(())
    }

    fn end_pong(&mut self, out: &mut Vec<u8>) {
        let held = self.pong.take().unwrap_or_default();
        if !held.ends_with(OURS) {
            out.extend(held);
        }
    }
}

enum Pass {
    Garbled(BadFrame),
    TooLong(u64),
}

/// How one direction ended.
enum End {
    /// The source's end of the stream; whether it had said goodbye.
    Eof {
        closed: bool,
    },
    Broken(Broken),
}

/// Relays until both sides have closed. `first` is what the client has sent already; `limit` is the longest message
/// the upstream takes.
///
/// # Errors
/// What broke it. The client has been told by a close frame, if it still listens and no frame was half-way to it.
pub async fn relay(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    first: Vec<u8>,
    limit: Option<u64>,
) -> Result<(), Broken> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let mut down_position = Position::default();
    let ended = {
        let up = up(&mut from_client, &mut to_upstream, first, limit);
        let down = down(&mut from_upstream, &mut to_client, &mut down_position);
        tokio::pin!(up, down);
        tokio::select! {
            end = &mut up => match end {
                // The upstream answers the goodbye, and that is passed on.
                End::Eof { .. } => timeout(CLOSING, &mut down).await.map_or(Ok(()), finished),
                End::Broken(broken) => Err(broken),
            },
            end = &mut down => match end {
                End::Eof { closed: true } => timeout(CLOSING, &mut up).await.map_or(Ok(()), finished),
                End::Eof { closed: false } => Err(Broken::Cut("it ended without a goodbye".into())),
                End::Broken(broken) => Err(broken),
            },
        }
    };
    if let Err(broken) = &ended {
        if down_position.is_between() && !down_position.closed {
            let goodbye = frame::close(broken.code(), &broken.to_string(), false);
            let _ = timeout(CLOSING, to_client.write_all(&goodbye)).await;
        }
        let goodbye = frame::close(1001, "the client is gone", true);
        let _ = timeout(CLOSING, to_upstream.write_all(&goodbye)).await;
    }
    let _ = timeout(CLOSING, to_client.shutdown()).await;
    let _ = timeout(CLOSING, to_upstream.shutdown()).await;
    ended
}

fn finished(end: End) -> Result<(), Broken> {
    match end {
        End::Broken(broken @ (Broken::TooLong(_) | Broken::Garbled(..))) => Err(broken),
        _ => Ok(()),
    }
}

/// From the client to the upstream, with a ping of ours now and then.
async fn up(
    client: &mut (impl AsyncRead + Unpin),
    upstream: &mut (impl AsyncWrite + Unpin),
    first: Vec<u8>,
    limit: Option<u64>,
) -> End {
    let mut position = Position::default();
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut bytes, mut out) = (vec![0; BUFFER], Vec::new());
    let mut next = first;
    loop {
        if let Err(pass) = position.pass(&next, &mut out, limit) {
            return End::Broken(match pass {
                Pass::Garbled(bad) => Broken::Garbled("the client", bad),
                Pass::TooLong(limit) => Broken::TooLong(limit),
            });
        }
        if let Err(error) = write(upstream, &mut out).await {
            return End::Broken(Broken::Cut(error.to_string()));
        }
        next.clear();
        tokio::select! {
            read = client.read(&mut bytes) => match read {
                Ok(0) => return End::Eof { closed: position.closed },
                Ok(count) => next.extend(&bytes[..count]),
                Err(_) => return End::Broken(Broken::ClientGone),
            },
            _ = pings.tick(), if position.is_between() && !position.closed => {
                out.extend(frame::encode(frame::PING, OURS, true));
            }
        }
    }
}

/// From the upstream to the client.
async fn down(
    upstream: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    position: &mut Position,
) -> End {
    let (mut bytes, mut out) = (vec![0; BUFFER], Vec::new());
    loop {
        // Only the wait for the upstream counts as its silence, not the wait for a slow client.
        let count = match timeout(SILENCE, upstream.read(&mut bytes)).await {
            Err(_) => return End::Broken(Broken::Silent),
            Ok(Err(error)) => return End::Broken(Broken::Cut(error.to_string())),
            Ok(Ok(0)) => {
                return End::Eof {
                    closed: position.closed,
                };
            }
            Ok(Ok(count)) => count,
        };
        match position.pass(&bytes[..count], &mut out, None) {
            Ok(()) => {}
            Err(Pass::Garbled(bad)) => return End::Broken(Broken::Garbled("the browser", bad)),
            Err(Pass::TooLong(limit)) => return End::Broken(Broken::TooLong(limit)),
        }
        if write(client, &mut out).await.is_err() {
            return End::Broken(Broken::ClientGone);
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), out: &mut Vec<u8>) -> io::Result<()> {
    if !out.is_empty() {
        to.write_all(out).await?;
        to.flush().await?;
        out.clear();
    }
    Ok(())
}
