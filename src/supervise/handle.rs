//! What the rest of the program does with the supervisor.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, future::join_all};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use crate::{config::value::did_you_mean, event::ServiceState};

use super::{
    board::{self, View},
    care::Environment,
    logs::{Followed, Line, Log},
    machine::Input,
    order::STORE,
    service::{Common, Message},
    tree,
};

/// The longest a service may still drain once somebody is in a hurry.
const HURRY: Duration = Duration::from_secs(3);
/// Kept of a deadline for killing what does not stop.
const KILLING: Duration = Duration::from_secs(2);

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("there is no service `{name}`{nearest}")]
    Unknown { name: String, nearest: String },
    #[error("the supervisor is shutting down")]
    ShuttingDown,
    #[error("{service} is not up: {}{}", state_name(*.state), .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NotUp {
        service: String,
        state: ServiceState,
        why: Option<String>,
    },
}

fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::Waiting => "waiting",
        ServiceState::Starting => "starting",
        ServiceState::Running => "running",
        ServiceState::Ready => "ready",
        ServiceState::Unhealthy => "unhealthy",
        ServiceState::Stopping => "stopping",
        ServiceState::BackingOff => "backing off",
        ServiceState::CrashLoop => "in a crash loop",
        ServiceState::Held => "held",
    }
}

/// One service as the handle knows it.
pub(super) struct Entry {
    pub inbox: mpsc::UnboundedSender<Message>,
    pub log: Arc<Log>,
    pub _task: AbortOnDropHandle<()>,
}

/// The supervisor. Cheap to clone; the services are supervised as long as one handle is left.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub services: BTreeMap<String, Entry>,
    pub common: Arc<Common>,
    pub closing: AtomicBool,
    pub hurried: watch::Sender<bool>,
}

impl Handle {
    /// Starts a service, and waits until it is ready.
    ///
    /// # Errors
    /// There is none of that name, or it is held, in a crash loop, or has ended for good.
    pub async fn start(&self, name: &str) -> Result<(), CommandError> {
        self.up(name, Input::Start).await
    }

