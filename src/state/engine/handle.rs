//! Talking to the engine from async code.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender,
    },
    time::Instant,
};

use tokio::sync::oneshot;

use crate::state::{
    head::Head,
    history::Generation,
    model::{CommitId, Meta},
};

/// What was asked for has not been committed. It is tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCommitted {
    #[error("not committed: {0}")]
    Failed(Why),
    #[error("not committed in time; the last try: {0}")]
    TooLate(Why),
    #[error(
        "not committed: a restore is under way, and nothing is committed before it is known whether its state stays"
    )]
    Paused,
    #[error("the snapshot engine has ended")]
    Ended,
}

/// Why a commit did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Why {
    pub(super) text: Arc<str>,
    pub(super) is_of_store: bool,
}

impl NotCommitted {
    /// There was nothing wrong but that the store was not to be had.
    pub fn is_for_want_of_the_store(&self) -> bool {
        match self {
            NotCommitted::Failed(why) | NotCommitted::TooLate(why) => why.is_of_store,
            NotCommitted::Paused | NotCommitted::Ended => false,
        }
    }
}

/// The newest commit, or none if there was never anything to commit.
pub type Answer = Result<Option<Meta>, NotCommitted>;

pub(super) enum Command {
    /// The watch has something.
    Wake,
    Commit(oneshot::Sender<Answer>),
    Last(Last),
    Pause(oneshot::Sender<()>),
    Resume(Option<Box<(Generation, Head)>>),
    /// Objects were found not to be in the store any more, or not as they were written.
    Broken(Vec<CommitId>),
    Stop,
}

/// A commit that is tried again until it has worked or its time is over.
pub(super) struct Last {
    pub deadline: Instant,
    /// The engine ends with it.
    pub ends: bool,
    pub reply: oneshot::Sender<Answer>,
}

/// Commands to a running engine; cheap to clone. When the last one is dropped the engine ends, without a last commit.
#[derive(Clone)]
pub struct EngineHandle(pub(super) Arc<Line>);

pub(super) struct Line {
    pub commands: Sender<Command>,
    pub told: Arc<Told>,
}

/// What the engine has said last, for whoever cannot wait for its answer.
#[derive(Default)]
pub(super) struct Told {
    /// Paths that have changed since the last commit.
    pub pending: AtomicU64,
    /// Why there has been none since the last one that worked.
    failure: Mutex<Option<Why>>,
}

impl Told {
    pub fn set_failure(&self, failure: Option<Why>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    pub fn too_late(&self) -> NotCommitted {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Without one the first try is not over yet.
        NotCommitted::TooLate(failure.unwrap_or_else(|| Why {
            text: "the store has not answered".into(),
            is_of_store: true,
        }))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
    }
}

impl EngineHandle {
    /// Commits all there is now; the newest commit if nothing has changed since.
    pub async fn commit_now(&self) -> Answer {
        self.ask(Command::Commit).await?
    }

    /// Commits all there is now; tries again until `deadline` if the store fails.
    pub async fn commit_by(&self, deadline: Instant) -> Answer {
        self.last(deadline, false).await
    }

    /// The same, and ends, at the latest at `deadline`.
    pub async fn finish(&self, deadline: Instant) -> Answer {
        self.last(deadline, true).await
    }

    /// How many paths have changed since the last commit, by name and one for all others.
    pub fn pending(&self) -> u64 {
        self.0.told.pending.load(Ordering::Relaxed)
    }

    async fn last(&self, deadline: Instant, ends: bool) -> Answer {
        let asked = self.ask(|reply| Command::Last(Last { deadline, ends, reply }));
        match tokio::time::timeout_at(deadline.into(), asked).await {
            Ok(answer) => answer?,
            Err(_) => Err(self.0.told.too_late()),
        }
    }

    /// Returns when no commit is under way; none is made until [`EngineHandle::resume`], not the last one either, and who
    /// asks for one is told so. What changes meanwhile is not forgotten.
    pub async fn pause(&self) -> Result<(), NotCommitted> {
        self.ask(Command::Pause).await
    }

    /// Goes on: from what the roots have been restored to, or as before.
    pub fn resume(&self, restored: Option<(Generation, Head)>) {
        self.tell(Command::Resume(restored.map(Box::new)));
    }

    fn tell(&self, command: Command) {
        // An engine that has ended has nothing to be told.
        let _ = self.0.commands.send(command);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, NotCommitted> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.commands.send(command(reply));
        sent.map_err(|_| NotCommitted::Ended)?;
        answer.await.map_err(|_| NotCommitted::Ended)
    }
}
