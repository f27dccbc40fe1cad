//! The history that a command works on: the store of the configuration, or the one it was told.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::failure::Failure;
use crate::{
    boot::store,
    config::Config,
    state::{history::History, model::CommitId},
};

/// Where to look. These commands need no running supervisor.
#[derive(Debug, Args)]
pub struct Where {
    /// The directory that holds the snapshots [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Which agent's, where one store holds several [default: the configuration's]
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
}

impl Where {
    /// Opens the history; nothing is written or made.
    pub fn open(self, file: Option<&Path>) -> Result<History, Failure> {
        Ok(store::open_existing(&self.config(file)?.store)?)
    }

    /// The configuration, with what was said here in it.
    pub fn config(self, file: Option<&Path>) -> Result<Config, Failure> {
        let mut all = Config::from_process(file)?;
        let config = &mut all.store;
        if let Some(dir) = self.store {
            config.dir = std::path::absolute(dir)?;
            config.must_be_mount = false;
        }
        if let Some(instance) = self.instance {
            config.instance = instance;
        }
        Ok(all)
    }
}

/// Which commit.
#[derive(Debug, Args)]
pub struct Which {
    /// Its id, from `moltinit snapshot list`, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    id: String,
    /// The newest that was made at this time or before, e.g. 2026-11-23T09:30:00Z; without a zone, local time
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "id")]
    at: Option<Timestamp>,
}

impl Which {
    pub fn find(&self, history: &History) -> Result<CommitId, Failure> {
        match self.at {
            Some(time) => history.at(time)?.ok_or_else(|| {
                anyhow!("there is no snapshot from {time} or before; see `moltinit snapshot list`").into()
            }),
            None => find(history, &self.id),
        }
    }
}

/// The commit of that id, or the newest for `latest`.
pub fn find(history: &History, id: &str) -> Result<CommitId, Failure> {
    if id != "latest" {
        return id.parse().map_err(|error| Failure::new(2, anyhow::Error::new(error)));
    }
    // The newest that can be read: one being written, or cut off, is passed over.
    for id in history.restorable()? {
        match history.info(id) {
            Ok(_) => return Ok(id),
            Err(error) if error.damage().is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(anyhow!("there is no snapshot in {}", history.store().root().display()).into())
}

fn time(text: &str) -> Result<Timestamp, String> {
    let local = || TimeZone::system().to_timestamp(text.parse::<DateTime>().ok()?).ok();
    text.parse()
        .ok()
        .or_else(local)
        .ok_or_else(|| format!("`{text}` is not a time; write it like 2026-11-23T09:30:00Z"))
}
