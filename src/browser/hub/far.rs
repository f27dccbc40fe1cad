//! The browser's side of the one connection.

use futures_util::{Sink, SinkExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{budget::Share, text::Text};
use crate::browser::{bridge::Bridge, pulse::OURS, relay::Broken, upstream::PLATFORM_MAX};

/// What the browser's side is sent.
pub enum Up {
    Text(Text, Option<Share>),
    Ping,
}

/// What is at the other end.
pub enum Far {
    Unknown,
    Browser,
    Shim(Box<Bridge>),
}

/// Writes what there is to be written, until that fails.
pub async fn write(
    sink: &mut (impl Sink<Message, Error = Error> + Unpin),
    queue: &mut UnboundedReceiver<Up>,
) -> Broken {
    loop {
        let Some(up) = queue.recv().await else {
            return std::future::pending().await;
        };
        let sent = match up {
            // Its bytes count until they have gone.
            Up::Text(text, _share) => text.send(sink).await,
            Up::Ping => sink.send(Message::Ping(OURS.into())).await,
        };
        if let Err(error) = sent {
            return cut(error);
        }
    }
}

pub fn cut(error: Error) -> Broken {
    match error {
        Error::Capacity(_) => Broken::TooMuch(PLATFORM_MAX),
        Error::Protocol(_) | Error::Utf8(_) => Broken::BrowserGarbled(error.to_string()),
        error => Broken::Cut(error.to_string()),
    }
}
