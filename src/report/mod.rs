//! Saying how it is: probes, the status document, the event log, signed callbacks, and the way in for commands.
//!
//! ```text
//! Event -> desk -> board (status) -> probes, /status, /metrics, `moltinit status`
//!            |
//!            +---> outbox (SQLite) -> /events, deliver -> callback URL
//! ```
//!
//! * [`desk`](self): masks, folds, hands on; the single reader of the events.
//! * [`status`]: the one document; [`fold`](self) makes it from events.
//! * [`outbox`](self): every event numbered and on disk before anybody is told.
//! * [`http`]: the routes, on a TCP port with a token and on a socket in the run directory without.
//! * [`control`]: what the rest of the supervisor must be able to do for whoever asks.
//! * [`client`], [`table`]: the other end, for the command line.

mod board;
pub mod client;
pub mod control;
mod cost;
mod deliver;
mod desk;
mod digest;
mod fold;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod http;
mod memory;
mod metrics;
mod outbox;
#[cfg(any(test, fuzzing))]
pub use self::outbox::fuzz as fuzz_outbox;
mod record;
mod settings;
pub mod status;
pub mod table;
#[cfg(test)]
mod tests;
pub mod web;
mod webhook;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::serve::ListenerExt;
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use ulid::Ulid;

use self::{board::Board, control::Control, desk::Desk, digest::Digest, outbox::Outbox, status::Status};
pub use self::{
    record::Record,
    settings::{Callback, Settings},
    webhook::{BadKey, SigningKey},
};
use crate::{config::Config, event::Event};

/// The control socket's name in the run directory.
pub const SOCKET: &str = "control.sock";

/// What a report is about and where it keeps things. Unlike [`Settings`] it never changes.
#[derive(Debug, Clone)]
pub struct Place {
    pub instance: String,
    pub boot: Ulid,
    /// Not ready without a store.
    pub store_required: bool,
    /// A root of every snapshot: carries what is undelivered to the next container. Not touched before
    /// `Event::BootPhase` says that the restore is over.
    pub data_dir: PathBuf,
    /// Holds the event log and the control socket, for as long as the container lives.
    pub run_dir: PathBuf,
}

impl Place {
    pub fn of(config: &Config, boot: Ulid) -> Place {
        Place {
            instance: config.store.instance.clone(),
            boot,
            store_required: config.store.required,
            data_dir: config.data_dir.clone(),
            run_dir: config.run_dir.clone(),
        }
    }
}

/// The ways in: a port, and the control socket in the run directory.
#[derive(Debug)]
pub struct Doors {
    pub port: TcpListener,
    socket: UnixListener,
}

/// There is no way in.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {addr}: {source}{}", hint(source))]
    Port { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Socket(#[from] http::SocketError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there (`ss -ltnp` names it) or set MOLTINIT_HTTP_ADDR",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address, set MOLTINIT_HTTP_ADDR",
        io::ErrorKind::PermissionDenied => "; ports below 1024 are for root, set MOLTINIT_HTTP_ADDR",
        _ => "",
    }
}

/// Takes the ways in for [`Report::serve`]. Before anything else is begun: a second moltinit in the same place must not
/// touch what belongs to the first.
///
/// # Errors
/// The port is taken, or the address is not of this machine; the control socket cannot be made, or another moltinit
/// answers on it.
pub async fn bind(addr: SocketAddr, run_dir: &Path) -> Result<Doors, BindError> {
    let socket = http::socket(&run_dir.join(SOCKET))?;
    match TcpListener::bind(addr).await {
        Ok(port) => Ok(Doors { port, socket }),
        Err(source) => Err(BindError::Port { addr, source }),
    }
}

/// The running report.
pub struct Report {
    place: Place,
    board: Arc<Board>,
    outbox: Outbox,
    settings: watch::Sender<Settings>,
    close_by: watch::Sender<Option<Instant>>,
    drain: mpsc::Sender<oneshot::Sender<()>>,
    delivery: JoinHandle<u64>,
}

