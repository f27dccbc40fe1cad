//! Messages that are passed on: what is long of one is never copied, but stays a piece of what it came in.

use std::pin::Pin;

use futures_util::{FutureExt, Sink, SinkExt, Stream, stream::Peekable};
use tokio_tungstenite::tungstenite::{
    Bytes, Error, Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

/// What is longer is not copied, nor sent in one frame: a frame is in memory once more until it has gone.
pub const LONG: usize = 1 << 20;

/// A text, in parts. They may end in the middle of a character.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(Vec<Bytes>);

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(vec![text.into()])
    }
}

impl FromIterator<Bytes> for Text {
    fn from_iter<I: IntoIterator<Item = Bytes>>(parts: I) -> Text {
        Text(parts.into_iter().collect())
    }
}

impl From<Text> for String {
    fn from(text: Text) -> String {
        let whole = text.0.concat();
        String::from_utf8(whole).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl Text {
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Sends it, a frame after the other.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn send(self, sink: &mut (impl Sink<Message, Error = Error> + Unpin)) -> Result<(), Error> {
        for frame in self.frames() {
            sink.feed(frame).await?;
        }
        sink.flush().await
    }

    fn frames(self) -> impl Iterator<Item = Message> {
        let mut pieces = self.0.into_iter().flat_map(pieces).peekable();
        let mut kind = Data::Text;
        std::iter::from_fn(move || {
            let piece = pieces.next()?;
            let opcode = OpCode::Data(std::mem::replace(&mut kind, Data::Continue));
            Some(Message::Frame(Frame::message(piece, opcode, pieces.peek().is_none())))
        })
    }
}

/// None of them long.
fn pieces(part: Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = Some(part);
    std::iter::from_fn(move || {
        let mut piece = rest.take()?;
        if piece.len() > LONG {
            rest = Some(piece.split_off(LONG));
        }
        Some(piece)
    })
}

/// A stream goes on reading into the buffer that a message is a piece of, and keeps it, however long it was, unless it is
/// read from while the message is there.
pub fn part_with<S: Stream + Unpin>(message: &str, stream: &mut Peekable<S>) {
    if message.len() > LONG {
        let _ = Pin::new(stream).peek().now_or_never();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_make_up_the_text() {
        for (lengths, expected) in [
            (&[0][..], 1),
            (&[1], 1),
            (&[LONG], 1),
            (&[LONG + 1], 2),
            (&[7, 3 * LONG + 7, 1], 6),
        ] {
            let parts = lengths
                .iter()
                .map(|long| "abcdefg".bytes().cycle().take(*long).collect());
            let text: Text = parts.collect();
            let frames: Vec<Frame> = text
                .clone()
                .frames()
                .map(|message| match message {
                    Message::Frame(frame) => frame,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(frames.len(), expected, "{lengths:?}");
            for (index, frame) in frames.iter().enumerate() {
                let kind = if index == 0 { Data::Text } else { Data::Continue };
                assert_eq!(frame.header().opcode, OpCode::Data(kind));
                assert_eq!(frame.header().is_final, index + 1 == frames.len());
                assert!(frame.payload().len() <= LONG);
            }
            let whole: Vec<u8> = frames.iter().flat_map(|frame| frame.payload().to_vec()).collect();
            assert_eq!(whole.len(), text.len());
            assert!(whole == String::from(text).as_bytes());
        }
    }
}
