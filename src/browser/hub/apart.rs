//! Long frames apart from what comes before them.
//!
//! A WebSocket's payload is read into a buffer that is made when its header has been read, and has room for what was read
//! beside that as well. A rest of that room is in use until something longer comes, and as long as it is, so is the whole
//! buffer, long after the message. So nothing is read beside the header of a long frame.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};

use crate::browser::frame::{self, Header};

/// What is longer is long.
pub const SHORT: u64 = 64 << 10;

/// A stream of frames, of which each long one begins with a read of its own.
pub struct Apart<S> {
    stream: BufReader<S>,
    frames: Frames,
}

impl<S: AsyncRead> Apart<S> {
    /// `held` has been read from the stream already.
    pub fn new(stream: S, mut held: &[u8]) -> Apart<S> {
        let mut frames = Frames::default();
        while !held.is_empty() {
            held = &held[frames.pass(held)..];
        }
        let stream = BufReader::with_capacity(SHORT as usize, stream);
        Apart { stream, frames }
    }

    pub fn frames(&self) -> &Frames {
        &self.frames
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Apart<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = usize::try_from(this.frames.payload).unwrap_or(usize::MAX);
        let is_direct = this.stream.buffer().is_empty() && rest >= buf.remaining();
        if is_direct {
            let before = buf.filled().len();
            ready!(Pin::new(this.stream.get_mut()).poll_read(cx, buf))?;
            this.frames.pass(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        let ahead = ready!(Pin::new(&mut this.stream).poll_fill_buf(cx))?;
        let room = ahead.len().min(buf.remaining());
        let here = this.frames.pass(&ahead[..room]);
        buf.put_slice(&ahead[..here]);
        Pin::new(&mut this.stream).consume(here);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Apart<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

/// Where in its frames it is.
#[derive(Debug, Default)]
pub struct Frames {
    /// A header of which there is more to come.
    header: Vec<u8>,
    /// Bytes of the present frame still to come.
    payload: u64,
    /// The last frame of a message has begun.
    ends: bool,
    /// Counts messages.
    pub number: u64,
    /// Bytes of the present message, as far as its frames are known.
    message: u64,
    is_split: bool,
    /// What comes is no frame: somebody else will say so.
    is_lost: bool,
}

impl Frames {
    /// Bytes of the present message, if it is long. Of one in pieces nobody knows how many there will be.
    pub fn needs(&self) -> Option<usize> {
        let is_long = self.message > SHORT && (self.payload > 0 || !self.ends);
        is_long.then(|| match self.is_split {
            true => usize::MAX,
            false => usize::try_from(self.message).unwrap_or(usize::MAX),
        })
    }

    /// Goes over `bytes`, but no further than to the end of a long frame's header. How far that was.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.is_lost {
                return bytes.len();
            }
            if self.payload > 0 {
                let here = self.payload.min((bytes.len() - at) as u64);
                self.payload -= here;
                at += here as usize;
                continue;
            }
            self.header.push(bytes[at]);
            at += 1;
            match frame::header(&self.header) {
                Ok(Some(header)) => {
                    self.begin(header);
                    if header.payload > SHORT {
                        break;
                    }
                }
                Ok(None) => {}
                Err(_) => self.is_lost = true,
            }
        }
        at
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::browser::frame::{PING, TEXT, encode};

    #[tokio::test]
    async fn what_is_long_comes_apart_and_nothing_is_lost() {
        let lengths = [0, 5, 70_000, 70_001, 3, 200_000, 0, 100_000, 1];
        let frames: Vec<Vec<u8>> = lengths.map(|length| encode(TEXT, &vec![7; length], true)).into();
        let whole = frames.concat();
        for cut in [1, 7, 30_000, whole.len()] {
            let (near, mut far) = tokio::io::duplex(cut);
            let sent = whole.clone();
            let sending = tokio::spawn(async move { far.write_all(&sent).await });
            let mut apart = Apart::new(near, &[]);
            let (mut got, mut reads) = (Vec::<u8>::new(), Vec::new());
            let mut buf = vec![0; 32 << 10];
            loop {
                let read = apart.read(&mut buf).await.unwrap();
                if read == 0 {
                    break;
                }
                got.extend(&buf[..read]);
                reads.push(got.len());
            }
            sending.await.unwrap().unwrap();
            assert!(got == whole, "{cut}");
            let mut at = 0;
            for frame in &frames {
                if frame.len() > SHORT as usize {
                    // Ten bytes of header, and the mask.
                    assert!(reads.contains(&(at + 14)), "{cut}: {at}");
                }
                at += frame.len();
            }
        }
    }

    fn pass(frames: &mut Frames, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[frames.pass(bytes)..];
        }
    }

    #[test]
    fn long_messages_are_known_from_their_headers_to_their_ends() {
        let long = SHORT as usize + 1;
        let mut frames = Frames::default();
        pass(&mut frames, &encode(TEXT, &vec![0; SHORT as usize], true));
        assert_eq!(frames.needs(), None);
        let bytes = encode(TEXT, &vec![0; long], true);
        for (at, byte) in bytes.iter().enumerate() {
            // Its header is ten bytes and the mask.
            assert_eq!(frames.needs(), (at >= 14).then_some(long), "{at}");
            pass(&mut frames, &[*byte]);
        }
        assert_eq!(frames.needs(), None);
        // In pieces, between which others stand.
        let mut piece = encode(TEXT, &[0; 60_000], true);
        piece[0] &= 0x7f;
        pass(&mut frames, &piece);
        assert_eq!(frames.needs(), None);
        piece[0] = 0;
        pass(&mut frames, &piece);
        pass(&mut frames, &encode(PING, b"", true));
        assert_eq!(frames.needs(), Some(usize::MAX));
        piece[0] = 0x80;
        pass(&mut frames, &piece);
        assert_eq!(frames.needs(), None);
    }
}
