//! A connection's bytes: when they last moved, and an end to an answer that nobody reads.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// What a connection is doing, for whoever has to choose among them.
pub struct Activity {
    opened: Instant,
    /// Milliseconds from then to the last byte in either direction.
    moved: AtomicU64,
    /// A request is being answered.
    busy: AtomicBool,
}

impl Activity {
    pub fn new() -> Arc<Activity> {
        Arc::new(Activity {
            opened: Instant::now(),
            moved: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        })
    }

    /// The least is closed first: idle before busy, quiet before lively.
    pub fn worth(&self) -> (bool, Instant) {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        (self.busy.load(Ordering::Relaxed), self.opened + moved)
    }

    fn moves(&self) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Ordering::Relaxed);
    }

    /// Busy until what is returned is gone.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.busy.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }
}

pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// An answer's body, to the end of which its connection is busy.
pub struct Streamed {
    pub body: Body,
    pub _busy: Busy,
}

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The bytes themselves.
pub struct Wire<I> {
    io: I,
    activity: Arc<Activity>,
    /// For a client that takes nothing of its answer.
    patience: Duration,
    /// Runs while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<I> Wire<I> {
    pub fn new(io: I, activity: Arc<Activity>, patience: Duration) -> Wire<I> {
        Wire {
            io,
            activity,
            patience,
            stalled: None,
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            self.activity.moves();
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Wire<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.activity.moves();
        Poll::Ready(read)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Wire<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_that_nobody_reads_comes_to_an_end() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut wire = Wire::new(near, Activity::new(), Duration::from_millis(20));
        wire.write_all(&[0; 16]).await.unwrap();
        far.read_exact(&mut [0; 16]).await.unwrap();
        let stalled = wire.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_quiet_and_idle_are_worth_least() {
        let (quiet, lively) = (Activity::new(), Activity::new());
        tokio::time::sleep(Duration::from_millis(5)).await;
        lively.moves();
        assert!(quiet.worth() < lively.worth());
        let busy = quiet.begin();
        assert!(quiet.worth() > lively.worth());
        drop(busy);
        assert!(quiet.worth() < lively.worth());
    }
}
