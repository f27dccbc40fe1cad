//! Bringing the state back: wait for the store, restore from it, and begin a generation. Blocking; it has a thread
//! of its own.

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ulid::Ulid;

use super::{layout::Layout, store};
use crate::{
    config,
    event::{Event, Events, Phase, millis},
    state::{
        head::Head,
        history::{Generation, History},
        legacy::{self, LegacyError},
        model::CommitId,
        recover::{RecoverError, Recovered, recover},
        restore::{Progress, RestoreError, resume},
        saved::Saved,
        segment::reader::ReadError,
    },
    store::{StoreError, mounts},
};

/// Between looks at a store that is not there or does not answer. A change of the mounts is looked at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Between tries of what fails here, such as for want of room, each of which may copy all of the state.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What to bring back, and where to.
pub struct Plan {
    pub store: config::Store,
    pub layout: Layout,
    /// A local directory that is the same at every boot of a disk, for the journal of the restore.
    pub work: PathBuf,
    pub progress: Arc<Progress>,
}

/// A store whose history is known, and this boot's place in it.
pub struct Found {
    pub history: History,
    pub generation: Generation,
    /// The tree on disk as the history has it; empty on a first boot.
    pub head: Head,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error("the backup in the store cannot be taken over: {0}")]
    Legacy(#[from] LegacyError),
}

impl Trouble {
    /// What the store holds is not known.
    fn is_absence(&self) -> bool {
        matches!(
            self,
            Trouble::Store(_)
                | Trouble::Recover(RecoverError::Unknown(_))
                | Trouble::Legacy(LegacyError::Store(_) | LegacyError::Read(ReadError::Store(_)))
        )
    }

    /// Waiting for the mount will not help, so there is no reason to wait before saying it.
    fn is_lasting(&self) -> bool {
        !self.is_absence()
            || matches!(
                self,
                Trouble::Store(StoreError::NotADirectory { .. } | StoreError::Denied { .. })
            )
    }
}

impl From<RestoreError> for Trouble {
    fn from(error: RestoreError) -> Trouble {
        Trouble::Recover(RecoverError::Local(error))
    }
}

/// Tries until it has worked. `go_without` is called once if a store that is not required is still not there when the
/// wait for it is over: from then on the disk is the agent's, nothing is restored, and what the store holds is
/// branched from, not followed.
pub fn bring_back(plan: &Plan, events: &Events, go_without: impl FnOnce()) -> Found {
    let began = Instant::now();
    let saved = Saved::in_dir(&plan.work);
    let mut away_since = None;
    let mut told = String::new();
    let mut pause = PAUSE;
    let begun = RefCell::default();
    let mut go_without = Some(go_without);
    events.emit(Event::BootPhase { phase: Phase::Store });
    loop {
        let trouble = match attempt(plan, events, &begun, go_without.is_none()) {
            Ok(found) => {
                // Whatever works on the state from here on, it is the engine that says what of that is saved.
                saved.set(None);
                events.emit(Event::StoreAvailable {
                    path: plan.store.dir.display().to_string(),
                    durable: plan.store.durable,
                });
                if let Some(since) = away_since {
                    events.emit(Event::StoreRecovered {
                        away_ms: millis(Instant::elapsed(&since)),
                    });
                }
                return found;
            }
            Err(trouble) => trouble,
        };
        tracing::debug!(%trouble, "the state is not back yet");
        let waited = began.elapsed() >= plan.store.wait;
        let why = trouble.to_string();
        if why != told && (waited || trouble.is_lasting()) {
            away_since.get_or_insert_with(Instant::now);
            told.clone_from(&why);
            events.emit(Event::StoreUnavailable { why });
        }
        if waited
            && !plan.store.required
            && trouble.is_absence()
            && let Some(go) = go_without.take()
        {
            saved.set(None);
            go();
        }
        pause = if trouble.is_absence() {
            PAUSE
        } else {
            LONGEST_PAUSE.min(2 * pause)
        };
        mounts::wait_for_change(pause);
    }
}

