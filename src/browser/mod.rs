//! A local browser for the agent: an ordinary Chrome DevTools endpoint on loopback, and behind it a tunnel to a browser
//! elsewhere.
//!
//! ```text
//! gateway, scripts -> 127.0.0.1:9222 -> guard -> discovery (answered here)
//!                                         |
//!                                         +-> session: accepts at once, dials on the first command -> relay -> upstream
//!                                                      where a dial launches a browser: one for all -> hub -> upstream
//! ```
//!
//! * `below`: sessions that were opened in sessions.
//! * [`bridge`]: what a client needs and moltworker's shim lacks.
//! * [`guard`]: who may come in.
//! * [`discovery`]: `/json/version` and its kin.
//! * [`hub`]: one browser for all clients, where each connection would launch one.
//! * [`session`]: one WebSocket, from the upgrade to its end.
//! * [`relay`]: bytes from one side to the other, frame by frame, never a message in memory; `position` knows where in
//!   the frames it is, `pulse` whether both sides live.
//! * [`skill`]: scripts for the agent that use the port, kept up to date in its workspace.
//! * [`upstream`]: which browser, how it is dialled, and what its refusals mean; `version`: what it says of itself.

mod below;
mod bridge;
mod discovery;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod hub;
mod position;
mod pulse;
mod relay;
mod server;
mod session;
pub mod skill;
pub mod upstream;
mod version;

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use self::{hub::Hub, upstream::Upstream};
use crate::{
    config::secret::Secret,
    event::{Event, Events},
};

/// The port cannot be had. The gateway does without a browser then; nothing else depends on it.
#[derive(Debug, thiserror::Error)]
#[error("the browser port {addr} cannot be listened on: {source}; stop what listens there or set MOLTINIT_CDP_ADDR")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// What every connection shares.
struct Shared {
    upstream: Arc<Upstream>,
    /// Where clients have to share a browser.
    hub: Option<Arc<Hub>>,
    /// Asked of every client, if set.
    token: Option<Secret>,
    events: Events,
}

/// The local port. It is listened on from when there is an upstream.
pub struct Port {
    events: Events,
    served: Mutex<Option<Served>>,
}

struct Served {
    /// As it was asked for; port 0 is any.
    wanted: SocketAddr,
    addr: SocketAddr,
    current: watch::Sender<Arc<Shared>>,
}

impl Port {
    pub fn new(events: Events) -> Port {
        Port {
            events,
            served: Mutex::default(),
        }
    }

    /// Serves `upstream` at `wanted` until the process ends or another call; sessions that are open stay with theirs.
    /// Gives the address that is listened on.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve(
        &self,
        wanted: SocketAddr,
        token: Option<Secret>,
        upstream: Arc<Upstream>,
    ) -> Result<SocketAddr, BindError> {
        let name = upstream.name();
        let mut served = self.served.lock().await;
        let before = served.as_ref().map(|served| Arc::clone(&served.current.borrow()));
        let (upstream, hub) = match before.filter(|before| before.upstream.is_same(&upstream)) {
            Some(before) => (Arc::clone(&before.upstream), before.hub.clone()),
            None => {
                let hub = || Arc::new(Hub::new(Arc::clone(&upstream), self.events.clone()));
                let hub = upstream.launches().then(hub);
                (upstream, hub)
            }
        };
        let shared = Arc::new(Shared {
            upstream,
            hub,
            token,
            events: self.events.clone(),
        });
        match &*served {
            Some(served) if served.wanted == wanted => {
                served.current.send_replace(shared);
            }
            _ => {
                let error = |source| BindError { addr: wanted, source };
                let listener = TcpListener::bind(wanted).await.map_err(error)?;
                let addr = listener.local_addr().map_err(error)?;
                let (current, shared) = watch::channel(shared);
                tokio::spawn(server::serve(listener, shared));
                *served = Some(Served { wanted, addr, current });
            }
        }
        self.events.emit(Event::BrowserOffered { upstream: name });
        Ok(served.as_ref().map_or(wanted, |served| served.addr))
    }
}
