//! What the supervisor asks the gateway's keeper.

use std::{path::Path, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::warn;

use super::{Gateway, orphans};
use crate::{
    event::Event,
    supervise::{Care, Ended, Launch, Start, Verdict},
};

const WAITS: &str = "it waits for its environment, which has neither OPENCLAW_GATEWAY_TOKEN nor a model provider's key: set \
                     them for the container, or have the Worker run `moltinit attach gateway` with them";

/// For putting a few small files into the workspace, which may be on anything. The agent can do without them.
const FURNISHING: Duration = Duration::from_secs(10);

/// A keeper is not heard for longer than ten minutes, and a gateway that has been up for five stays up.
const LONGEST_TRIAL: Duration = Duration::from_secs(300);

impl Gateway {
    async fn start(&self) -> Start {
        if self.waits_to_be_told() {
            return Start::Hold(WAITS.into());
        }
        if let Err(why) = orphans::end(&self.places).await {
            return Start::Fail(why);
        }
        let prepared = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(error) if error.is_for_a_person() => return Start::Hold(error.to_string()),
            Err(error) => return Start::Fail(error.to_string()),
        };
        if let Some(version) = prepared.version {
            let version = version.to_string();
            self.events.emit(Event::GatewayFound { version });
        }
        self.furnish(|workspace| workspace.is_dir()).await;
        let child = self.environment();
        let set = child.set.into_iter();
        Start::Go(Launch {
            env: set.map(|(key, value)| (key.into(), value.into())).collect(),
            unset: child.unset.into_iter().map(Into::into).collect(),
            ..Launch::default()
        })
    }

    /// Puts what is ours into the workspace of the start that was prepared, where it is `wanted`.
    async fn furnish(&self, wanted: fn(&Path) -> bool) {
        let Some(workspace) = self.workspace() else { return };
        let furnish = self.furnish;
        let shown = workspace.display().to_string();
        let furnished = spawn_blocking(move || wanted(&workspace).then(|| furnish(&workspace)));
        if timeout(FURNISHING, furnished).await.is_err() {
            warn!("the workspace {shown} does not answer: nothing is put into it for this start");
        }
    }
}

impl Care for Gateway {
    fn before_start(&self, _attempt: u32) -> BoxFuture<'_, Start> {
        self.start().boxed()
    }

    fn after_exit(&self, ended: Ended) -> BoxFuture<'_, Verdict> {
        async move {
            if ended.oom {
                return Verdict::Restart;
            }
            let tail: Vec<String> = ended.tail.iter().map(|line| line.text.clone()).collect();
            self.ended(ended.exit.status(), ended.was_ready, &tail).await
        }
        .boxed()
    }

    fn became_ready(&self) -> BoxFuture<'_, ()> {
        async {
            let run = self.ready().await;
            // A new agent's workspace is begun now and not before: a gateway that finds more than its configuration
            // looks for the state of older ones, for seconds.
            self.furnish(|_| true).await;
            sleep(self.patience.settled.min(LONGEST_TRIAL)).await;
            self.settled(run).await;
        }
        .boxed()
    }

    fn check(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        self.needs_rpc_for_health()
            .then(|| async { self.health().await.map_err(|error| error.to_string()) }.boxed())
    }
}
