//! All that is known of OpenClaw, formerly Moltbot, formerly Clawdbot: its configuration, its environment, its locks,
//! its protocol, and what its failures mean. Everything else takes it for a service like any other.
//!
//! * `places`: where all of it is; [`settings`]: what the environment asks of it; [`patch`]: that, written into its configuration (pure).
//! * [`prepare`]: what has to be right before it starts; [`environment`]: what it finds in its environment.
//! * `failure`: what its end means (pure); `choice`: which configuration to start with then (pure); `record`: those
//!   that have worked and those that have not.
//! * `care`: all that, in the supervisor's terms.
//! * [`rpc`]: its WebSocket protocol; `cli`: its command line, for what nothing else can do.

mod care;
mod choice;
mod cli;
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
pub mod version;

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use crate::{
    config::{Config, Problems, env::Env, service::Restart},
    event::{Event, Events},
    pid1::Spawner,
    supervise::Verdict,
};

use self::{
    cli::Cli,
    environment::ChildEnv,
    failure::{Fault, fault},
    places::Places,
    prepare::{Failed, PrepareError, Prepared},
    record::{Digest, Record},
    rpc::{Rpc, RpcError},
    settings::GatewaySettings,
    version::{Generation, Version},
};

/// So many failed starts in a row with a configuration that has not worked before are the configuration's fault, even
/// if the gateway does not say so.
const SUSPICIOUS_FAILURES: u32 = 3;
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
    places: Places,
    spawner: Spawner,
    events: Events,
    present: Mutex<Present>,
}

/// What changes while the supervisor runs.
struct Present {
    env: Env,
    settings: GatewaySettings,
    record: Record,
    prepared: Option<Prepared>,
    /// Of the gateway that is ready.
    pid: Option<i32>,
    trouble: Trouble,
}

/// What has gone wrong since the gateway was last ready.
#[derive(Default)]
struct Trouble {
    failures: u32,
    doctor_was_here: bool,
    /// The configuration that failed first.
    failed: Option<Failed>,
}

/// Where an agent works whose own configuration is `text`; `None` is one that has not been configured yet. For a
/// configuration that is not in its place.
pub fn workspace_in(config: &Config, text: Option<&[u8]>) -> PathBuf {
    Places::of(config).workspace_in(text)
}

/// Where the agent works, as far as can be said without a gateway: what is set, what the gateway's configuration has, the
/// default.
pub fn workspace(config: &Config) -> PathBuf {
    let places = Places::of(config);
    match &config.workspace {
        Some(path) if config.env.get("MOLTINIT_WORKSPACE").is_some() || !places.names_workspace() => path.clone(),
        _ => places.workspace(),
    }
}

impl Gateway {
    /// Every problem of the gateway's settings at once.
    ///
    /// # Errors
    /// The problems.
    pub fn check(config: &Config) -> Result<(), Problems> {
        GatewaySettings::from_env(&config.env, config).map(drop)
    }

    /// A keeper for the configuration's service `gateway`. Touches nothing yet.
    ///
    /// # Errors
    /// Every problem of the gateway's settings at once.
    pub fn new(config: &Config, spawner: Spawner, events: Events) -> Result<Gateway, Problems> {
        let settings = GatewaySettings::from_env(&config.env, config)?;
        let service = config.services.iter().find(|service| service.name == "gateway");
        Ok(Gateway {
            command: service.map(|service| service.command.clone()).unwrap_or_default(),
            restart: service.map_or(Restart::Always, |service| service.restart),
            may_be_told: config.services.iter().any(|service| service.name == SANDBOX),
            places: Places::of(config),
            spawner,
            events,
            present: Mutex::new(Present {
                env: config.env.clone(),
                settings,
                record: Record::open(&record_dir(config)),
                prepared: None,
                pid: None,
                trouble: Trouble::default(),
            }),
        })
    }

    /// Takes over another configuration, for the next start. True if a gateway that is up does not know it all.
    ///
    /// # Errors
    /// Every problem of the new settings at once; the present ones stay.
    pub fn reconfigure(&self, config: &Config) -> Result<bool, Problems> {
        let settings = GatewaySettings::from_env(&config.env, config)?;
        let before = (self.environment(), self.present().settings.clone());
        {
            let mut present = self.present();
            (present.env, present.settings) = (config.env.clone(), settings.clone());
        }
        Ok(before != (self.environment(), settings))
    }

    /// Whether there is nothing yet to start it with, and somebody who may bring it.
    fn waits_to_be_told(&self) -> bool {
        let settings = &self.present().settings;
        self.may_be_told && settings.token.is_none() && settings.route.is_none()
    }

    /// Where the agent works, as its configuration has it now.
    pub fn workspace(&self) -> PathBuf {
        self.places.workspace()
    }

