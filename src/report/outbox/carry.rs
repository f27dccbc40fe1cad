//! What is undelivered, carried over to the container that takes over: a copy of it in the data directory, which
//! is a root of every snapshot.
//!
//! The log itself is not there. Every delivery writes to it, and every commit is itself an event: each commit would
//! call for the next, for ever. The copy is written only when it is worth a commit, and by renaming, so a snapshot
//! or a live restore meets no database in use.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{OutboxError, table::Table};
use crate::report::cost::Costs;

/// An event that is delivered this soon is not worth a commit.
const SETTLE: Duration = Duration::from_secs(2);
/// How long until a failed copy is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// So many store operations more are worth having the month's account carried over.
const OPERATIONS: u64 = 100;

/// What a copy has, as far as it decides about the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Worth {
    /// The newest owed event that matters.
    newest: Option<(String, u64)>,
    operations: u64,
}

impl Worth {
    fn of(table: &Table) -> rusqlite::Result<Worth> {
        Ok(Worth {
            newest: table.newest_worth_carrying()?,
            operations: table.costs()?.map_or(0, |costs| costs.write_operations),
        })
    }

    /// A copy like `self` should be replaced by one like `now`.
    fn outdated_by(&self, now: &Worth) -> bool {
        // A new month begins at zero.
        self.newest != now.newest || now.operations.abs_diff(self.operations) >= OPERATIONS
    }
}

/// Keeps the copy.
pub struct Carrier {
    file: PathBuf,
    /// `None`: what the copy that came with the state has was not looked at.
    copied: Option<Worth>,
    /// When the next copy is to be made, if it is still worth it then.
    due: Option<Instant>,
}

impl Carrier {
    /// For a copy at `file`.
    pub fn new(file: &Path) -> Carrier {
        Carrier {
            file: file.to_owned(),
            copied: (!file.exists()).then(Worth::default),
            due: None,
        }
    }

    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// Copies if it is time to.
    pub fn keep_up(&mut self, table: &Table, now: Instant) -> Result<(), OutboxError> {
        let worth = Worth::of(table)?;
        if self.copied.as_ref().is_some_and(|copied| !copied.outdated_by(&worth)) {
            self.due = None;
            return Ok(());
        }
        if now < *self.due.get_or_insert(now + SETTLE) {
            return Ok(());
        }
        self.due = Some(now + RETRY);
        self.copy(table)
    }

    /// Copies now, if there is anything in it or a copy to be replaced.
    pub fn carry(&mut self, table: &Table) -> Result<(), OutboxError> {
        if !table.owes()? && self.copied.as_ref() == Some(&Worth::of(table)?) {
            return Ok(());
        }
        self.copy(table)
    }

    fn copy(&mut self, table: &Table) -> Result<(), OutboxError> {
        let worth = Worth::of(table)?;
        let new = self.file.with_extension("sqlite.tmp");
        let failed = |source| OutboxError::Carry {
            path: self.file.clone(),
            source,
        };
        if let Some(dir) = self.file.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        table.copy_owed(&new)?;
        File::open(&new)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&new, &self.file))
            .map_err(failed)?;
        self.copied = Some(worth);
        self.due = None;
        Ok(())
    }
}

/// Takes over the copy at `file`, if there is one. A damaged one is set aside: events are worth less than a boot.
pub fn absorb(table: &mut Table, file: &Path) -> Result<Option<Costs>, OutboxError> {
    if !file.exists() {
        return Ok(None);
    }
    match table.absorb(file) {
        Ok(costs) => Ok(costs),
        Err(error) => {
            let aside = file.with_extension("sqlite.damaged");
            tracing::error!(
                %error, outbox = %file.display(), kept = %aside.display(),
                "the outbox that came with the state is damaged; it is moved aside"
            );
            let _ = fs::rename(file, aside);
            Ok(None)
        }
    }
}