    /// Stops a service and starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&self, name: &str) -> Result<(), CommandError> {
        self.up(name, Input::Restart).await
    }

    /// Stops a service, and waits until nothing of it is left.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn stop(&self, name: &str) -> Result<(), CommandError> {
        self.tell(name, Input::Stop).await?;
        board::until(&self.0.common.board, |board| board.is_stopped(name).then_some(())).await;
        Ok(())
    }

    /// Keeps a service down, and with it everything that works on the restored state, that is what comes after `store`,
    /// directly or not: ends in reverse order what is up, until it is [released](Self::release); nobody's `start` changes
    /// that. Comes back when nothing of it is left.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn hold(&self, name: &str, why: &str) -> Result<(), CommandError> {
        let names = self.on_state_with(name);
        let held = names.iter().map(|name| self.hold_in_turn(name, &names, why));
        join_all(held).await.into_iter().collect()
    }

    /// Lets start again what was [held](Self::hold), by whomever, and is wanted.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn release(&self, name: &str) -> Result<(), CommandError> {
        for name in self.on_state_with(name) {
            self.tell(name, Input::Release).await?;
        }
        Ok(())
    }

    fn on_state_with<'a>(&'a self, name: &'a str) -> BTreeSet<&'a str> {
        let mut names = self.0.common.order.all_after(STORE);
        names.insert(name);
        names
    }

    /// A condition that services come after (`store`) holds from now on.
    pub fn satisfied(&self, condition: &str) {
        self.0.common.board.send_modify(|board| {
            board.conditions.insert(condition.to_owned());
        });
    }

    /// Hands over an environment, which goes over the service's own at its next start, starts the service if it is
    /// stopped or held, and waits until it has ended for good; gives its last exit status. A service that is up is
    /// started again if `renew` says that the environment matters to it.
    ///
    /// # Errors
    /// There is none of that name, or the supervisor is shutting down.
    pub async fn attach(&self, name: &str, env: Environment, renew: bool) -> Result<i32, CommandError> {
        let entry = self.entry(name)?;
        self.refuse_when_closing()?;
        let (done, heard) = oneshot::channel();
        let _ = entry.inbox.send(Message::Attach { env, renew, done });
        let _ = heard.await;
        let status = board::until(&self.0.common.board, |board| {
            let view = board.services.get(name)?;
            let status = view.last_exit.map_or(0, |exit| exit.status);
            (view.state == ServiceState::Stopped).then_some(status)
        });
        Ok(status.await)
    }

    /// Comes back when a service is ready, or has been up for as long as it may take to become so.
    pub async fn until_up(&self, name: &str) {
        board::until(&self.0.common.board, |board| {
            let overdue = board.services.get(name).is_some_and(View::is_overdue);
            (overdue || board.is_ready(name)).then_some(())
        })
        .await;
    }

    /// Where every service stands.
    pub fn services(&self) -> Vec<View> {
        self.0.common.board.borrow().services.values().cloned().collect()
    }

    /// The last `n` lines that a service wrote.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn logs(&self, name: &str, n: usize) -> Result<Vec<Arc<Line>>, CommandError> {
        Ok(self.entry(name)?.log.last(n, 0))
    }

    /// The last `n` lines of a service, and then every one it writes.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn follow(
        &self,
        name: &str,
        n: usize,
    ) -> Result<impl Stream<Item = Followed> + Send + Unpin + use<>, CommandError> {
        Ok(self.entry(name)?.log.follow(n))
    }

    /// Whether the supervisor's loop turns.
    pub fn is_alive(&self) -> bool {
        self.0.common.pulse.is_alive()
    }

    /// Whether services are being stopped for good.
    pub fn is_shutting_down(&self) -> bool {
        self.0.closing.load(Ordering::Relaxed)
    }

    /// Comes back when a service is in a crash loop that shall end the supervisor (exit code 70).
    pub async fn gave_up(&self) {
        let mut gave_up = self.0.common.gave_up.subscribe();
        // The sender is in `self`.
        let _ = gave_up.wait_for(|gave_up| *gave_up).await;
    }

    /// Stops everything that works on the restored state, that is what comes after `store`, directly or not, in
    /// reverse order; the rest, a mount of the store perhaps among it, stays up for the last snapshot.
    ///
    /// From now on nothing can be started. After `within` nothing of it is left running.
    pub async fn drain(&self, within: Duration) {
        self.0.closing.store(true, Ordering::Relaxed);
        let order = &self.0.common.order;
        let names = order.all_after(STORE).into_iter().map(str::to_owned).collect();
        self.stop_all(names, within).await;
    }

    /// Stops every service in reverse order. After `within` none is left running.
    pub async fn shut_down(&self, within: Duration) {
        self.0.closing.store(true, Ordering::Relaxed);
        let names = self.0.services.keys().cloned().collect();
        self.stop_all(names, within).await;
    }

    /// Ends every process there is below this one, or in its namespace if it is PID 1: asks, and kills after `grace`.
    pub async fn sweep(&self, grace: Duration) {
        tree::sweep(grace).await;
    }

    /// Cuts short every stop of a [`drain`](Self::drain) or [`shut_down`](Self::shut_down), under way or to come.
    pub fn hurry(&self) {
        self.0.hurried.send_replace(true);
    }

    async fn hold_in_turn(&self, name: &str, all: &BTreeSet<&str>, why: &str) -> Result<(), CommandError> {
        let Common { board, order, .. } = &*self.0.common;
        let mut before = order.after(name);
        before.retain(|other| all.contains(other));
        board::until(board, |board| {
            before.iter().all(|other| board.is_down(other)).then_some(())
        })
        .await;
        self.tell(name, Input::Hold(why.to_owned())).await?;
        board::until(board, |board| board.is_down(name).then_some(())).await;
        Ok(())
    }

    async fn stop_all(&self, names: BTreeSet<String>, within: Duration) {
        let began = Instant::now();
        let deadline = began + within.saturating_sub(KILLING.min(within / 4));
        let stopped = join_all(names.iter().map(|name| self.stop_in_turn(name, deadline)));
        tokio::select! {
            _ = stopped => {}
            () = self.over(began + within) => {
                let board = self.0.common.board.borrow();
                let left: Vec<_> = names.into_iter().filter(|name| !board.is_stopped(name)).collect();
                error!("going on without the end of {}: killed, and still there", left.join(", "));
            }
        }
    }

    /// Comes back at that time, or, once somebody is in a hurry, when even then everything should have ended.
    async fn over(&self, deadline: Instant) {
        let mut hurried = self.0.hurried.subscribe();
        let soon = async {
            // The sender is in `self`.
            let _ = hurried.wait_for(|hurried| *hurried).await;
            sleep(HURRY + KILLING).await;
        };
        tokio::select! {
            () = sleep_until(deadline) => {}
            () = soon => {}
        }
    }

    async fn stop_in_turn(&self, name: &str, deadline: Instant) {
        let Common { board, order, .. } = &*self.0.common;
        let before = order.after(name);
        let mut hurried = self.0.hurried.subscribe();
        // What is up while others that need it stop is still looked after; what is not up need not come up any more.
        board::until(board, |board| {
            let down = board.services.get(name).is_none_or(|view| view.pid.is_none());
            (down || before.iter().all(|other| board.is_stopped(other))).then_some(())
        })
        .await;
        let left = |hurried: bool| {
            let left = deadline.saturating_duration_since(Instant::now());
            if hurried { left.min(HURRY) } else { left }
        };
        let stopped = board::until(board, |board| board.is_stopped(name).then_some(()));
        tokio::pin!(stopped);
        let already = *hurried.borrow_and_update();
        let _ = self.tell(name, Input::StopWithin(left(already))).await;
        loop {
            tokio::select! {
                () = &mut stopped => return,
                Ok(()) = hurried.changed() => {
                    info!(service = name, "in a hurry: cutting the stop short");
                    let _ = self.tell(name, Input::StopWithin(left(true))).await;
                }
            }
        }
    }

    async fn up(&self, name: &str, input: Input) -> Result<(), CommandError> {
        self.entry(name)?;
        self.refuse_when_closing()?;
        self.tell(name, input).await?;
        board::until(&self.0.common.board, |board| {
            let view = board.services.get(name)?;
            match view.state {
                ServiceState::Ready => Some(Ok(())),
                ServiceState::Stopped | ServiceState::Held | ServiceState::CrashLoop => Some(Err(())),
                _ => view.is_overdue().then_some(Err(())),
            }
            .map(|up| {
                up.map_err(|()| CommandError::NotUp {
                    service: name.to_owned(),
                    state: view.state,
                    why: view.why.clone(),
                })
            })
        })
        .await
    }

    async fn tell(&self, name: &str, input: Input) -> Result<(), CommandError> {
        let (done, heard) = oneshot::channel();
        let _ = self.entry(name)?.inbox.send(Message::Do(input, done));
        let _ = heard.await;
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry, CommandError> {
        self.0.services.get(name).ok_or_else(|| CommandError::Unknown {
            name: name.to_owned(),
            nearest: did_you_mean(name, self.0.services.keys().map(String::as_str)),
        })
    }

    fn refuse_when_closing(&self) -> Result<(), CommandError> {
        if self.is_shutting_down() {
            return Err(CommandError::ShuttingDown);
        }
        Ok(())
    }
}
