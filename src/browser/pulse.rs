//! Whether a side of a session still lives.
//!
//! A side is asked (pinged) when nothing was heard of it for a while, and given up when it does not answer. Only the
//! time in which it was listened to counts, so that a slow reader on the one side does not make the other look dead;
//! and taking bytes after having let them wait is life too, so that a long message over a slow line is not.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Of idleness, before a ping of ours; pings also keep idle connections from being cut on the way.
pub const PING_EVERY: Duration = Duration::from_secs(10);
/// A side of which nothing was heard for so long, though pinged, is gone.
pub const SILENCE: Duration = Duration::from_secs(28);
/// The least time to answer a ping that could not be sent before.
const ANSWER: Duration = Duration::from_secs(15);
/// Between two looks at the pulses.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For the other side's part of a closing handshake.
pub const CLOSING: Duration = Duration::from_secs(5);
/// What our pings carry, to know their answers by.
pub const OURS: &[u8] = b"moltinit";

/// What is known of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    heard: Instant,
    /// The first ping since then.
    asked: Option<Instant>,
    /// The last ping ever.
    pinged: Instant,
    /// A read waits for it.
    listens: bool,
    /// Since when a write waits for it.
    waits: Option<Instant>,
}

impl Pulse {
    pub fn new(now: Instant) -> Pulse {
        Pulse {
            heard: now,
            asked: None,
            pinged: now,
            listens: false,
            waits: None,
        }
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// A read came to something, or waits.
    fn read(&mut self, is_pending: bool, now: Instant) {
        if !(self.listens && is_pending) {
            // Nothing could be heard while nobody listened.
            self.heard(now);
        }
        self.listens = is_pending;
    }

    /// A write came to something, or waits. That the system took bytes at once says nothing of the other side.
    fn wrote(&mut self, is_pending: bool, now: Instant) {
        if self.waits.is_some() && !is_pending {
            self.heard(now);
        }
        self.waits = is_pending.then(|| self.waits.unwrap_or(now));
    }

    /// Nobody listens, until somebody reads again.
    pub fn pause(&mut self) {
        self.listens = false;
    }

    pub fn is_ping_due(&self, now: Instant) -> bool {
        now >= self.heard.max(self.pinged) + PING_EVERY
    }

    pub fn pinged(&mut self, now: Instant) {
        self.pinged = now;
        self.asked.get_or_insert(now);
    }

    /// It was asked and could have answered, but did not.
    pub fn is_silent(&self, now: Instant) -> bool {
        let unanswered = self.asked.is_some_and(|asked| now >= asked + ANSWER);
        self.listens && self.waits.is_none() && unanswered && now >= self.heard + SILENCE
    }

    /// It neither says anything nor takes what it is sent.
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.listens && self.waits.is_some() && now >= self.heard + SILENCE
    }

    /// Since when it has taken nothing of what it is sent.
    pub fn stalls_since(&self) -> Option<Instant> {
        self.waits
    }
}

/// The pulse of a stream, for whoever judges it.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Mutex<Pulse>>);

impl Watch {
    pub fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a ping is due, which then counts as sent.
    pub fn takes_ping(&self) -> bool {
        let now = Instant::now();
        let mut pulse = self.pulse();
        let is_due = pulse.is_ping_due(now);
        if is_due {
            pulse.pinged(now);
        }
        is_due
    }

    /// Ends when `is_gone` says so of the pulse.
    pub async fn ends(&self, is_gone: impl Fn(&Pulse, Instant) -> bool) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if is_gone(&self.pulse(), Instant::now()) {
                return;
            }
        }
    }
}

/// A stream that keeps its pulse.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    watch: Watch,
}

impl<S> Watched<S> {
    pub fn new(stream: S) -> (Watched<S>, Watch) {
        let watch = Watch(Arc::new(Mutex::new(Pulse::new(Instant::now()))));
        let of_stream = watch.clone();
        let watched = Watched {
            stream,
            watch: of_stream,
        };
        (watched, watch)
    }

    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        self.watch.pulse().wrote(polled.is_pending(), Instant::now());
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch.pulse().read(polled.is_pending(), Instant::now());
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pulse that is listened to, and a clock that begins with it.
    fn listening() -> (Pulse, impl Fn(u64) -> Instant) {
        let begun = Instant::now();
        let mut pulse = Pulse::new(begun);
        pulse.read(true, begun);
        (pulse, move |seconds| begun + Duration::from_secs(seconds))
    }

    #[test]
    fn one_that_does_not_answer_is_given_up_within_half_a_minute() {
        let (mut pulse, at) = listening();
        assert!(!pulse.is_ping_due(at(9)) && pulse.is_ping_due(at(10)));
        assert!(!pulse.is_silent(at(100)), "nobody has asked it");
        pulse.pinged(at(10));
        assert!(!pulse.is_ping_due(at(19)) && pulse.is_ping_due(at(20)));
        pulse.pinged(at(20));
        assert!(!pulse.is_silent(at(27)) && pulse.is_silent(at(29)));
        pulse.read(false, at(27));
        pulse.read(true, at(27));
        assert!(!pulse.is_silent(at(40)));
    }

    #[test]
    fn one_that_is_not_listened_to_is_not_judged() {
        let (mut pulse, at) = listening();
        pulse.read(false, at(1));
        pulse.pinged(at(11));
        assert!(!pulse.is_silent(at(100)));
        // And has all its time again once it is.
        pulse.read(true, at(100));
        pulse.pinged(at(110));
        assert!(!pulse.is_silent(at(127)) && pulse.is_silent(at(128)));
    }

    #[test]
    fn a_late_ping_may_be_answered_too() {
        let (mut pulse, at) = listening();
        pulse.pinged(at(27));
        assert!(!pulse.is_silent(at(41)) && pulse.is_silent(at(42)));
    }

    #[test]
    fn a_slow_upload_is_life_and_a_stuck_one_is_not() {
        let (mut pulse, at) = listening();
        for second in 0..300 {
            pulse.wrote(true, at(second));
            assert!(!pulse.is_stuck(at(second)) && !pulse.is_silent(at(second)));
            if second % 20 == 0 {
                pulse.wrote(false, at(second));
            }
        }
        pulse.wrote(true, at(300));
        assert!(!pulse.is_stuck(at(307)) && pulse.is_stuck(at(308)));
    }

    #[test]
    fn what_the_system_takes_at_once_is_no_life() {
        let (mut pulse, at) = listening();
        pulse.pinged(at(10));
        for second in 0..28 {
            pulse.wrote(false, at(second));
        }
        assert!(pulse.is_silent(at(28)));
    }
}
