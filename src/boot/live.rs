//! A live restore: another commit in the place of the running state, and back again if the gateway does not come up
//! on it.
//!
//! The gateway and whatever else comes after `store` are held, not only stopped, from before their state is committed
//! until the other is in place: whoever asks for one to start meanwhile has it started then. One that went on would write
//! to files that have been moved aside, which are in no snapshot. Services that are not of the state go on.
//!
//! Nothing is committed from then on until the gateway is ready. So until then the store has the state from before as the
//! newest, and whoever is killed or stopped goes on with that at the next boot. The way back is the same renames the other
//! way round, and needs nothing that may be gone by then.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::{sleep, timeout},
};
use ulid::Ulid;

use super::layout::Layout;
use crate::{
    report::control::Refusal,
    state::{
        engine::EngineHandle,
        head::Head,
        history::History,
        model::CommitId,
        restore::{Back, Progress, RestoreError, Staged, is_unfinished, resume, stage},
        segment::reader::ReadError,
        verify,
    },
    supervise::Handle,
};

const GATEWAY: &str = "gateway";
/// For the gateway to become ready on what was restored: its own readiness probe gives it 180 s.
const READY: Duration = Duration::from_secs(300);
/// Between tries to finish what is half-way.
const AGAIN: Duration = Duration::from_secs(5);

/// What a live restore works on.
pub struct Live {
    pub services: Handle,
    pub engine: EngineHandle,
    pub history: History,
    pub layout: Layout,
    pub work: PathBuf,
}

impl Live {
    /// Restores `id`. The state of now is committed first, so it stays in the history whatever happens.
    ///
    /// # Errors
    /// Why it was not done, or was undone again.
    pub async fn restore(&self, id: CommitId) -> Result<(), Refusal> {
        // While the gateway still runs: what cannot be restored is found out before anything is stopped.
        let ready = self.stage(id).await?;
        self.hold(&format!("snapshot {id} is being put in the place of its state"))
            .await?;
        if let Err(error) = self.engine.commit_now().await {
            self.discard(ready).await;
            self.start().await.map_err(failed)?;
            return Err(Refusal::Store(format!(
                "the state of now cannot be committed, so it stays: {error}"
            )));
        }
        if self.services.is_shutting_down() {
            self.discard(ready).await;
            return Err(stopping(id));
        }
        let (head, back) = match self.place(ready).await {
            Ok(placed) => placed,
            Err(refusal) => {
                self.start().await.map_err(failed)?;
                return Err(refusal);
            }
        };
        match self.start().await {
            Ok(()) => self.settle(id, head).await,
            // It does not come up since nothing does any more, and what is in place is not what the next boot goes on with.
            Err(_) if self.services.is_shutting_down() => Err(stopping(id)),
            Err(why) => Err(self.roll_back(id, back, &why).await),
        }
    }

    /// Brings the state from before back, however long that takes; says how it went.
    async fn roll_back(&self, id: CommitId, back: Back, why: &str) -> Refusal {
        tracing::error!(commit = %id, why, "the gateway does not come up on what was restored; the state from before comes back");
        if let Err(refusal) = self.hold("the state from before comes back").await {
            return refusal;
        }
        let back = Arc::new(back);
        loop {
            // The next boot brings it back from the store.
            if self.services.is_shutting_down() {
                return stopping(id);
            }
            let Err(error) = self.go_back(&back).await else {
                break;
            };
            tracing::error!(%error, "the state from before is not back; the gateway is held until it is");
            sleep(AGAIN).await;
        }
        // The engine is where it was.
        self.engine.resume(None);
        let came_back = self.start().await;
        Refusal::Failed(match came_back {
            Ok(()) => format!("the gateway does not come up on {id} ({why}); the state from before is back"),
            Err(also) => format!(
                "the gateway does not come up on {id} ({why}), nor on the state from before, which is back ({also})"
            ),
        })
    }

    async fn go_back(&self, back: &Arc<Back>) -> Result<(), String> {
        let (back, work) = (Arc::clone(back), self.work.clone());
        let gone = spawn_blocking(move || {
            // A try before this one may have been cut off; then it is finished, and all is back.
            match resume(&work)? {
                Some(_) => Ok(Vec::new()),
                None => back.go(&work),
            }
        });
        let aside: Vec<PathBuf> = match gone.await {
            Ok(gone) => gone.map_err(|error| error.to_string())?,
            Err(panicked) => return Err(panicked.to_string()),
        };
        for aside in aside {
            tracing::warn!(path = %aside.display(), "the state on which the gateway did not come up was moved aside");
        }
        Ok(())
    }

