//! One browser for all clients of the port.
//!
//! ```text
//! client --+                +-- browser
//! client --+-- run: core ---+     or
//! /json  --+                +-- bridge -- shim
//! ```
//!
//! A Worker, and Cloudflare's own endpoint, launch a browser for each connection. So there is one connection, dialled
//! when a client first has something to say and kept for a while after the last has left, and each client has a session
//! on it ([`core`]). Messages are handled whole here, so what waits in queues is counted against a [`budget`].
//!
//! * [`apart`]: long frames, read so that their memory is let go of.
//! * [`client`]: the task of one client.
//! * [`envelope`]: how a message says whose it is.
//! * [`far`]: the other end of the one connection.
//! * [`intake`]: messages of clients, from their first byte to their last.
//! * [`pages`]: what `/json/list` and its kin say.
//! * [`run`]: the task of one connection, from the dial to its end.
//! * [`text`]: messages that are passed on, and the frames of long ones.

mod apart;
mod budget;
mod client;
mod core;
mod envelope;
mod far;
mod intake;
mod pages;
mod run;
mod text;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use futures_util::SinkExt;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Utf8Bytes,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;

use self::{
    budget::{Budget, Share},
    core::Place,
    text::Text,
};
pub use self::{client::serve, pages::answer};
use super::{
    frame,
    pulse::{CLOSING, Watch},
    upstream::{PLATFORM_MAX, Upstream},
};
use crate::event::Events;

/// Why something came to its end: a close code and a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Farewell {
    code: u16,
    reason: String,
}

/// What the task of the connection is asked.
enum Ask {
    Join(Seat, Place),
    Says(u64, Utf8Bytes, Share),
    Leave(u64),
    /// Something of our own.
    Own(&'static str, Value, oneshot::Sender<Result<Value, String>>),
}

/// Which browser something is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// One that is there, or will be, or is launched.
    Any,
    /// One that is there, or will be.
    Begun,
    /// One that is there, and can be asked at once.
    Up,
}

/// How a client is reached.
struct Seat {
    client: u64,
    queue: UnboundedSender<Down>,
    watch: Watch,
    /// To end it, whatever it is still to be told.
    ends: CancellationToken,
}

/// What a client is told.
enum Down {
    Joined,
    Text(Text, Share),
    End(Farewell),
}

/// A client's place, given up when it is dropped.
struct Member {
    says: Says,
    queue: UnboundedReceiver<Down>,
    ends: CancellationToken,
}

/// How a client speaks.
struct Says {
    client: u64,
    running: Running,
}

impl Says {
    /// `share`: the room that it has already.
    async fn text(&self, text: Utf8Bytes, share: Option<Share>) {
        let share = match share {
            Some(share) => share,
            None => self.running.budget.share(text.len()).await,
        };
        let said = Ask::Says(self.client, text, share);
        // Where nobody listens any more, the client is told why.
        let _ = self.running.asks.send(said);
    }
}

impl Member {
    /// Ends when it may speak.
    ///
    /// # Errors
    /// It may not.
    async fn joined(&mut self) -> Result<(), Farewell> {
        match self.queue.recv().await {
            Some(Down::End(farewell)) => Err(farewell),
            Some(Down::Joined | Down::Text(..)) => Ok(()),
            None => Err(Farewell::new(1011, "the browser is gone")),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.says.running.asks.send(Ask::Leave(self.says.client));
    }
}

/// The one connection, or that there is none now.
pub struct Hub {
    upstream: Arc<Upstream>,
    events: Events,
    counter: AtomicU64,
    running: Mutex<Option<Running>>,
}

#[derive(Clone)]
struct Running {
    asks: UnboundedSender<Ask>,
    /// Of the short messages that clients have said.
    budget: Budget,
    /// Of the long ones, from their beginnings.
    intake: Budget,
    /// Who came and was not let in yet: clients, and questions of our own.
    comers: Arc<AtomicUsize>,
    /// The browser is dialled, and there.
    is_up: bool,
}

impl Hub {
    pub fn new(upstream: Arc<Upstream>, events: Events) -> Hub {
        Hub {
            upstream,
            events,
            counter: AtomicU64::new(0),
            running: Mutex::default(),
        }
    }

    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a place in the browser. A page is in none that is yet to be launched.
    fn join(self: &Arc<Self>, place: Place, watch: Watch) -> Option<Member> {
        let (to, queue) = unbounded_channel();
        let (client, ends) = (self.next(), CancellationToken::new());
        let seat = Seat {
            client,
            queue: to,
            watch,
            ends: ends.clone(),
        };
        let which = match place {
            Place::Browser => Which::Any,
            Place::Page(_) => Which::Begun,
        };
        let running = self.ask(which, Ask::Join(seat, place))?;
        Some(Member {
            says: Says { client, running },
            queue,
            ends,
        })
    }