    /// Makes the state ready for a start. Reads and writes local files only, and takes milliseconds.
    ///
    /// # Errors
    /// Something stands in the way that only a person can judge; nothing was overwritten.
    pub fn prepare(&self) -> Result<Prepared, PrepareError> {
        let mut present = self.present();
        let path = present.env.get("PATH").unwrap_or_default();
        let prepared = prepare::prepare(
            &self.places,
            &present.settings,
            &self.command,
            path,
            &present.record,
            present.trouble.failed.as_ref(),
        )?;
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
            present.trouble.failed = None;
        }
        present.prepared = Some(prepared.clone());
        Ok(prepared)
    }

    /// Ends gateways that nobody looks after. Only before a start, when there is none of ours.
    ///
    /// # Errors
    /// One that does not go.
    async fn end_orphans(&self) -> Result<(), String> {
        orphans::end(&self.places.state_dir).await
    }

    /// What its process needs in its environment.
    pub fn environment(&self) -> ChildEnv {
        let present = self.present();
        environment::child_env(&present.env, &present.settings, &self.places)
    }

    /// A client of it, with the token of the last [`prepare`](Self::prepare).
    pub fn rpc(&self) -> Rpc {
        let present = self.present();
        let prepared = present.prepared.as_ref().and_then(|prepared| prepared.token.clone());
        Rpc::new(
            present.settings.port,
            prepared.or_else(|| present.settings.token.clone()),
        )
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
    pub async fn health(&self) -> Result<(), RpcError> {
        self.rpc().health(HEALTH).await
    }

    /// It has become ready: its configuration is one that works.
    fn works(&self) {
        let mut present = self.present();
        present.trouble = Trouble::default();
        present.pid = processes::gateways_on(&self.places.state_dir)
            .first()
            .map(|pid| pid.as_raw());
        match document::read(&self.places.config) {
            Ok(Some(document)) => {
                if let Err(error) = present.record.keep_good(&document.text) {
                    warn!("cannot keep the configuration that works: {error}");
                }
            }
            Ok(None) => {}
            Err(error) => warn!("the gateway works, but its configuration cannot be kept: {error}"),
        }
    }

    /// It has ended, unasked. A configuration that it refuses is given to its doctor once; after that the next
    /// [`prepare`](Self::prepare) takes another.
    async fn ended(&self, status: i32, was_ready: bool, tail: &[String]) -> Verdict {
        let pid = self.present().pid.take();
        match fault(status, tail) {
            Fault::Configuration { reason, named } => self.configuration_failed(reason, named).await,
            Fault::SecondInstance => Verdict::Restart,
            Fault::Hopeless(reason) => Verdict::Hold(reason),
            Fault::Other(_) if was_ready && status == 0 => self.wanted_restart(pid).await,
            Fault::Other(_) if was_ready => Verdict::Restart,
            Fault::Other(reason) => {
                let failures = {
                    let mut present = self.present();
                    present.trouble.failures += 1;
                    present.trouble.failures
                };
                if failures >= SUSPICIOUS_FAILURES && self.has_changed_since_it_worked() {
                    self.configuration_failed(reason, false).await
                } else {
                    Verdict::Restart
                }
            }
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

    /// Whether there is a configuration that worked, and the present one is another.
    fn has_changed_since_it_worked(&self) -> bool {
        let version = self.version();
        let Some(good) = self.present().record.good() else {
            return false;
        };
        let now = document::read(&self.places.config).ok().flatten();
        now.is_some_and(|now| Digest::of(&now.value, version) != Digest::of(&good, version))
    }

    async fn configuration_failed(&self, reason: String, certain: bool) -> Verdict {
        let version = self.version();
        let on_disk = document::read(&self.places.config).ok().flatten();
        let doctor_was_here = {
            let mut present = self.present();
            let chosen = present.prepared.as_ref().map(|prepared| prepared.digest.clone());
            let found = on_disk.as_ref().map(|document| Digest::of(&document.value, version));
            for digest in chosen.into_iter().chain(found) {
                present.record.refuse(digest, certain);
            }
            if let Some(document) = on_disk {
                present.trouble.failed.get_or_insert(Failed {
                    text: document.text,
                    reason,
                });
            }
            std::mem::replace(&mut present.trouble.doctor_was_here, true)
        };
        if !doctor_was_here && let Some(cli) = self.cli() {
            cli.doctor().await;
        }
        Verdict::Restart
    }

    /// `None` for a command that is no installed gateway.
    fn cli(&self) -> Option<Cli> {
        self.version()?;
        let env = self.environment().over(&self.present().env);
        Cli::of(&self.command, env, self.spawner.clone())
    }

    /// The installed one's, once a start has been prepared.
    pub fn version(&self) -> Option<Version> {
        self.present().prepared.as_ref()?.version
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record_dir(config: &Config) -> PathBuf {
    config.data_dir.join("gateway")
}
