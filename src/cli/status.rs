//! `moltinit status`: what is up, since when, why not.

use std::{io::IsTerminal, path::Path};

use clap::Args;

use super::{failure::Failure, show, talk::talk};
use crate::report::{status, table};

#[derive(Debug, Args)]
pub struct Status {
    /// The whole status document; its names are in docs/status.md
    #[arg(long)]
    json: bool,
}

impl Status {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let status: status::Status = talk(file, async |client| Ok(client.get("/status").await?))?;
        if self.json {
            return Ok(show::json(&status)?);
        }
        Ok(show::text(&table::render(&status, std::io::stdout().is_terminal()))?)
    }
}
