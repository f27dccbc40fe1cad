//! Bytes from one side to the other.
//!
//! Frames go through as they are: a client's mask is as good for the upstream as for us, so no message is gathered, and
//! one of any size costs one buffer. Headers are read on the way, for three things: to know where a frame of our own may
//! go in between, to see both sides close, and to keep our own pings' answers from somebody who never asked.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    frame::{self, BadFrame},
    position::Position,
    pulse::{CLOSING, LOOK_EVERY, OURS, Pulse, SILENCE, Watch, Watched},
};

/// For a client to read why it was closed, and to hang up.
const DRAIN: Duration = Duration::from_secs(2);
/// What is in flight in each direction.
const BUFFER: usize = 64 << 10;

/// Why a session ended other than by its sides closing it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the browser was not heard of for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the connection to the browser was cut: {0}")]
    Cut(String),
    #[error("a message of the browser's is longer than the {0} bytes that can be passed on")]
    TooMuch(u64),
    #[error("the browser sent what is no WebSocket frame: {0}")]
    BrowserGarbled(String),
    #[error("a message is longer than the {0} bytes that this browser takes")]
    TooLong(u64),
    #[error("the client sent what is no WebSocket frame: {0}")]
    Garbled(String),
    #[error("this browser takes text only")]
    Binary,
    #[error("the client stopped in the middle of a message, while others waited")]
    Halfway,
    #[error("the client does not answer")]
    ClientSilent,
    #[error("the client is gone")]
    ClientGone,
}

impl Broken {
    /// The close code that says it to the client (RFC 6455, section 7.4.1).
    pub fn code(&self) -> u16 {
        match self {
            Broken::TooLong(_) | Broken::TooMuch(_) => 1009,
            Broken::Garbled(_) => 1002,
            Broken::Binary => 1003,
            Broken::Halfway
            | Broken::Silent
            | Broken::Cut(_)
            | Broken::BrowserGarbled(_)
            | Broken::ClientSilent
            | Broken::ClientGone => 1011,
        }
    }

    /// The browser has failed, not the client.
    pub fn is_the_browsers(&self) -> bool {
        matches!(
            self,
            Broken::Silent | Broken::Cut(_) | Broken::TooMuch(_) | Broken::BrowserGarbled(_)
        )
    }
}

/// One direction: what comes in at `from`, and what of it is still to go out at `to`.
struct Flow<R, W> {
    from: R,
    to: W,
    position: Position,
    buffer: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    has_to_flush: bool,
    /// Nothing more will come.
    has_ended: bool,
}

/// What one step of a direction came to.
enum Step {
    Moved,
    Ended,
    Garbled(BadFrame),
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Flow<R, W> {
    fn new(from: R, to: W) -> Self {
        Flow {
            from,
            to,
            position: Position::default(),
            buffer: vec![0; BUFFER],
            out: Vec::new(),
            sent: 0,
            has_to_flush: false,
            has_ended: false,
        }
    }

    fn is_written(&self) -> bool {
        self.sent == self.out.len() && !self.has_to_flush
    }

    /// All that will ever come has gone out, a close frame at its end.
    fn is_over(&self) -> bool {
        self.position.has_closed() && self.is_written()
    }

    /// Writes what is there to be written; else reads. To be dropped and begun again at will.
    async fn step(&mut self) -> Step {
        if self.sent < self.out.len() {
            return match self.to.write(&self.out[self.sent..]).await {
                Ok(0) => Step::WriteFailed(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.has_to_flush = true;
                    if self.sent == self.out.len() {
                        self.out.clear();
                        self.sent = 0;
                    }
                    Step::Moved
                }
                Err(error) => Step::WriteFailed(error),
            };
        }
        if self.has_to_flush {
            return match self.to.flush().await {
                Ok(()) => {
                    self.has_to_flush = false;
                    Step::Moved
                }
                Err(error) => Step::WriteFailed(error),
            };
        }
        match self.from.read(&mut self.buffer).await {
            Ok(0) => {
                self.has_ended = true;
                Step::Ended
            }
            Ok(count) => self.take(count),
            Err(error) => Step::ReadFailed(error),
        }
    }

    fn take(&mut self, count: usize) -> Step {
        match self.position.pass(&self.buffer[..count], &mut self.out) {
            Ok(()) => Step::Moved,
            Err(bad) => Step::Garbled(bad),
        }
    }

    /// Puts a frame of our own in between, if one may stand there.
    fn interject(&mut self, frame: &[u8]) -> bool {
        let may = self.position.is_between() && !self.position.has_closed() && self.is_written();
        if may {
            self.out.extend(frame);
        }
        may
    }

    /// What is still on the way, and then `frame`, if one may stand there.
    fn last(&self, frame: &[u8]) -> Vec<u8> {
        let mut last = self.out[self.sent..].to_vec();
        if self.position.is_between() && !self.position.has_closed() {
            last.extend(frame);
        }
        last
    }
}

/// A side, with its pulse.
type Reader<S> = ReadHalf<Watched<S>>;
type Writer<S> = WriteHalf<Watched<S>>;

struct Relay<C, U> {
    up: Flow<Reader<C>, Writer<U>>,
    down: Flow<Reader<U>, Writer<C>>,
    client: Watch,
    upstream: Watch,
}

/// Relays until both sides have closed. `first` is what the client has sent already.
///
/// # Errors
/// What broke it. The client has been told by a close frame, if it still listens and no frame was half-way to it.
pub async fn relay<C, U>(client: C, upstream: U, first: Vec<u8>) -> Result<(), Broken>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (client, client_watch) = Watched::new(client);
    let (upstream, upstream_watch) = Watched::new(upstream);
    let (from_client, to_client) = split(client);
    let (from_upstream, to_upstream) = split(upstream);
    let mut relay = Relay {
        up: Flow::new(from_client, to_upstream),
        down: Flow::new(from_upstream, to_client),
        client: client_watch.clone(),
        upstream: upstream_watch.clone(),
    };
    let ended = match relay.up.position.pass(&first, &mut relay.up.out) {
        Err(bad) => Err(Broken::Garbled(bad.to_string())),
        Ok(()) => tokio::select! {
            ended = relay.run() => ended,
            () = upstream_watch.ends(|pulse, now| pulse.is_silent(now) || pulse.is_stuck(now)) => Err(Broken::Silent),
            () = client_watch.ends(Pulse::is_silent) => Err(Broken::ClientSilent),
        },
    };
    relay.end(ended.as_ref().err()).await;
    ended
}

