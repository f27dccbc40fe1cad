//! Messages of clients, from their first byte to their last.
//!
//! A message is whole in memory before it is looked at, so one that is long is let in only when there is room for all of
//! it: until then the client's socket is not read. Room is given in turn and to whole messages, so that whoever has some
//! can finish, and goes with the message until that has gone to the browser. Short messages need none, and pass by.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    apart::Apart,
    budget::{Budget, Share},
    run::STALLED,
};
use crate::browser::pulse::{LOOK_EVERY, Watch};

/// While others wait for its room, so much of a message has to come in [`STALLED`].
const PACE: usize = 1 << 20;

/// The room of the message that came last, to be taken by whoever takes the message.
#[derive(Debug, Clone, Default)]
pub struct Given(Arc<Mutex<Option<Share>>>);

impl Given {
    /// None of a message that needs none.
    pub fn take(&self) -> Option<Share> {
        self.set(None)
    }

    fn set(&self, share: Option<Share>) -> Option<Share> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), share)
    }

    fn is_there(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A client's stream, read only as fast as there is room for what it sends.
pub struct Metered<S> {
    stream: Apart<S>,
    watch: Watch,
    budget: Budget,
    room: Room,
    given: Given,
    /// Until a message that has room, and of which nothing comes, is looked at again.
    patience: Pin<Box<Sleep>>,
    /// When it was last seen to come fast enough.
    moved: Instant,
    /// Bytes that have come since.
    came: usize,
}

/// For the present message.
enum Room {
    NotNeeded,
    Awaited(Pin<Box<dyn Future<Output = Share> + Send>>),
    /// And by which of the messages.
    Taken(u64),
}

impl<S: AsyncRead> Metered<S> {
    pub fn new(stream: Apart<S>, watch: Watch, budget: Budget) -> Metered<S> {
        Metered {
            stream,
            watch,
            budget,
            room: Room::NotNeeded,
            given: Given::default(),
            patience: Box::pin(sleep(LOOK_EVERY)),
            moved: Instant::now(),
            came: 0,
        }
    }

    pub fn given(&self) -> Given {
        self.given.clone()
    }

    /// Ends when the present message has the room that it needs.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match (&mut self.room, self.stream.frames().needs()) {
                (Room::NotNeeded, None) => return Poll::Ready(()),
                (Room::Taken(number), Some(_)) if *number == self.stream.frames().number => return Poll::Ready(()),
                // Whoever reads on has dealt with the message before.
                (Room::Taken(_), _) => {
                    self.given.take();
                    self.room = Room::NotNeeded;
                }
                (Room::NotNeeded, Some(bytes)) => {
                    let budget = self.budget.clone();
                    self.room = Room::Awaited(Box::pin(async move { budget.share(bytes).await }));
                }
                (Room::Awaited(share), _) => {
                    // It may not be taken for one that is listened to, and does not answer.
                    self.watch.pulse().pause();
                    let share = ready!(share.as_mut().poll(cx));
                    self.given.set(Some(share));
                    self.room = Room::Taken(self.stream.frames().number);
                    self.came(PACE);
                }
            }
        }
    }

    fn came(&mut self, bytes: usize) {
        self.came += bytes;
        if self.came >= PACE {
            (self.moved, self.came) = (Instant::now(), 0);
        }
    }

    /// Whether it keeps room from others, and does not send fast enough.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.given.is_there() {
            ready!(self.patience.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.moved + STALLED && self.budget.is_awaited() {
                return Poll::Ready(());
            }
            self.patience.as_mut().reset(now + LOOK_EVERY);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_room(cx));
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_pending() {
            ready!(this.poll_stall(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        this.came(buf.filled().len() - before);
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
