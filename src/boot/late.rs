//! What `moltinit attach` brings to the agent: an environment that PID 1 was not given.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{self, watch},
    task::AbortHandle,
};

use super::{Checked, place::Place};
use crate::{
    browser::{Port, upstream::Upstream},
    config::{Cdp, Config, Problems, SECRETS, env::Env},
    event::{Event, Events},
    gateway::Gateway,
    report::{Settings, control::Refusal},
};

/// Between two tries to have the browser's port, at first and at last.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Those who have a use for it.
pub struct Late {
    /// What PID 1 was given.
    pub config: Config,
    pub place: Arc<Place>,
    pub gateway: Arc<Gateway>,
    pub report: watch::Sender<Settings>,
    pub browser: Port,
    /// The tries to open it, where the first has failed.
    pub opening: sync::Mutex<Option<AbortHandle>>,
    pub events: Events,
    /// What was brought last.
    pub brought: Mutex<BTreeMap<String, String>>,
}

/// What a service gets of what was brought.
pub struct Taken {
    pub env: BTreeMap<String, String>,
    /// The gateway has to be started again to know of it.
    pub renew: bool,
}

impl Late {
    /// Goes on with these variables over PID 1's own: the platform's way of handing secrets to an agent is to give them
    /// to its start script. They replace what was brought before, unless there is no key among them that PID 1 does not
    /// have: somebody who attaches from a bare shell takes nothing away.
    ///
    /// # Errors
    /// Something in them is wrong; nothing has changed.
    pub async fn take(self: &Arc<Self>, env: BTreeMap<String, String>) -> Result<Taken, Refusal> {
        let env = match brings_a_key(&self.config.env, &env) {
            true => env,
            false => {
                let mut both = self.brought.lock().unwrap_or_else(PoisonError::into_inner).clone();
                both.extend(env);
                both
            }
        };
        let (known, brought) = (self.config.clone(), env.clone());
        let checked = move || {
            let over: Env = brought
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
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
        // Who brings nothing, from a bare shell say, has not said either that there is no store.
        if config.store.durable || !self.gateway.waits_to_be_told() {
            self.place.settle(config.store);
        }
        if let Some(upstream) = upstream {
            self.open(&config.cdp, upstream).await;
        }
        *self.brought.lock().unwrap_or_else(PoisonError::into_inner) = env.clone();
        Ok(Taken { env, renew })
    }

    /// Serves a browser at the local port. Without the port the gateway does without a browser, until whoever has it
    /// gives it up.
    pub async fn open(self: &Arc<Self>, cdp: &Cdp, upstream: Upstream) {
        let mut opening = self.opening.lock().await;
        if let Some(before) = opening.take() {
            before.abort();
        }
        let (late, cdp, upstream) = (Arc::clone(self), cdp.clone(), Arc::new(upstream));
        let serve = async move || {
            late.browser
                .serve(cdp.addr, cdp.token.clone(), Arc::clone(&upstream))
                .await
                .map_err(|error| (upstream.name(), error.to_string()))
        };
        let Err((upstream, why)) = serve().await else {
            return;
        };
        self.events.emit(Event::BrowserFailed { upstream, why });
        let again = async move {
            let (mut wait, most) = TRY_AGAIN;
            loop {
                tokio::time::sleep(wait).await;
                if serve().await.is_ok() {
                    return;
                }
                wait = most.min(wait * 2);
            }
        };
        *opening = Some(tokio::spawn(again).abort_handle());
    }
}

fn brings_a_key(own: &Env, env: &BTreeMap<String, String>) -> bool {
    env.iter().any(|(name, value)| {
        let plain = name.strip_suffix("_FILE").unwrap_or(name);
        SECRETS.contains(&plain) && !value.is_empty() && own.get(name) != Some(value)
    })
}
