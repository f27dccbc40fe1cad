//! `moltinit config`: what the configuration is, or every problem with it.

use std::path::Path;

use clap::Subcommand;

use super::failure::Failure;
use crate::boot::Checked;

/// The configuration
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Say every problem at once, or that there is none
    Check,
    /// Show what it comes to; secrets are masked
    Show,
}

impl Config {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let config = crate::config::Config::from_process(file)?;
        match self {
            Config::Check => {
                Checked::of(config)?;
                println!("the configuration is sound");
            }
            Config::Show => println!("{}", config.mask.apply(&format!("{config:#?}"))),
        }
        Ok(())
    }
}
