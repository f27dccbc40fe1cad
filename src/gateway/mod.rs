//! All that is known of OpenClaw, formerly Moltbot, formerly Clawdbot: its configuration, its environment, its locks,
//! its protocol, and what its failures mean. Everything else takes it for a service like any other.
//!
//! * `places`: where all of it is; [`settings`]: what the environment asks of it; [`patch`]: that, written into its configuration (pure).
//! * [`prepare`]: what has to be right before it starts; [`environment`]: what it finds in its environment.
//! * `failure`: what its end means (pure); `trial`: what that says of its configuration; `choice`: which one to start
//!   with then (pure); `record`: those that have worked and those that have not.
//! * `care`: all that, in the supervisor's terms; `ahead`: what a start reads, read ahead of it.
//! * [`rpc`]: its WebSocket protocol; `cli`: its command line, for what nothing else can do; `devices`: pairing, by
//!   either.

mod ahead;
mod care;
mod choice;
mod cli;
mod devices;
pub mod document;
pub mod environment;
mod failure;
mod lease;
mod locks;
mod migrate;
mod orphans;
pub mod patch;
mod places;
pub mod prepare;
mod processes;
mod record;
pub mod rpc;
pub mod settings;
#[cfg(test)]
mod tests;
mod trial;
pub mod version;
pub mod workspace;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::{
    config::{Config, Problems, env::Env, secret::Mask, service::Restart},
    event::{Event, Events},
    pid1::Spawner,
    supervise::Verdict,
};

use self::{
    cli::Cli,
    environment::ChildEnv,
    failure::fault,
    places::Places,
    prepare::{PrepareError, Prepared},
    record::Record,
    rpc::{Rpc, RpcError},
    settings::GatewaySettings,
    trial::{Finding, Patience, Trial},
    version::{Generation, Version},
};

/// For the answer to a question about its health.
const HEALTH: Duration = Duration::from_secs(10);

/// The Sandbox SDK's server.
const SANDBOX: &str = "sandbox";

/// The gateway's keeper.
pub struct Gateway {
    command: Vec<String>,
    restart: Restart,
    /// Its secrets may come by `moltinit attach`: the platform's server is here, through which a Worker gives them.
    may_be_told: bool,
    places: Arc<Places>,
    spawner: Spawner,
    events: Events,
    mask: Mask,
    /// Puts what is ours into the agent's workspace.
    furnish: fn(&Path),
    patience: Patience,
    /// Reads and writes files, so only threads that may block take it.
    trial: Arc<Mutex<Trial>>,
    present: Mutex<Present>,
}

/// What changes while the supervisor runs. Never locked for longer than it takes to copy.
struct Present {
    env: Env,
    settings: GatewaySettings,
    prepared: Option<Prepared>,
    /// Of the gateway that is ready.
    pid: Option<i32>,
}

impl Gateway {
    /// Every problem of the gateway's settings at once.
    ///
    /// # Errors
    /// The problems.
    pub fn check(config: &Config) -> Result<(), Problems> {
        GatewaySettings::from_env(&config.env, config).map(drop)
    }

    /// A keeper for the configuration's service `gateway`. Touches nothing yet. `furnish` puts what is ours into the
    /// agent's workspace, before each start and once the gateway is ready.
    ///
    /// # Errors
    /// Every problem of the gateway's settings at once.
    pub fn new(config: &Config, spawner: Spawner, events: Events, furnish: fn(&Path)) -> Result<Gateway, Problems> {
        let settings = GatewaySettings::from_env(&config.env, config)?;
        let service = config.services.iter().find(|service| service.name == "gateway");
        let ready = service.and_then(|service| service.ready.as_ref());
        let patience = Patience {
            ready: ready.map_or(Duration::ZERO, |probe| probe.timeout),
            settled: service.map_or(Duration::ZERO, |service| service.backoff.reset_after),
        };
        Ok(Gateway {
            command: service.map(|service| service.command.clone()).unwrap_or_default(),
            restart: service.map_or(Restart::Always, |service| service.restart),
            may_be_told: config.services.iter().any(|service| service.name == SANDBOX),
            places: Arc::new(Places::of(config)),
            spawner,
            events,
            mask: config.mask.clone(),
            furnish,
            patience,
            trial: Arc::new(Mutex::new(Trial::new(
                Record::open(&config.data_dir.join("gateway")),
                patience,
            ))),
            present: Mutex::new(Present {
                env: config.env.clone(),
                settings,
                prepared: None,
                pid: None,
            }),
        })
    }

    /// Takes over another configuration, for the next start. True if a gateway that is up does not know it all.
    ///
    /// # Errors
    /// Every problem of the new settings at once; the present ones stay.
    pub fn reconfigure(&self, config: &Config) -> Result<bool, Problems> {
        let settings = GatewaySettings::from_env(&config.env, config)?;
        let mut present = self.present();
        let known = |present: &Present| {
            let env = environment::child_env(&present.env, &present.settings, &self.places);
            (env, environment::keys(&present.env), present.settings.clone())
        };
        let before = known(&present);
        (present.env, present.settings) = (config.env.clone(), settings);
        Ok(before != known(&present))
    }

    /// Has what its start reads read ahead of it, in the background.
    pub fn read_ahead(&self) {
        let compiled = environment::compile_cache(&self.present().env, &self.places);
        // Off the runtime: somebody may have the cache on the mount.
        drop(spawn_blocking(move || ahead::read(&compiled)));
    }

    /// Whether there is nothing yet to start it with, and somebody who may bring it.
    pub fn waits_to_be_told(&self) -> bool {
        let settings = &self.present().settings;
        self.may_be_told && settings.token.is_none() && settings.route.is_none()
    }

