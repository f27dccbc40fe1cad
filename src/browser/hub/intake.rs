//! Messages of clients, from their first byte to their last.
//!
//! A message is whole in memory before it is looked at, so one that is long is let in only when there is room for all of
//! it: until then the client's socket is not read. Room is given in turn and to whole messages, so that whoever has some
//! can finish. Short messages need none, and pass by.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    budget::{Budget, Share},
    run::STALLED,
};
use crate::browser::{
    frame::{self, Header},
    pulse::{LOOK_EVERY, Watch},
};

/// A message up to this length needs no room.
const SHORT: u64 = 64 << 10;

/// A client's stream, read only as fast as there is room for what it sends.
pub struct Metered<S> {
    stream: S,
    watch: Watch,
    budget: Budget,
    frames: Frames,
    room: Room,
    /// Until a message that has room, and of which nothing comes, is looked at.
    patience: Pin<Box<Sleep>>,
    /// When something of it came last.
    moved: Instant,
}

/// For the present message.
enum Room {
    NotNeeded,
    Awaited(Pin<Box<dyn Future<Output = Share> + Send>>),
    /// And by which of the messages.
    Taken(u64, #[allow(dead_code, reason = "it is there to be dropped")] Share),
}

impl<S> Metered<S> {
    /// `held` has been read from the stream already.
    pub fn new(stream: S, watch: Watch, budget: Budget, held: &[u8]) -> Metered<S> {
        let mut metered = Metered {
            stream,
            watch,
            budget,
            frames: Frames::default(),
            room: Room::NotNeeded,
            patience: Box::pin(sleep(LOOK_EVERY)),
            moved: Instant::now(),
        };
        metered.frames.pass(held);
        metered
    }

    /// Ends when the present message has the room that it needs.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match (&mut self.room, self.frames.needs()) {
                (Room::NotNeeded, None) => return Poll::Ready(()),
                (Room::Taken(number, _), Some(_)) if *number == self.frames.number => return Poll::Ready(()),
                // Whoever reads on has dealt with the message before.
                (Room::Taken(..), _) => self.room = Room::NotNeeded,
                (Room::NotNeeded, Some(bytes)) => {
                    let budget = self.budget.clone();
                    self.room = Room::Awaited(Box::pin(async move { budget.share(bytes).await }));
                }
                (Room::Awaited(share), _) => {
                    // It may not be taken for one that is listened to, and does not answer.
                    self.watch.pulse().pause();
                    let share = ready!(share.as_mut().poll(cx));
                    self.room = Room::Taken(self.frames.number, share);
                    self.wait_on(true);
                }
            }
        }
    }

    fn wait_on(&mut self, has_moved: bool) {
        let now = Instant::now();
        if has_moved {
            self.moved = now;
        }
        self.patience.as_mut().reset(now + LOOK_EVERY);
    }

    /// Whether it keeps room from others, and sends nothing.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while matches!(self.room, Room::Taken(..)) {
            ready!(self.patience.as_mut().poll(cx));
            if Instant::now() >= self.moved + STALLED && self.budget.is_awaited() {
                return Poll::Ready(());
            }
            self.wait_on(false);
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
        this.frames.pass(&buf.filled()[before..]);
        this.wait_on(true);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
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

/// Where in a client's frames it is.
#[derive(Debug, Default)]
struct Frames {
    /// A header of which there is more to come.
    header: Vec<u8>,
    /// Bytes of the present frame still to come.
    payload: u64,
    /// The last frame of a message has begun.
    ends: bool,
    /// Counts messages.
    number: u64,
    /// Bytes of the present message, as far as its frames are known.
    message: u64,
    is_split: bool,
    /// What comes is no frame: somebody else will say so.
    is_lost: bool,
}

impl Frames {
    /// Bytes of the present message, if it is long. Of one in pieces nobody knows how many there will be.
    fn needs(&self) -> Option<usize> {
        let is_long = self.message > SHORT && (self.payload > 0 || !self.ends);
        is_long.then(|| match self.is_split {
            true => usize::MAX,
            false => usize::try_from(self.message).unwrap_or(usize::MAX),
        })
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_lost {
            if self.payload > 0 {
                let here = self.payload.min(bytes.len() as u64);
                self.payload -= here;
                bytes = &bytes[here as usize..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            match frame::header(&self.header) {
                Ok(Some(header)) => self.begin(header),
                Ok(None) => {}
                Err(_) => self.is_lost = true,
            }
        }
    }

    fn begin(&mut self, header: Header) {
        self.header.clear();
        self.payload = header.payload;
        if header.is_control() {
            return;
        }
        if header.opcode != 0 {
            self.number += 1;
            (self.message, self.is_split) = (0, !header.fin);
        }
        self.message = self.message.saturating_add(header.payload);
        self.ends = header.fin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::browser::frame::{PING, TEXT, encode};

    #[test]
    fn long_messages_are_known_from_their_headers_to_their_ends() {
        let long = SHORT as usize + 1;
        let mut frames = Frames::default();
        frames.pass(&encode(TEXT, &vec![0; SHORT as usize], true));
        assert_eq!(frames.needs(), None);
        let bytes = encode(TEXT, &vec![0; long], true);
        for (at, byte) in bytes.iter().enumerate() {
            // Its header is ten bytes and the mask.
            assert_eq!(frames.needs(), (at >= 14).then_some(long), "{at}");
            frames.pass(&[*byte]);
        }
        assert_eq!(frames.needs(), None);
        // In pieces, between which others stand.
        let mut piece = encode(TEXT, &[0; 60_000], true);
        piece[0] &= 0x7f;
        frames.pass(&piece);
        assert_eq!(frames.needs(), None);
        piece[0] = 0;
        frames.pass(&piece);
        frames.pass(&encode(PING, b"", true));
        assert_eq!(frames.needs(), Some(usize::MAX));
        piece[0] = 0x80;
        frames.pass(&piece);
        assert_eq!(frames.needs(), None);
    }
}
