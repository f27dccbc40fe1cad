//! The history that a command works on: the store of the configuration, or the one it was told.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use jiff::{Timestamp, ZonedDateTime, civil::DateTime, tz::TimeZone};

use super::{failure::Failure, show};
use crate::{
    boot::store,
    config::Config,
    state::{
        history::History,
        model::CommitId,
        restore::RestoreError,
        segment::{Damage, reader::ReadError},
    },
};

// Not a docstring, which would be shown as what the command does:
// Where to look. These commands need no running supervisor.
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

/// Stands for the newest commit.
const LATEST: &str = "latest";

// Which commit; as above.
#[derive(Debug, Args)]
pub struct Which {
    /// Its id, from `moltinit snapshot list`, or `latest`
    #[arg(value_name = "ID", default_value = LATEST)]
    id: String,
    /// The newest that was made at this time or before, e.g. 2026-11-23T09:30:00Z; without a zone, local time
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "id")]
    at: Option<Timestamp>,
}

/// A commit, and what was made of it.
pub struct Chosen<T> {
    pub id: CommitId,
    pub made: T,
    /// Newer ones that could not be used.
    pub passed: Vec<Passed>,
}

pub struct Passed {
    pub why: String,
    /// It was never finished.
    pub torn: bool,
}

impl Which {
    /// The commit of that id, or the newest for `latest`.
    pub fn named(id: &str) -> Which {
        Which {
            id: id.to_owned(),
            at: None,
        }
    }

    pub fn find(&self, history: &History) -> Result<CommitId, Failure> {
        Ok(self.readable(history)?.id)
    }

    /// As [`Which::first`], of which only the description is looked at.
    pub fn readable(&self, history: &History) -> Result<Chosen<()>, Failure> {
        self.first(history, |id| Ok(history.info(id).map(drop)?))
    }

    /// The commit of that id; or else the newest that fits and is not damaged, as far as `make` looks at it, and it is
    /// said which are passed over. What retention has left of some for others is none.
    pub fn first<T>(
        &self,
        history: &History,
        make: impl Fn(CommitId) -> Result<T, RestoreError>,
    ) -> Result<Chosen<T>, Failure> {
        let mut passed: Vec<Passed> = Vec::new();
        if self.at.is_none() && self.id != LATEST {
            let id: CommitId = self
                .id
                .parse()
                .map_err(|error| Failure::new(2, anyhow::Error::new(error)))?;
            if !history.commits(id.generation)?.contains(&id) {
                return Err(anyhow!("there is no snapshot {id}; see `moltinit snapshot list`").into());
            }
            let made = make(id)?;
            return Ok(Chosen { id, made, passed });
        }
        let all = history.restorable()?;
        let fitting = match self.at {
            Some(at) => history.until(&all, at)?,
            None => &all,
        };
        let mut remnants = None;
        for id in fitting.iter().copied() {
            // Most often what it needs is there, and no other need be looked at.
            if self.at.is_some() && lacks(history, id, &all)? {
                if remnants.is_none() {
                    remnants = Some(history.remnants()?);
                }
                if remnants.as_ref().is_some_and(|remnants| remnants.contains(&id)) {
                    continue;
                }
            }
            match make(id) {
                Ok(made) => {
                    passed.iter().for_each(|passed| show::remark(&passed.why));
                    return Ok(Chosen { id, made, passed });
                }
                Err(RestoreError::Read(error @ ReadError::Damaged { .. })) => {
                    let torn = error.damage() == Some(&Damage::Torn);
                    let why = format!("{id} is passed over: {error}");
                    passed.push(Passed { why, torn });
                }
                Err(error) => return Err(error.into()),
            }
        }
        passed.iter().for_each(|passed| show::remark(&passed.why));
        Err(match self.at {
            Some(time) => anyhow!("there is no snapshot from {time} or before; see `moltinit snapshot list`"),
            None => anyhow!("there is no snapshot in {}", history.store().root().display()),
        }
        .into())
    }
}

/// Whether something that a commit needs is not among `there`.
fn lacks(history: &History, id: CommitId, there: &[CommitId]) -> Result<bool, ReadError> {
    match history.info(id) {
        Ok((info, _)) => Ok(info.needs().any(|need| !there.contains(&need))),
        Err(ReadError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    let zoned = || Some(text.parse::<ZonedDateTime>().ok()?.timestamp());
    // A zone in brackets that is not known is no local time.
    let local = || {
        let time = text.parse::<DateTime>().ok().filter(|_| !text.contains('['))?;
        TimeZone::system().to_timestamp(time).ok()
    };
    text.parse()
        .ok()
        .or_else(zoned)
        .or_else(local)
        .ok_or_else(|| format!("`{text}` is not a time; write it like 2026-11-23T09:30:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_its_own_zone_or_in_this_machines() {
        let at = |text: &str| time(text).map(|time| time.to_string());
        let nine = Ok("2026-11-23T08:30:00Z".to_owned());
        for text in [
            "2026-11-23T08:30:00Z",
            "2026-11-23T09:30+01:00",
            "2026-11-23T09:30[+01:00]",
        ] {
            assert_eq!(at(text), nine, "{text}");
        }
        let local = TimeZone::system().to_timestamp("2026-11-23T09:30:00".parse::<DateTime>().unwrap());
        assert_eq!(at("2026-11-23 09:30"), Ok(local.unwrap().to_string()));
        for text in ["2026-11-23T09:30[No/Where]", "yesterday", ""] {
            assert!(at(text).unwrap_err().contains("is not a time"), "{text}");
        }
    }
}