    /// Moves state that an older name of the gateway has left to where it is looked for today: the configuration may be
    /// in it, and with it the place of the workspace.
    pub async fn settle(&self) {
        let places = Arc::clone(&self.places);
        // What cannot be moved keeps the gateway from starting, and that says why.
        blocking(move || drop(prepare::move_older_state(&places))).await;
    }

    /// Makes the state ready for a start.
    async fn prepare(&self) -> Result<Prepared, PrepareError> {
        let (settings, env) = {
            let present = self.present();
            (present.settings.clone(), present.env.clone())
        };
        let (places, command) = (Arc::clone(&self.places), self.command.clone());
        let prepare = move |trial: &mut Trial| {
            let failed = trial.failed().cloned();
            let prepared = prepare::prepare(&places, &settings, &command, &env, &trial.record, failed)?;
            let rolled_back = prepared.rolled_back.is_some();
            trial.begin(prepared.digest.clone(), prepared.version, rolled_back, Instant::now());
            Ok::<_, PrepareError>(prepared)
        };
        let prepared = self.on_trial(prepare).await?;
        self.mask.add(prepared.credentials.secrets());
        if let Some(back) = &prepared.rolled_back {
            warn!(
                "the gateway's configuration was rolled back: {}; it is kept in {}",
                back.reason,
                back.kept.display()
            );
            self.events.emit(Event::GatewayConfigRolledBack {
                reason: back.reason.clone(),
                kept: back.kept.display().to_string(),
            });
        }
        self.present().prepared = Some(prepared.clone());
        Ok(prepared)
    }

    /// What its process needs in its environment.
    pub fn environment(&self) -> ChildEnv {
        let present = self.present();
        environment::child_env(&present.env, &present.settings, &self.places)
    }

    /// A client of it, as the last start has it.
    fn rpc(&self) -> Rpc {
        let present = self.present();
        let prepared = present.prepared.as_ref();
        let credentials = prepared.map(|prepared| prepared.credentials.clone());
        Rpc::new(present.settings.port, credentials.unwrap_or_default())
    }

    /// Whether its health can be asked for by its WebSocket only: any path of the early generation's HTTP answers 200.
    fn needs_rpc_for_health(&self) -> bool {
        let present = self.present();
        present
            .prepared
            .as_ref()
            .is_some_and(|prepared| prepared.generation == Generation::Early)
    }

    /// # Errors
    /// It does not answer, or says that it is not well.
    async fn health(&self) -> Result<(), RpcError> {
        self.rpc().health(HEALTH).await
    }

    /// It has become ready. Gives the number of that run.
    async fn ready(&self) -> u64 {
        let places = Arc::clone(&self.places);
        let ready = move |trial: &mut Trial| {
            let on_disk = document::read(&places.config).ok().flatten();
            let pid = processes::gateways_on(&places.state_dir)
                .first()
                .map(|pid| pid.as_raw());
            (trial.ready(on_disk, Instant::now()), pid)
        };
        let (run, pid) = self.on_trial(ready).await;
        self.present().pid = pid;
        run
    }

    /// That run has been ready for a while.
    async fn settled(&self, run: u64) {
        self.on_trial(move |trial| trial.settle(run)).await;
    }

    /// It has ended, unasked. A configuration that it refuses is given to its doctor once; after that the next
    /// [`prepare`](Self::prepare) takes another.
    async fn ended(&self, status: i32, was_ready: bool, tail: &[String]) -> Verdict {
        let pid = self.present().pid.take();
        let (fault, places) = (fault(status, tail), Arc::clone(&self.places));
        let judge = move |trial: &mut Trial| {
            let on_disk = || document::read(&places.config).ok().flatten();
            trial.ended(fault, was_ready, on_disk, Instant::now())
        };
        match self.on_trial(judge).await {
            (Finding::Hopeless(reason), _) => Verdict::Hold(reason),
            (Finding::Nothing, _) if was_ready && status == 0 => self.wanted_restart(pid).await,
            (_, true) => {
                if let Some(cli) = self.cli() {
                    cli.doctor().await;
                }
                Verdict::Restart
            }
            _ => Verdict::Restart,
        }
    }

    /// A clean exit is a request for a restart, a watchdog's doing or somebody's `kill`. A service that is always
    /// restarted need not know which, and asking takes longer than the request is valid on a small machine.
    async fn wanted_restart(&self, pid: Option<i32>) -> Verdict {
        if self.restart == Restart::Always {
            return Verdict::RestartNow;
        }
        match (self.cli(), pid) {
            (Some(cli), Some(pid)) if cli.consume_handoff(pid).await => {
                info!("the gateway wants to be started again");
                Verdict::RestartNow
            }
            _ => Verdict::Restart,
        }
    }

    /// `None` for a command that is no installed gateway.
    fn cli(&self) -> Option<Cli> {
        self.version()?;
        let env = self.environment().over(&self.present().env);
        Cli::of(&self.command, env, self.spawner.clone())
    }

    /// The agent's, once a start has been prepared.
    fn workspace(&self) -> Option<PathBuf> {
        Some(self.present().prepared.as_ref()?.workspace.clone())
    }

    /// The installed one's, once a start has been prepared.
    pub fn version(&self) -> Option<Version> {
        self.present().prepared.as_ref()?.version
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn on_trial<T: Send + 'static>(&self, work: impl FnOnce(&mut Trial) -> T + Send + 'static) -> T {
        let trial = Arc::clone(&self.trial);
        blocking(move || work(&mut trial.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

/// Does what reads or writes files, on a thread that may wait for them.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work)
        .await
        .map_err(tokio::task::JoinError::try_into_panic)
    {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is ending, and takes us with it.
        Err(Err(_)) => std::future::pending().await,
    }
}
