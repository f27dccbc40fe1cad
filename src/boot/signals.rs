//! The signals that a supervisor acts on. Everything else keeps its default, which for PID 1 is to be ignored.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Requests to stop while nothing has been started: they end the process at once. Without this the kernel drops what
/// PID 1 is sent before it listens, and a stop during a slow boot would be waited for in vain.
pub struct Early(Arc<AtomicBool>);

impl Early {
    /// From now on.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn stops() -> io::Result<Early> {
        let early = Arc::new(AtomicBool::new(true));
        for signal in [libc::SIGTERM, libc::SIGINT] {
            signal_hook::flag::register_conditional_shutdown(signal, 0, Arc::clone(&early))?;
        }
        Ok(Early(early))
    }
}

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
    pub fn listen(early: &Early) -> io::Result<Stops> {
        let stops = Stops {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        };
        // Only now: in between nothing is lost.
        early.0.store(false, Ordering::SeqCst);
        Ok(stops)
    }

    /// The next one, by name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
