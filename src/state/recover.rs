//! Finding the newest commit that is sound, and putting it in place: what a boot does with a store.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    head::Head,
    history::History,
    lineage,
    model::CommitId,
    restore::{Placed, Progress, RestoreError, resume, stage},
    saved::Saved,
    segment::{Damage, reader::ReadError},
};
use crate::store::StoreError;

/// A commit that the mount fails to read is tried again for this long, while other objects can be read, before it is
/// passed over. What a mount has failed to read once it may fail to read for a minute.
const GRACE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 90 });
const PAUSE: Duration = Duration::from_secs(1);

/// A commit that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    pub id: CommitId,
    pub why: String,
}

/// What a boot found.
#[derive(Debug)]
pub enum Recovered {
    /// State is in place.
    Restored {
        head: Box<Head>,
        placed: Placed,
        /// Newer commits that could not be used. Not empty means that the restore is degraded.
        passed: Vec<Passed>,
    },
    /// The listing succeeded and no commit was ever finished here. Nothing was touched.
    Empty { passed: Vec<Passed> },
}

/// Nothing was put in place; state on disk is as it was. None of these is an empty store.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Whether there is a history is not known. Worth trying again.
    #[error("the store cannot be read, so what it holds is not known: {0}")]
    Unknown(StoreError),
    /// It takes another key, or a newer moltinit.
    #[error(transparent)]
    Key(ReadError),
    #[error("none of the {} commits can be restored; the newest: {}", passed.len(), passed.first().map_or("", |p| &p.why))]
    Exhausted { passed: Vec<Passed> },
    #[error(transparent)]
    Local(RestoreError),
}

/// Says where the roots of a commit go. It may depend on what is in the commit, so it is asked about each that is tried,
/// when its tree is known and nothing else of it has been read.
pub type Targets<'a> = &'a dyn Fn(&Head) -> Result<Vec<(String, PathBuf)>, ReadError>;

/// Restores the newest sound commit of the line into its `targets`. Goes back commit by commit where one is damaged,
/// and only then: a store that does not answer, or answers with errors, is no reason to take older state, nor is one that
/// somebody thins meanwhile.
pub fn recover(
    history: &History,
    targets: Targets,
    work: &Path,
    progress: &Progress,
) -> Result<Recovered, RecoverError> {
    loop {
        if let Some(recovered) = follow(history, targets, work, progress)? {
            return Ok(recovered);
        }
        history.refresh().map_err(RecoverError::Unknown)?;
    }
}

/// Goes along the line as it was listed. Nothing if that is out of date: whoever thins the store has removed what is on it,
/// and there is something newer.
fn follow(
    history: &History,
    targets: Targets,
    work: &Path,
    progress: &Progress,
) -> Result<Option<Recovered>, RecoverError> {
    let mut generations = history.generations();
    let mut passed: Vec<Passed> = Vec::new();
    let mut torn_only = true;
    while let Some(tip) = lineage::line(&generations).first().map(|stretch| stretch.generation) {
        let mut tip_committed = false;
        for stretch in lineage::line(&generations) {
            let commits = history.commits(stretch.generation).map_err(RecoverError::Unknown)?;
            for id in commits.into_iter().rev().filter(|id| stretch.contains(*id)) {
                match attempt(history, id, targets, work, progress)? {
                    Attempt::Restored(head, placed) => {
                        return Ok(Some(Recovered::Restored { head, placed, passed }));
                    }
                    Attempt::Gone => return Ok(None),
                    Attempt::Unusable(why, damage) => {
                        let torn = damage == Some(Damage::Torn);
                        torn_only &= torn;
                        tip_committed |= !torn;
                        distrust(work, id);
                        passed.push(Passed { id, why });
                    }
                }
            }
            if stretch.generation == tip && !tip_committed {
                break;
            }
        }
        if tip_committed {
            break;
        }
        // A boot that never finished a commit is not what was restored from last.
        generations.remove(&tip);
    }
    // A commit counts once its object is whole, so where all are torn there never was one.
    if torn_only {
        Ok(Some(Recovered::Empty { passed }))
    } else {
        Err(RecoverError::Exhausted { passed })
    }
}

/// What the disk had in a commit that cannot be used, or in one before that, it may have alone.
fn distrust(work: &Path, passed: CommitId) {
    let saved = Saved::in_dir(work);
    if saved.commit().is_some_and(|id| id <= passed) {
        saved.set(None);
    }
}

/// What came of a commit.
enum Attempt {
    Restored(Box<Head>, Placed),
    /// It was removed since it was listed.
    Gone,
    Unusable(String, Option<Damage>),
}

fn attempt(
    history: &History,
    id: CommitId,
    targets: Targets,
    work: &Path,
    progress: &Progress,
) -> Result<Attempt, RecoverError> {
    let mut failing_since = None;
    loop {
        let result = history.load(id).map_err(RestoreError::Read).and_then(|head| {
            resume(work)?;
            let staged = stage(history, &head, &targets(&head)?, progress)?;
            Ok((head, staged))
        });
        // What a commit needs is removed after it, so as long as it is there the rest was meant to be.
        let is_listed = || history.is_listed(id).map_err(RecoverError::Unknown);
        let error = match result {
            Ok((head, staged)) => {
                let is_listed = is_listed();
                if !matches!(is_listed, Ok(true)) {
                    staged.discard();
                    return is_listed.map(|_| Attempt::Gone);
                }
                match staged.place(work) {
                    Ok((placed, _)) => {
                        Saved::in_dir(work).set(placed.commit);
                        return Ok(Attempt::Restored(Box::new(head), placed));
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        match error {
            RestoreError::Read(ReadError::Damaged { object, damage }) => {
                if damage == Damage::Missing && !is_listed()? {
                    return Ok(Attempt::Gone);
                }
                // Torn is the commit only if its own object is.
                let own = history.object(id).is_some_and(|own| own == object);
                return Ok(Attempt::Unusable(
                    format!("{object}: {damage}"),
                    Some(damage).filter(|_| own),
                ));
            }
            // A bad sector looks like this for good, and so does the network while it is away.
            RestoreError::Read(ReadError::Store(StoreError::Io { what, path, source })) => {
                let error = StoreError::Io { what, path, source };
                if !others_can_be_read(history, id, &error) {
                    return Err(RecoverError::Unknown(error));
                }
                let since = *failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    let why = format!("{error}; tried for {} s, while others can be read", GRACE.as_secs());
                    return Ok(Attempt::Unusable(why, None));
                }
                tracing::warn!(commit = %id, %error, "a commit cannot be read, though others can; tried again");
                thread::sleep(PAUSE);
            }
            RestoreError::Read(ReadError::Store(error)) => return Err(RecoverError::Unknown(error)),
            RestoreError::Read(error) => return Err(RecoverError::Key(error)),
            local => return Err(RecoverError::Local(local)),
        }
    }
}

/// Whether it is that one object that fails, and not the store: another commit's end can be read.
fn others_can_be_read(history: &History, id: CommitId, error: &StoreError) -> bool {
    let StoreError::Io { path, .. } = error else {
        return false;
    };
    let root = history.store().root();
    let fails = |id: &CommitId| history.object(*id).is_none_or(|object| root.join(object) == *path);
    let newest_first = history.generations().into_keys().rev();
    let mut commits = newest_first.flat_map(|generation| history.commits(generation).unwrap_or_default());
    let other = commits.find(|other| *other != id && !fails(other));
    // Damage is found by reading.
    other.is_some_and(|other| !matches!(history.info(other), Err(ReadError::Store(_))))
}
