//! `moltinit run`: the whole boot and supervision.

use std::path::Path;

use clap::Args;

use super::failure::{CONFIG, Failure};
use crate::{
    boot::{self, BootError, Checked, Early},
    config::Config,
};

#[derive(Debug, Default, Args)]
pub struct Run {
    /// Replaces the gateway's command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Run {
    pub fn run(self, file: Option<&Path>) -> Result<i32, Failure> {
        let early = Early::stops().map_err(|error| Failure::new(1, error))?;
        let mut config = Config::from_process(file)?;
        if !self.command.is_empty()
            && let Some(gateway) = config.services.iter_mut().find(|service| service.name == "gateway")
        {
            gateway.command = self.command;
        }
        boot::run(Checked::of(config)?, &early).map_err(|error| match error {
            BootError::Config(problems) => Failure::new(CONFIG, problems),
            other => Failure::new(1, other),
        })
    }
}