impl Report {
    /// Begins to read `events` and to deliver. Touches no disk itself; its parts do, on threads of their own.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(place: Place, settings: Settings, events: mpsc::UnboundedReceiver<Event>) -> io::Result<Report> {
        let outbox = Outbox::start(&place.run_dir, place.boot, &place.instance)?;
        let status = Status::new(&place.instance, place.boot, place.store_required, Timestamp::now());
        let board = Arc::new(Board::new(status, outbox.progress()));
        outbox.post(settings.callback.is_some());
        let (settings, current) = watch::channel(settings);
        let (close_by, closing) = watch::channel(None);
        let (drain, drained) = mpsc::channel(1);
        let desk = Desk {
            board: board.clone(),
            outbox: outbox.clone(),
            settings: current.clone(),
            data_dir: place.data_dir.clone(),
            digest: Digest::default(),
            adopted: false,
        };
        board.kept_by(tokio::spawn(desk.run(events, drained)).abort_handle());
        let orders = deliver::Orders {
            settings: current,
            close_by: closing,
        };
        let delivery = tokio::spawn(deliver::run_on(outbox.clone(), board.clone(), orders));
        Ok(Report {
            place,
            board,
            outbox,
            settings,
            close_by,
            drain,
            delivery,
        })
    }

    /// Serves the routes on the port, and without a token on the control socket.
    pub fn serve(&self, doors: Doors, control: Arc<dyn Control>) {
        let shared = Arc::new(http::Shared::new(
            self.board.clone(),
            self.outbox.clone(),
            self.settings.subscribe(),
            control,
            self.place.boot,
        ));
        tokio::spawn(http::serve(
            doors.socket,
            http::router(shared.clone(), http::Way::Socket),
        ));
        // Without it an answer in two parts waits for the first to be acknowledged.
        let port = doors.port.tap_io(|stream| drop(stream.set_nodelay(true)));
        tokio::spawn(http::serve(port, http::router(shared, http::Way::Network)));
    }

    /// Everything as it is now, every age filled in.
    pub fn status(&self) -> Status {
        self.board.document()
    }

    /// Where others may be put: `moltinit attach` brings what PID 1 was not given.
    pub fn settings(&self) -> watch::Sender<Settings> {
        self.settings.clone()
    }

    /// Ends when every event emitted before is stored, and what is undelivered is in the data directory for the
    /// next container. Call it right before the last commit.
    pub async fn carry(&self) {
        let carried = async {
            self.settle().await;
            self.outbox.carry().await.map_err(|error| error.to_string())
        };
        // A disk that hangs must not cost the commit.
        let carried = tokio::time::timeout(CARRY_BUDGET, carried).await;
        if let Err(error) = carried.unwrap_or_else(|_| Err("the disk does not answer".into())) {
            tracing::error!(error, "undelivered events are lost with this container");
        }
    }

    /// Delivers what is left, within `budget`; ends with how many events stay undelivered. Emit the last event
    /// before. Probes go on being answered until the process ends.
    pub async fn close(self, budget: Duration) -> u64 {
        let deadline = Instant::now() + budget;
        // A disk that hangs must not cost more than the budget.
        let _ = tokio::time::timeout_at(deadline, self.settle()).await;
        self.close_by.send_replace(Some(deadline));
        let left = self.delivery.await.unwrap_or(0);
        if left > 0 {
            let _ = tokio::time::timeout(CARRY_BUDGET, self.outbox.carry()).await;
        }
        left
    }

    async fn settle(&self) {
        let (done, settled) = oneshot::channel();
        if self.drain.send(done).await.is_ok() {
            let _ = settled.await;
        }
    }
}

/// For a copy of what could not be delivered.
const CARRY_BUDGET: Duration = Duration::from_secs(5);