impl<C, U> Relay<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    async fn run(&mut self) -> Result<(), Broken> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut until: Option<Instant> = None;
        loop {
            if self.up.is_over() && self.down.is_over() {
                return Ok(());
            }
            let is_closing = self.up.position.has_closed() || self.down.position.has_closed();
            if is_closing {
                until.get_or_insert_with(|| Instant::now() + CLOSING);
            }
            let stepped = tokio::select! {
                step = self.up.step(), if !self.up.has_ended => self.stepped_up(step),
                step = self.down.step(), if !self.down.has_ended => self.stepped_down(step),
                _ = looks.tick() => {
                    self.ping();
                    Ok(())
                }
                // The other side does not answer the goodbye.
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return Ok(()),
            };
            match stepped {
                Ok(()) => {}
                // A side may answer a goodbye by hanging up.
                Err(_) if is_closing => return Ok(()),
                Err(broken) => return Err(broken),
            }
        }
    }

    fn stepped_up(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Moved => Ok(()),
            // The upstream answers the goodbye, and that is passed on.
            Step::Ended if self.up.position.has_closed() => Ok(()),
            Step::Ended | Step::ReadFailed(_) => Err(Broken::ClientGone),
            Step::Garbled(bad) => Err(Broken::Garbled(bad.to_string())),
            Step::WriteFailed(error) => Err(Broken::Cut(error.to_string())),
        }
    }

    fn stepped_down(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Moved => Ok(()),
            Step::Ended if self.down.position.has_closed() => Ok(()),
            Step::Ended => Err(Broken::Cut("it ended without a goodbye".into())),
            Step::ReadFailed(error) => Err(Broken::Cut(error.to_string())),
            Step::Garbled(bad) => Err(Broken::BrowserGarbled(bad.to_string())),
            Step::WriteFailed(_) => Err(Broken::ClientGone),
        }
    }

    fn ping(&mut self) {
        let now = Instant::now();
        let mut pulse = self.upstream.pulse();
        if pulse.is_ping_due(now) && self.up.interject(&frame::encode(frame::PING, OURS, true)) {
            pulse.pinged(now);
        }
        drop(pulse);
        let mut pulse = self.client.pulse();
        if pulse.is_ping_due(now) && self.down.interject(&frame::encode(frame::PING, OURS, false)) {
            pulse.pinged(now);
        }
    }

    /// Says goodbye to both, and why to the client.
    async fn end(self, broken: Option<&Broken>) {
        let Relay { mut up, mut down, .. } = self;
        let why = broken.map(|broken| frame::close(broken.code(), &broken.to_string(), false));
        let leaving = broken.map(|_| frame::close(1001, "the client is gone", true));
        let to_client = down.last(&why.unwrap_or_default());
        let to_upstream = up.last(&leaving.unwrap_or_default());
        let client = async {
            write_last(&mut down.to, &to_client).await;
            if broken.is_some() {
                drain(&mut up.from).await;
            }
        };
        tokio::join!(client, write_last(&mut up.to, &to_upstream));
    }
}

async fn write_last(to: &mut (impl AsyncWrite + Unpin), last: &[u8]) {
    let written = async {
        to.write_all(last).await?;
        to.flush().await?;
        to.shutdown().await
    };
    let _ = timeout(CLOSING, written).await;
}

/// Reads what a client still sends until it has hung up: closed before that, the connection would be reset, and what the
/// client was told last would be lost.
pub async fn drain(client: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; BUFFER];
    let drained = async { while client.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    let _ = timeout(DRAIN, drained).await;
}
