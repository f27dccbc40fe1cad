//! A live restore: another commit in the place of the running state, and back again if the gateway does not come up
//! on it.

use std::{path::PathBuf, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};
use ulid::Ulid;

use super::layout::Layout;
use crate::{
    report::control::Refusal,
    state::{
        engine::EngineHandle,
        history::History,
        model::CommitId,
        restore::{Progress, RestoreError, restore},
        segment::reader::ReadError,
    },
    supervise::Handle,
};

const GATEWAY: &str = "gateway";
/// For the gateway to become ready on what was restored: its own readiness probe gives it 180 s.
const READY: Duration = Duration::from_secs(300);

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
        let history = self.history.clone();
        let known = spawn_blocking(move || history.info(id)).await.map_err(failed)?;
        known.map_err(unreadable)?;
        self.services.stop(GATEWAY).await.map_err(failed)?;
        let before = match self.engine.commit_now().await {
            Ok(before) => before.map(|meta| meta.id),
            Err(error) => {
                self.start().await.map_err(failed)?;
                return Err(Refusal::Store(format!(
                    "the state of now cannot be committed, so it stays: {error}"
                )));
            }
        };
        if let Err(refusal) = self.place(id).await {
            self.start().await.map_err(failed)?;
            return Err(refusal);
        }
        let Err(why) = self.start().await else { return Ok(()) };
        let Some(before) = before else {
            return Err(Refusal::Failed(why));
        };
        tracing::error!(commit = %id, %why, "the gateway does not come up on what was restored; the state from before comes back");
        let back = async {
            self.services.stop(GATEWAY).await.map_err(failed)?;
            self.place(before).await
        };
        back.await?;
        let came_back = self.start().await;
        Err(Refusal::Failed(match came_back {
            Ok(()) => format!("the gateway does not come up on {id} ({why}); the state from before is back"),
            Err(also) => format!(
                "the gateway does not come up on {id} ({why}), nor on the state from before, which is back ({also})"
            ),
        }))
    }

    /// Puts a commit in place, and has what changes from then on committed as a generation that began from it.
    async fn place(&self, id: CommitId) -> Result<(), Refusal> {
        self.engine.pause().await.map_err(failed)?;
        let (history, layout, work) = (self.history.clone(), self.layout.clone(), self.work.clone());
        let placed = spawn_blocking(move || {
            let head = history.load(id)?;
            let roots = layout.of_agent(&history, &head)?;
            restore(&history, &head, &roots, &work, &Progress::default())?;
            Ok::<_, RestoreError>((history.begin(Ulid::generate(), Some(id)), head))
        });
        match placed.await {
            Ok(Ok(from)) => {
                self.engine.resume(Some(from));
                Ok(())
            }
            Ok(Err(error)) => {
                self.engine.resume(None);
                Err(match error {
                    RestoreError::Read(error) => unreadable(error),
                    other => Refusal::Failed(other.to_string()),
                })
            }
            Err(panicked) => {
                self.engine.resume(None);
                Err(failed(panicked))
            }
        }
    }

    /// Starts the gateway and waits until it is ready.
    async fn start(&self) -> Result<(), String> {
        match timeout(READY, self.services.start(GATEWAY)).await {
            Ok(started) => started.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it was not ready within {} s", READY.as_secs())),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn unreadable(error: ReadError) -> Refusal {
    let why = error.to_string();
    match error {
        ReadError::Store(error) if error.is_not_found() => Refusal::NotFound(why),
        ReadError::Store(_) => Refusal::Store(why),
        _ => Refusal::Failed(why),
    }
}
