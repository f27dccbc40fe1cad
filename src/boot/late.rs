//! What `moltinit attach` brings to the agent: an environment that PID 1 was not given.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::Checked;
use crate::{
    browser::{Port, upstream::Upstream},
    config::{Config, Problems, env::Env},
    event::{Event, Events},
    gateway::Gateway,
    report::{Settings, control::Refusal},
};

/// Those who have a use for it.
pub struct Late {
    /// What PID 1 was given.
    pub config: Config,
    pub gateway: Arc<Gateway>,
    pub report: watch::Sender<Settings>,
    pub browser: Port,
    pub events: Events,
}

impl Late {
    /// Goes on with these variables over PID 1's own: the platform's way of handing secrets to an agent is to give them
    /// to its start script. True if the gateway has to be started again to know of them.
    ///
    /// # Errors
    /// Something in them is wrong; nothing has changed.
    pub async fn take(&self, env: BTreeMap<String, String>) -> Result<bool, Refusal> {
        let known = self.config.clone();
        let checked = move || {
            let over: Env = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            Checked::of(known.late(over)?)
        };
        let wrong = |problems: Problems| Refusal::Configuration(problems.to_string());
        // It may read files.
        let checked = tokio::task::spawn_blocking(checked).await;
        let Checked {
            config,
            settings,
            upstream,
        } = checked
            .map_err(|error| Refusal::Failed(error.to_string()))?
            .map_err(wrong)?;
        let renew = self.gateway.reconfigure(&config).map_err(wrong)?;
        self.report.send_replace(settings);
        if let Some(upstream) = upstream {
            self.open(upstream).await;
        }
        Ok(renew)
    }

    /// Serves a browser at the local port. Without the port the gateway does without a browser.
    pub async fn open(&self, upstream: Upstream) {
        let name = upstream.name();
        if let Err(error) = self.browser.serve(upstream).await {
            self.events.emit(Event::BrowserFailed {
                upstream: name,
                why: error.to_string(),
            });
        }
    }
}
