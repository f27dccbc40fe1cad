//! `moltinit config`: what the configuration is, or every problem with it.

use std::path::Path;

use clap::Subcommand;

use super::{failure::Failure, show};
use crate::boot::Checked;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Say every problem at once, or that there is none
    Check,
    /// Show what it comes to, as a file would say it; secrets are masked
    Show,
}

impl Config {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let config = crate::config::Config::from_process(file)?;
        match self {
            Config::Check => {
                let warnings = config.warnings.clone();
                Checked::of(config)?;
                for warning in warnings {
                    show::remark(&format!("warning: {warning}"));
                }
                show::line(format_args!("the configuration is sound"))?;
            }
            Config::Show => show::text(&config.mask.apply(&config.written().to_string()))?,
        }
        Ok(())
    }
}