/// `begun` is what this boot has begun so far.
fn attempt(
    plan: &Plan,
    events: &Events,
    begun: &RefCell<Option<Generation>>,
    disk_is_live: bool,
) -> Result<Found, Trouble> {
    // A restore that was cut off is finished before anything is started on the disk.
    resume(&plan.work)?;
    let history = store::open(&plan.store)?;
    if disk_is_live {
        return Ok(Found {
            generation: history.begin_apart(Ulid::generate()),
            history,
            head: Head::default(),
        });
    }
    let began = Instant::now();
    events.emit(Event::BootPhase { phase: Phase::Restore });
    let targets = |head: &Head| {
        begin(&history, head.id(), &mut begun.borrow_mut());
        plan.layout.of(&history, head)
    };
    let restore = || recover(&history, &targets, &plan.work, &plan.progress);
    let mut recovered = restore()?;
    if matches!(recovered, Recovered::Empty { .. }) && take_over(plan, &history)? {
        recovered = restore()?;
    }
    let head = match recovered {
        Recovered::Restored { head, placed, passed } => {
            if let Some(newest) = passed.first() {
                events.emit(Event::StateRestoreDegraded {
                    wanted: newest.id,
                    used: head.id(),
                    why: newest.why.clone(),
                });
            }
            placed.tell();
            plan.layout.link_workspace();
            events.emit(Event::StateRestored {
                commit: head.id(),
                files: placed.files,
                bytes: placed.bytes,
                took_ms: millis(began.elapsed()),
                aside: placed.aside.iter().map(|aside| aside.display().to_string()).collect(),
            });
            *head
        }
        Recovered::Empty { passed } => {
            for torn in passed {
                tracing::warn!(commit = %torn.id, why = torn.why, "an object that never was a whole commit is passed over");
            }
            events.emit(Event::StateRestored {
                commit: None,
                files: 0,
                bytes: 0,
                took_ms: millis(began.elapsed()),
                aside: Vec::new(),
            });
            Head::default()
        }
    };
    let generation = begun.take().filter(|begun| begun.base() == head.id());
    Ok(Found {
        generation: generation.unwrap_or_else(|| history.begin(Ulid::generate(), head.id())),
        history,
        head,
    })
}

/// Makes the first snapshot of a plain backup, if there is one. Only the default instance does: a bucket with several
/// agents has one such backup at most, and it is nobody else's.
fn take_over(plan: &Plan, history: &History) -> Result<bool, LegacyError> {
    if plan.store.instance != config::DEFAULT_INSTANCE {
        return Ok(false);
    }
    let store = history.store();
    let Some(backup) = legacy::find(store, &plan.store.instance)? else {
        return Ok(false);
    };
    let is_apart = |config: Option<&[u8]>| plan.layout.has_workspace(config);
    let id = legacy::import(history, store, &backup, &plan.work, &is_apart, &plan.progress)?;
    tracing::info!(commit = %id, "a plain backup was found, and is the first snapshot now");
    Ok(true)
}

/// Begins a generation and lets others see it, before more is read of what it begins from than its tree: whoever thins the
/// store leaves it that. One that an earlier try has begun from there will do.
fn begin(history: &History, base: Option<CommitId>, begun: &mut Option<Generation>) {
    let is_known = |begun: &Generation| begun.base() == base && history.generations().contains_key(&begun.id());
    if begun.as_ref().is_some_and(is_known) {
        return;
    }
    let generation = history.begin(Ulid::generate(), base);
    if let Err(error) = history.announce(generation.id()) {
        // It is no reason not to restore. The engine tries again.
        tracing::warn!(%error, "others do not see yet what is restored here");
    }
    *begun = Some(generation);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        config::{Machine, load},
        state::tests::kit::Kit,
    };

    /// A boot of what a kit has committed.
    fn plan(kit: &Kit) -> Plan {
        let path = |name: &str| kit.path(name).to_str().unwrap().to_owned();
        let env = [
            ("HOME", path("home")),
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("MOLTINIT_STORE", path("store")),
            ("MOLTINIT_DATA_DIR", path("data")),
        ];
        let machine = Machine {
            home: kit.path("home"),
            store_is_mounted: false,
            has_sandbox_server: false,
            has_legacy_workspace: false,
        };
        let config = load(None, env.into_iter().collect(), &machine).unwrap();
        Plan {
            store: config.store.clone(),
            layout: Layout::new(&config),
            work: config.work_dir(),
            progress: Arc::default(),
        }
    }

    #[test]
    fn what_is_restored_is_begun_from_before_it_is_read_and_once() {
        let mut kit = Kit::new();
        kit.write("memory.md", "everything");
        let base = kit.commit();
        let plan = plan(&kit);
        let (events, _said) = Events::channel();
        let begun = RefCell::default();
        // Nothing can be put there.
        fs::write(kit.path("home"), "").unwrap();
        let failed = attempt(&plan, &events, &begun, false);
        assert!(matches!(failed, Err(Trouble::Recover(RecoverError::Local(_)))));
        let seen = kit.reopened().generations();
        assert_eq!(seen.len(), 2);
        fs::remove_file(kit.path("home")).unwrap();
        let found = attempt(&plan, &events, &begun, false).unwrap();
        assert_eq!(kit.reopened().generations(), seen);
        assert_eq!(seen[&found.generation.id()], Some(base));
        assert_eq!(found.head.id(), Some(base));
        assert!(kit.path("home/.openclaw/memory.md").exists());
    }
}
