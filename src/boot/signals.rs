//! The signals that a supervisor acts on. Everything else keeps its default, which for PID 1 is to be ignored.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Requests to stop, as they come.
pub struct Stops {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal or a session that went away takes nothing of the agent's with it.
    _hangup: Signal,
}

impl Stops {
    /// Listens from now on.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> io::Result<Stops> {
        Ok(Stops {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one, by name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
