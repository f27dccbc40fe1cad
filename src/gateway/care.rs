//! What the supervisor asks the gateway's keeper.

use std::path::Path;

use futures_util::{FutureExt, future::BoxFuture};
use tracing::{info, warn};

use super::Gateway;
use crate::{
    browser::skill::{self, Outcome},
    event::Event,
    supervise::{Care, Ended, Launch, Start, Verdict},
};

const WAITS: &str = "it waits for its environment, which has neither OPENCLAW_GATEWAY_TOKEN nor a model provider's key: set \
                     them for the container, or have the Worker run `moltinit attach gateway` with them";

/// The agent can do without, so nothing waits for it.
fn put_skill(workspace: &Path) {
    match skill::install(workspace) {
        Ok(Outcome::UpToDate) => {}
        Ok(Outcome::Installed) => info!("the browser skill is in {}", skill::directory(workspace).display()),
        Ok(Outcome::Kept(path)) => info!("the browser skill stays as it is: {path} has been changed"),
        Err(error) => warn!("{error}"),
    }
}

impl Care for Gateway {
    fn before_start(&self, _attempt: u32) -> BoxFuture<'_, Start> {
        async {
            if self.waits_to_be_told() {
                return Start::Hold(WAITS.into());
            }
            if let Err(why) = self.end_orphans().await {
                return Start::Hold(why);
            }
            // A few small local files.
            let prepared = match self.prepare() {
                Ok(prepared) => prepared,
                Err(error) => return Start::Hold(error.to_string()),
            };
            if let Some(version) = prepared.version {
                let version = version.to_string();
                self.events.emit(Event::GatewayFound { version });
            }
            put_skill(&prepared.workspace);
            let child = self.environment();
            Start::Go(Launch {
                env: child
                    .set
                    .into_iter()
                    .map(|(key, value)| (key.into(), value.into()))
                    .collect(),
                unset: child.unset.into_iter().map(Into::into).collect(),
                ..Launch::default()
            })
        }
        .boxed()
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
        async { self.works() }.boxed()
    }

    fn check(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        self.needs_rpc_for_health()
            .then(|| async { self.health().await.map_err(|error| error.to_string()) }.boxed())
    }
}
