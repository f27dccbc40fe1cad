//! What was asked for and takes time: started, remembered, and waited for by whoever wants to.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use ulid::Ulid;

use super::problem::Kind;

/// So many are remembered; the oldest that has ended goes first.
const REMEMBERED: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Running,
    Done,
    Failed,
}

/// One thing asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: Ulid,
    /// Such as `restart gateway`.
    pub what: String,
    pub started: Timestamp,
    pub outcome: Outcome,
    /// Why it failed.
    pub why: Option<String>,
    /// What kind of failure that is; as in a [`Problem`](super::Problem).
    #[serde(rename = "type", default, skip_serializing_if = "Kind::is_plain")]
    pub kind: Kind,
}

/// Why something failed.
pub struct Why {
    pub kind: Kind,
    pub text: String,
}

#[derive(Default)]
pub struct Operations(Arc<Mutex<VecDeque<watch::Receiver<Operation>>>>);

impl Operations {
    /// Sees what was asked for through, whether or not anybody waits for it.
    pub fn begin(&self, what: String, answer: impl Future<Output = Result<(), Why>> + Send + 'static) -> Operation {
        let operation = Operation {
            id: Ulid::generate(),
            what,
            started: Timestamp::now(),
            outcome: Outcome::Running,
            why: None,
            kind: Kind::Plain,
        };
        let (sender, receiver) = watch::channel(operation.clone());
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED {
                let oldest = known.iter().position(|one| one.borrow().outcome != Outcome::Running);
                known.remove(oldest.unwrap_or(0));
            }
            known.push_back(receiver);
        }
        tokio::spawn(async move {
            let ended = answer.await;
            sender.send_modify(|operation| match ended {
                Ok(()) => operation.outcome = Outcome::Done,
                Err(Why { kind, text }) => {
                    operation.outcome = Outcome::Failed;
                    operation.why = Some(text);
                    operation.kind = kind;
                }
            });
        });
        operation
    }

    /// An operation as it is when it has ended, or after `wait` if it has not; `None` if there is none of that id.
    pub async fn get(&self, id: Ulid, wait: Duration) -> Option<Operation> {
        let mut receiver = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.iter().find(|one| one.borrow().id == id)?.clone()
        };
        let ended = receiver.wait_for(|operation| operation.outcome != Outcome::Running);
        // Its task can be lost only with the whole runtime.
        let _ = tokio::time::timeout(wait, ended).await;
        Some(receiver.borrow().clone())
    }
}
