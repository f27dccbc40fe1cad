//! Telling of a capture that does not end: the thread that makes it cannot, if a file system holds it.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use super::handle::{Told, Why};
use crate::event::{Event, Events};

/// How long a capture may take before that is told. Most take milliseconds; the first of a large state may take as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with the engine.
pub struct Vigil(Sender<()>);

/// A capture under way, until it is dropped.
pub struct UnderWay<'a>(&'a Vigil);

impl Vigil {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(patience: Duration, told: Arc<Told>, events: Events) -> io::Result<Vigil> {
        let (turn, turns) = mpsc::channel();
        let tell = move || {
            let why = format!(
                "looking at the state has taken {} s up to now: there is much to read, or a file system of it does not answer",
                patience.as_secs()
            );
            told.set_failure(Some(Why {
                text: why.as_str().into(),
                is_of_store: false,
            }));
            events.emit(Event::SnapshotFailed { why, retry_in_ms: 0 });
        };
        std::thread::Builder::new()
            .name("state-vigil".into())
            .spawn(move || keep(&turns, patience, tell))?;
        Ok(Vigil(turn))
    }

    pub fn begin(&self) -> UnderWay<'_> {
        let _ = self.0.send(());
        UnderWay(self)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let _ = self.0.0.send(());
    }
}

/// Begins and ends come by turns.
fn keep(turns: &Receiver<()>, patience: Duration, tell: impl Fn()) {
    while turns.recv().is_ok() {
        if turns.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tell();
            let _ = turns.recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_that_ends_is_not_told() {
        let (turn, turns) = mpsc::channel();
        (0..4).for_each(|_| turn.send(()).unwrap());
        drop(turn);
        keep(&turns, PATIENCE, || panic!("it had ended"));
    }

    #[tokio::test]
    async fn each_capture_that_does_not_end_is_told_once() {
        let (events, mut said) = Events::channel();
        let told = Arc::<Told>::default();
        let vigil = Vigil::start(Duration::from_millis(50), Arc::clone(&told), events).unwrap();
        for _ in 0..2 {
            let _under_way = vigil.begin();
            let event = tokio::time::timeout(Duration::from_secs(30), said.recv()).await;
            assert!(matches!(event, Ok(Some(Event::SnapshotFailed { .. }))), "{event:?}");
            assert!(told.too_late().to_string().contains("does not answer"));
            assert!(!told.too_late().is_for_want_of_the_store());
        }
        drop(vigil);
        let last = tokio::time::timeout(Duration::from_secs(30), said.recv()).await;
        assert!(matches!(last, Ok(None)), "{last:?}");
    }
}
