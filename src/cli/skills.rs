//! `moltinit skills`: what moltinit brings to the agent's workspace.

use std::path::Path;

use clap::Subcommand;

use super::{failure::Failure, show};
use crate::{
    browser::skill::{self, Outcome},
    config::Config,
    gateway::workspace::Whereabouts,
};

#[derive(Debug, Subcommand)]
pub enum Skills {
    /// Put the browser skill into the workspace, unless somebody has changed the one that is there
    Install,
}

impl Skills {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let Skills::Install = self;
        let workspace = Whereabouts::of(&Config::from_process(file)?).now();
        let outcome = skill::install(&workspace).map_err(anyhow::Error::from)?;
        let directory = skill::directory(&workspace);
        let directory = directory.display();
        match outcome {
            Outcome::Installed => show::line(format_args!("installed {directory}"))?,
            Outcome::UpToDate => show::line(format_args!("{directory} is up to date"))?,
            Outcome::Kept(path) => show::line(format_args!(
                "kept {directory} as it is: {path} has been changed; move the directory away to have it installed anew"
            ))?,
        }
        Ok(())
    }
}