    /// Hands it to the task of the connection, if there is such a one.
    fn ask(self: &Arc<Self>, which: Which, ask: Ask) -> Option<Running> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|running| running.asks.is_closed()) {
            *running = None;
        }
        let running = match running.as_ref() {
            Some(running) if which == Which::Up && !running.is_up => return None,
            Some(running) => running,
            None if which != Which::Any => return None,
            None => running.insert(self.begin()),
        };
        running.comers.fetch_add(1, Ordering::Relaxed);
        // The task takes its leave under the same lock.
        let _ = running.asks.send(ask);
        Some(running.clone())
    }

    fn begin(self: &Arc<Self>) -> Running {
        let (asks, asked) = unbounded_channel();
        let (budget, intake, comers) = (Budget::default(), Budget::default(), Arc::default());
        tokio::spawn(run::run(Arc::clone(self), asked, Arc::clone(&comers)));
        Running {
            asks,
            budget,
            intake,
            comers,
            is_up: false,
        }
    }

    fn came_up(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.as_mut() {
            running.is_up = true;
        }
    }

    /// Whoever comes from now on gets another connection. If it is to end only where nobody wants anything, somebody may.
    fn retire(&self, asked: &UnboundedReceiver<Ask>, only_if_unasked: bool) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let retires = !only_if_unasked || asked.is_empty();
        if retires {
            *running = None;
        }
        retires
    }
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(32 << 10)
        .write_buffer_size(32 << 10)
        .max_message_size(Some(PLATFORM_MAX as usize))
        .max_frame_size(Some(PLATFORM_MAX as usize))
}

/// Says goodbye, or answers one, and ends the connection.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, goodbye: Option<CloseFrame>) {
    let parted = async {
        // Where the other side began, its answer is already waiting to be sent, and another is refused.
        let _ = socket.close(goodbye).await;
        let _ = socket.flush().await;
        socket.get_mut().shutdown().await
    };
    let _ = timeout(CLOSING, parted).await;
}

impl Farewell {
    fn new(code: u16, reason: impl Into<String>) -> Farewell {
        Farewell {
            code,
            reason: reason.into(),
        }
    }

    fn frame(&self) -> CloseFrame {
        CloseFrame {
            code: self.code.into(),
            reason: frame::reason(&self.reason).into(),
        }
    }
}

/// Lines, by turns those of two clients and of a browser.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let mut core = core::Core::default();
    for client in 0..2u64 {
        core.join(client, &Place::Browser);
        core.browser_says(format!(
            r#"{{"id":{},"result":{{"sessionId":"S{client}"}}}}"#,
            client + 1
        ));
    }
    for (turn, line) in data.split(|&byte| byte == b'\n').enumerate() {
        let Ok(text) = std::str::from_utf8(line) else {
            continue;
        };
        let outs = match turn % 3 {
            2 => core.browser_says(text),
            client => core.client_says(client as u64, text),
        };
        assert!(outs.len() < 4, "{} messages for one", outs.len());
    }
}
