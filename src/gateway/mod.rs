//! All that is known of OpenClaw, formerly Moltbot, formerly Clawdbot: its configuration, its environment, its locks,
//! its protocol, and what its failures mean. Everything else takes it for a service like any other.
//!
//! * [`settings`]: what the environment asks of it; [`patch`]: that, written into its configuration (pure).
//! * [`prepare`]: what has to be right before it starts; [`environment`]: what it finds in its environment.
//! * [`rpc`]: its WebSocket protocol.

pub mod document;
pub mod environment;
mod locks;
mod migrate;
pub mod patch;
pub mod prepare;
mod processes;
pub mod rpc;
pub mod settings;
pub mod version;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    config::{Config, Problems, env::Env},
    event::Events,
    pid1::Spawner,
};

use self::{
    environment::ChildEnv,
    prepare::{Places, PrepareError, Prepared},
    rpc::Rpc,
    settings::GatewaySettings,
};

/// The gateway's keeper.
pub struct Gateway {
    config: Config,
    command: Vec<String>,
    places: Places,
    #[expect(dead_code, reason = "for the gateway's own commands, when a configuration fails")]
    spawner: Spawner,
    #[expect(dead_code, reason = "for the account of a configuration that was rolled back")]
    events: Events,
    present: Mutex<Present>,
}

/// What may change while the supervisor runs.
struct Present {
    env: Env,
    settings: GatewaySettings,
    prepared: Option<Prepared>,
}

impl Gateway {
    /// Every problem of the gateway's settings at once.
    ///
    /// # Errors
    /// The problems.
    pub fn check(config: &Config) -> Result<(), Problems> {
        GatewaySettings::from_env(&config.env, config).map(drop)
    }

    /// Where the agent works, as its configuration has it now.
    pub fn workspace(&self) -> std::path::PathBuf {
        self.places.workspace()
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
            places: Places::new(&config.env, &config.state_dir),
            spawner,
            events,
            present: Mutex::new(Present {
                env: config.env.clone(),
                settings,
                prepared: None,
            }),
            config: config.clone(),
        })
    }

    /// Takes over an environment that was handed over, for the next start. True if that changes anything.
    ///
    /// # Errors
    /// Every problem of the new settings at once; the present ones stay.
    pub fn use_environment(&self, env: Env) -> Result<bool, Problems> {
        let settings = GatewaySettings::from_env(&env, &self.config)?;
        let mut present = self.present();
        let changed = present.settings != settings;
        (present.env, present.settings) = (env, settings);
        Ok(changed)
    }

    /// Makes the state ready for a start. Reads and writes local files only, and takes milliseconds.
    ///
    /// # Errors
    /// Something stands in the way that only a person can judge; nothing was overwritten.
    pub fn prepare(&self) -> Result<Prepared, PrepareError> {
        let (settings, path) = {
            let present = self.present();
            (
                present.settings.clone(),
                present.env.get("PATH").unwrap_or_default().to_owned(),
            )
        };
        let prepared = prepare::prepare(&self.places, &settings, &self.command, &path)?;
        self.present().prepared = Some(prepared.clone());
        Ok(prepared)
    }

    /// What its process needs in its environment.
    pub fn environment(&self) -> ChildEnv {
        let present = self.present();
        environment::child_env(
            &present.env,
            &present.settings,
            &self.places.state_dir,
            &self.places.home,
        )
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

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