    /// Puts a commit on the disk, beside what is there.
    async fn stage(&self, id: CommitId) -> Result<Ready, Refusal> {
        let (history, layout) = (self.history.clone(), self.layout.clone());
        let staged = spawn_blocking(move || {
            let head = history.load(id)?;
            let roots = layout.of_agent(&history, &head)?;
            let staged = stage(&history, &head, &roots, &Progress::default())?;
            Ok::<_, RestoreError>(Ready { head, staged })
        });
        staged.await.map_err(failed)?.map_err(refusal)
    }

    async fn discard(&self, ready: Ready) {
        let _ = spawn_blocking(move || ready.staged.discard()).await;
    }

    /// Puts what is staged in place. Nothing is committed from then on; after an error everything goes on as before.
    async fn place(&self, ready: Ready) -> Result<(Head, Back), Refusal> {
        self.engine.pause().await.map_err(failed)?;
        let (history, work) = (self.history.clone(), self.work.clone());
        let placed = spawn_blocking(move || {
            let Ready { head, staged } = ready;
            // Since it was read the store may have been thinned; from now on it is not.
            if let Err(error) = verify::is_whole(&history, &head) {
                staged.discard();
                return Err(error.into());
            }
            Ok::<_, RestoreError>((staged.place(&work), head))
        });
        let (placed, head) = match placed.await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                self.engine.resume(None);
                return Err(refusal(error));
            }
            Err(panicked) => return self.after_panic(panicked).await,
        };
        match placed {
            Ok((placed, back)) => {
                placed.tell();
                Ok((head, back))
            }
            Err(RestoreError::Unfinished(error)) => Ok((head, self.finish(&error).await)),
            Err(error) => {
                self.engine.resume(None);
                Err(refusal(error))
            }
        }
    }

    /// Nothing may run or be committed on state that is half-way, however long that takes.
    async fn finish(&self, error: &RestoreError) -> Back {
        let mut why = error.to_string();
        loop {
            tracing::error!(%why, "a restore is half-way; the gateway is held until it is finished");
            sleep(AGAIN).await;
            let work = self.work.clone();
            match spawn_blocking(move || resume(&work)).await {
                Ok(Ok(Some(back))) => return back,
                Ok(Ok(None)) => why = "its journal is gone".into(),
                Ok(Err(error)) => why = error.to_string(),
                Err(panicked) => why = panicked.to_string(),
            }
        }
    }

    /// What was put in place is not known. It is either as before or can be finished, and is committed as it is then.
    async fn after_panic<T>(&self, panicked: JoinError) -> Result<T, Refusal> {
        if is_unfinished(&self.work) {
            self.finish(&RestoreError::local(
                "restoring",
                &self.work,
                std::io::Error::other(panicked.to_string()),
            ))
            .await;
        }
        self.engine.resume(None);
        Err(failed(panicked))
    }

    /// Has what is in place committed from now on, as a generation that began from it. Returns when a boot would follow that.
    async fn settle(&self, id: CommitId, head: Head) -> Result<(), Refusal> {
        let generation = self.history.begin(Ulid::generate(), head.id());
        self.engine.resume(Some((generation, head)));
        let committed = self.engine.commit_now().await;
        committed.map(drop).map_err(|error| {
            Refusal::Store(format!(
                "{id} is in place, but the store has not taken that yet, and a container that starts now goes on with \
                 the state from before: {error}"
            ))
        })
    }

    async fn hold(&self, why: &str) -> Result<(), Refusal> {
        self.services.hold(GATEWAY, why).await.map_err(failed)
    }

    /// Lets go what is held and waits until the gateway is ready.
    async fn start(&self) -> Result<(), String> {
        let started = async {
            self.services.release(GATEWAY).await?;
            self.services.start(GATEWAY).await
        };
        match timeout(READY, started).await {
            Ok(started) => started.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it was not ready within {} s", READY.as_secs())),
        }
    }
}

/// A commit that only has to be put in place.
struct Ready {
    head: Head,
    staged: Staged,
}

/// The answer of a restore that the end of everything came into.
fn stopping(id: CommitId) -> Refusal {
    Refusal::Unavailable(format!(
        "the supervisor is shutting down before the gateway was ready on {id}; nothing of that is committed, and the next \
         boot goes on with the state from before"
    ))
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn refusal(error: RestoreError) -> Refusal {
    let why = error.to_string();
    match error {
        RestoreError::Read(ReadError::Store(error)) if error.is_not_found() => Refusal::NotFound(why),
        RestoreError::Read(ReadError::Store(_)) => Refusal::Store(why),
        _ => Refusal::Failed(why),
    }
}
