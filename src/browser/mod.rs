//! A local browser for the agent: an ordinary Chrome DevTools endpoint on loopback, and behind it a tunnel to a browser
//! elsewhere.
//!
//! ```text
//! gateway, scripts -> 127.0.0.1:9222 -> guard -> discovery (answered here)
//!                                         |
//!                                         +-> session: accepts at once, dials on the first command -> relay -> upstream
//! ```
//!
//! * [`bridge`]: what a client needs and moltworker's shim lacks.
//! * [`guard`]: who may come in.
//! * [`discovery`]: `/json/version` and its kin.
//! * [`session`]: one WebSocket, from the upgrade to its end.
//! * [`relay`]: bytes from one side to the other, frame by frame, never a message in memory.
//! * [`skill`]: scripts for the agent that use the port, kept up to date in its workspace.
//! * [`upstream`]: which browser, how it is dialled, and what its refusals mean.

mod bridge;
mod discovery;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod relay;
mod server;
mod session;
pub mod skill;
pub mod upstream;

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use self::upstream::Upstream;
use crate::{config::secret::Secret, event::Events};

/// The port cannot be had. The gateway does without a browser then; nothing else depends on it.
#[derive(Debug, thiserror::Error)]
#[error("the browser port {addr} cannot be listened on: {source}; stop what listens there or set MOLTINIT_CDP_ADDR")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// What every connection shares.
struct Shared {
    upstream: Upstream,
    /// Asked of every client, if set.
    token: Option<Secret>,
    events: Events,
}

/// The local port. It is listened on from when there is an upstream.
pub struct Port {
    addr: SocketAddr,
    token: Option<Secret>,
    events: Events,
    served: Mutex<Option<(SocketAddr, watch::Sender<Arc<Shared>>)>>,
}

impl Port {
    pub fn new(addr: SocketAddr, token: Option<Secret>, events: Events) -> Port {
        Port {
            addr,
            token,
            events,
            served: Mutex::default(),
        }
    }

    /// Serves `upstream` until the process ends or another one comes; sessions that are open stay with theirs.
    /// Gives the address that is listened on.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve(&self, upstream: Upstream) -> Result<SocketAddr, BindError> {
        let shared = Arc::new(Shared {
            upstream,
            token: self.token.clone(),
            events: self.events.clone(),
        });
        let mut served = self.served.lock().await;
        if let Some((addr, current)) = &*served {
            current.send_replace(shared);
            return Ok(*addr);
        }
        let bound = async {
            let listener = TcpListener::bind(self.addr).await?;
            Ok((listener.local_addr()?, listener))
        };
        let (addr, listener) = bound.await.map_err(|source| BindError {
            addr: self.addr,
            source,
        })?;
        let (current, shared) = watch::channel(shared);
        tokio::spawn(server::serve(listener, shared));
        *served = Some((addr, current));
        Ok(addr)
    }
}
