//! Talking to the engine from async code.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use tokio::sync::oneshot;

use crate::state::{head::Head, history::Generation, model::Meta};

/// What was asked for has not been committed. It is tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCommitted {
    #[error("not committed: {0}")]
    Failed(Arc<str>),
    #[error("not committed in time; the last try: {0}")]
    TooLate(Arc<str>),
    #[error("the snapshot engine has ended")]
    Ended,
}

/// The newest commit, or none if there was never anything to commit.
pub type Answer = Result<Option<Meta>, NotCommitted>;

pub(super) enum Command {
    /// The watch has something.
    Wake,
    Commit(oneshot::Sender<Answer>),
    Finish {
        deadline: Instant,
        reply: oneshot::Sender<Answer>,
    },
    Pause(oneshot::Sender<()>),
    Resume(Option<Box<(Generation, Head)>>),
    Stop,
}

/// Commands to a running engine; cheap to clone. When the last one is dropped the engine ends, without a last commit.
#[derive(Clone)]
pub struct EngineHandle(pub(super) Arc<Line>);

pub(super) struct Line(pub(super) Sender<Command>);

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.send(Command::Stop);
    }
}

impl EngineHandle {
    /// Commits all there is now; the newest commit if nothing has changed since.
    pub async fn commit_now(&self) -> Answer {
        self.ask(Command::Commit).await?
    }

    /// Makes the last commit and ends, at the latest at `deadline`; tries again until then if the store fails.
    pub async fn finish(&self, deadline: Instant) -> Answer {
        let asked = self.ask(|reply| Command::Finish { deadline, reply });
        match tokio::time::timeout_at(deadline.into(), asked).await {
            Ok(answer) => answer?,
            Err(_) => Err(NotCommitted::TooLate("the store has not answered".into())),
        }
    }

    /// Returns when no commit is under way; none is made until [`EngineHandle::resume`]. What changes meanwhile is
    /// not forgotten.
    pub async fn pause(&self) -> Result<(), NotCommitted> {
        self.ask(Command::Pause).await
    }

    /// Goes on: from what the roots have been restored to, or as before.
    pub fn resume(&self, restored: Option<(Generation, Head)>) {
        self.tell(Command::Resume(restored.map(Box::new)));
    }

    fn tell(&self, command: Command) {
        // An engine that has ended has nothing to be told.
        let _ = self.0.0.send(command);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, NotCommitted> {
        let (reply, answer) = oneshot::channel();
        self.0.0.send(command(reply)).map_err(|_| NotCommitted::Ended)?;
        answer.await.map_err(|_| NotCommitted::Ended)
    }
}
