//! The keeper of the state: brings it back, has the gateway made ready on it, and then has every change committed.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    layout::Layout,
    live::Live,
    place::Place,
    state::{Found, Plan, bring_back},
};
use crate::{
    config::{self, Config},
    event::{Event, Events, Phase},
    gateway::Gateway,
    report::control::Refusal,
    state::{
        engine::{self, EngineHandle, NotCommitted},
        history::History,
        model::{CommitId, Meta},
        pace,
        restore::Progress,
        saved::Saved,
    },
    supervise::Handle,
};

/// Between two reports of how far a restore is.
const TELLING: Duration = Duration::from_millis(250);

/// A handle on it; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    stage: watch::Receiver<Stage>,
    services: Handle,
    layout: Layout,
    work: PathBuf,
    restoring: Arc<Semaphore>,
}

/// How far it is.
#[derive(Clone)]
enum Stage {
    /// Nothing works on the state yet, so there is nothing to be committed.
    Before,
    /// The gateway works on it, and nobody commits.
    Uncommitted(Lost),
    Running(Running),
}

/// What there is once the state is back and the store is known.
#[derive(Clone)]
struct Running {
    engine: EngineHandle,
    history: History,
}

/// What changed and is in no commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// By name, and one for all others.
    pub paths: u64,
    pub why: String,
    /// Only for want of the store.
    pub store: bool,
}

impl Lost {
    /// Nothing was committed, and what has changed has no names.
    fn all(why: impl Into<String>, store: bool) -> Lost {
        Lost {
            paths: 1,
            why: why.into(),
            store,
        }
    }
}

impl Keeper {
    /// Begins to bring the state back once the store's place is known. The gateway is let go when it is.
    pub fn start(
        config: &Config,
        place: Arc<Place>,
        gateway: Arc<Gateway>,
        services: Handle,
        events: Events,
    ) -> Keeper {
        let (set, stage) = watch::channel(Stage::Before);
        let layout = Layout::new(config);
        let (of, its, handle) = (config.clone(), layout.clone(), services.clone());
        tokio::spawn(async move {
            let store = place.known().await;
            keep(Config { store, ..of }, its, gateway, handle, events, set, bring_back).await;
        });
        Keeper {
            stage,
            services,
            layout,
            work: config.work_dir(),
            restoring: Arc::new(Semaphore::new(1)),
        }
    }

    /// Every commit that can be restored, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Meta>, Refusal> {
        let history = self.running()?.history;
        let listed = tokio::task::spawn_blocking(move || history.list()).await;
        let listed = listed.map_err(|error| Refusal::Failed(error.to_string()))?;
        let (listed, _) = listed.map_err(|error| Refusal::Store(error.to_string()))?;
        let whole = listed.into_iter().filter(|listed| !listed.remnant);
        Ok(whole.map(|listed| listed.meta).collect())
    }

    /// Commits what has changed; the newest commit if nothing has.
    pub async fn commit_now(&self) -> Result<Meta, Refusal> {
        let engine = self.running()?.engine;
        let newest = engine.commit_now().await.map_err(|error| match error {
            NotCommitted::Paused => Refusal::Unavailable(error.to_string()),
            _ => Refusal::Store(error.to_string()),
        })?;
        newest.ok_or_else(|| Refusal::NotFound("there is nothing to commit: the state is empty".into()))
    }

    /// Puts a commit in the place of the live state; see [`Live::restore`].
    ///
    /// # Errors
    /// At once while another restore runs, or before there is a state.
    pub fn restore(&self, id: CommitId) -> Result<impl Future<Output = Result<(), Refusal>> + Send + use<>, Refusal> {
        let Running { engine, history } = self.running()?;
        let busy = |_| Refusal::Conflict("another restore is under way".into());
        let alone = Arc::clone(&self.restoring).try_acquire_owned().map_err(busy)?;
        let live = Live {
            services: self.services.clone(),
            engine,
            history,
            layout: self.layout.clone(),
            work: self.work.clone(),
        };
        Ok(async move {
            let done = live.restore(id).await;
            drop(alone);
            done
        })
    }

    /// The last commit but one, of what the services have left: what is told of it may change the state once more.
    ///
    /// # Errors
    /// There is none by `deadline`, though it was tried until then.
    pub async fn commit_stopped(&self, deadline: Instant) -> Result<(), Lost> {
        match self.engine()? {
            Some(engine) => last(&engine, engine.commit_by(deadline).await),
            None => {
                tracing::warn!("stopped before the state was back; there is nothing to commit");
                Ok(())
            }
        }
    }

    /// The last commit, after which none is made any more.
    ///
    /// # Errors
    /// As [`Keeper::commit_stopped`].
    pub async fn finish(&self, deadline: Instant) -> Result<(), Lost> {
        match self.engine()? {
            Some(engine) => last(&engine, engine.finish(deadline).await),
            None => Ok(()),
        }
    }

    /// Whoever makes the last commit, if there can be anything to be committed.
    fn engine(&self) -> Result<Option<EngineHandle>, Lost> {
        match &*self.stage.borrow() {
            Stage::Before => Ok(None),
            Stage::Uncommitted(lost) => Err(lost.clone()),
            Stage::Running(running) => Ok(Some(running.engine.clone())),
        }
    }

    fn running(&self) -> Result<Running, Refusal> {
        match &*self.stage.borrow() {
            Stage::Running(running) => Ok(running.clone()),
            Stage::Before | Stage::Uncommitted(_) => Err(Refusal::Store(
                "the store is not there yet, or the state is still being restored".into(),
            )),
        }
    }
}

fn last(engine: &EngineHandle, answer: engine::Answer) -> Result<(), Lost> {
    answer.map(drop).map_err(|error| Lost {
        paths: engine.pending(),
        why: error.to_string(),
        store: error.is_for_want_of_the_store(),
    })
}

/// Said by a restore that is given up for now.
type GoWithout = Box<dyn FnOnce() + Send>;

async fn keep(
    config: Config,
    layout: Layout,
    gateway: Arc<Gateway>,
    services: Handle,
    events: Events,
    stage: watch::Sender<Stage>,
    restore: impl FnOnce(&Plan, &Events, GoWithout) -> Found + Send + 'static,
) {
    let (found_it, mut found) = oneshot::channel();
    let (go_without, without) = oneshot::channel();
    let plan = plan(&config, &layout);
    let progress = Arc::clone(&plan.progress);
    let thread = {
        let events = events.clone();
        std::thread::Builder::new().name("restore".into()).spawn(move || {
            let go = Box::new(|| {
                let _ = go_without.send(());
            });
            let _ = found_it.send(restore(&plan, &events, go));
        })
    };
    if let Err(error) = thread {
        let why = format!("no thread to restore the state on: {error}");
        tracing::error!("{why}");
        events.emit(Event::StoreUnavailable { why });
        return;
    }
    // Either the state is back, or it is decided to go without it. In both cases the disk is the gateway's from here on.
    let early = tokio::select! {
        biased;
        back = &mut found => match back {
            Ok(back) => Some(back),
            // Whatever is on the disk now is not known to be the agent's state.
            Err(_) => return panicked(&events, "the gateway is held back"),
        },
        Ok(()) = without => None,
        never = tell(&progress, &events) => match never {},
    };
    events.emit(Event::BootPhase { phase: Phase::Prepare });
    gateway.settle().await;
    if early.is_none() {
        // Whatever the gateway does from here on is in no snapshot until there is a store.
        let lost = Lost::all("there has been no store since the start", true);
        stage.send_replace(Stage::Uncommitted(lost));
        events.emit(Event::SnapshotPending {
            paths: 1,
            oldest_ms: 0,
            warnings: Vec::new(),
        });
    }
    let start = |found: Found| {
        let history = found.history.clone();
        let Found {
            history: of,
            generation,
            head,
        } = found;
        match engine::start(
            settings(&config, &layout, &gateway),
            of,
            generation,
            head,
            events.clone(),
        ) {
            Ok(engine) => drop(stage.send_replace(Stage::Running(Running { engine, history }))),
            Err(error) => {
                tracing::error!(%error, "changes cannot be committed");
                stage.send_replace(Stage::Uncommitted(Lost::all(error.to_string(), false)));
            }
        }
    };
    let restored = early.is_some();
    if let Some(found) = early {
        // Before the gateway: from its first change on somebody watches.
        start(found);
    }
    events.emit(Event::BootPhase { phase: Phase::Services });
    services.satisfied("store");
    let up = services.clone();
    let said = events.clone();
    tokio::spawn(async move {
        up.until_up("gateway").await;
        said.emit(Event::BootPhase { phase: Phase::Done });
    });
    if !restored {
        match found.await {
            Ok(found) => start(found),
            Err(_) => {
                panicked(&events, "nothing is committed");
                let lost = Lost::all("the restore ended in a panic", false);
                stage.send_replace(Stage::Uncommitted(lost));
            }
        }
    }
}

fn panicked(events: &Events, so: &str) {
    let why = format!("the restore ended in a panic, which is a bug; {so}");
    tracing::error!("{why}");
    events.emit(Event::StoreUnavailable { why });
}

/// Says how far a restore is, for as long as this is waited for.
async fn tell(progress: &Progress, events: &Events) -> Infallible {
    let mut ticks = tokio::time::interval(TELLING);
    let mut told = 0;
    loop {
        ticks.tick().await;
        let [done, total] = [&progress.done, &progress.total].map(|bytes| bytes.load(Ordering::Relaxed));
        // Less, where it begins anew with an older one.
        if done != told {
            told = done;
            events.emit(Event::RestoreProgress { done, total });
        }
    }
}

fn plan(config: &Config, layout: &Layout) -> Plan {
    Plan {
        store: config.store.clone(),
        layout: layout.clone(),
        work: config.work_dir(),
        progress: Arc::new(Progress::default()),
    }
}

fn settings(config: &Config, layout: &Layout, gateway: &Arc<Gateway>) -> engine::Settings {
    let gateway = Arc::clone(gateway);
    let config::Snapshot {
        quiet,
        max_delay,
        min_gap,
    } = config.snapshot;
    engine::Settings {
        roots: Box::new(layout.live()),
        pace: pace::Settings {
            quiet,
            max_delay,
            min_gap,
        },
        spool: config.work_dir().join("spool"),
        saved: Saved::in_dir(&config.work_dir()),
        rescan: engine::RESCAN,
        gateway: Box::new(move || gateway.version().map(|version| version.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use super::*;
    use crate::{
        config::{Machine, load, secret::Mask},
        event::ServiceState,
        pid1::Spawner,
        state::tests::kit::Kit,
        supervise::Supervisor,
    };

    /// Both with the state on the disk and without: a bug in the restore may be anywhere in it.
    #[tokio::test]
    async fn a_restore_that_panics_starts_nothing_and_commits_nothing() {
        for is_late in [false, true] {
            let mut kit = Kit::new();
            kit.write("memory.md", "everything");
            let committed = kit.commit();
            let path = |name: &str| kit.path(name).to_str().unwrap().to_owned();
            let env = [
                ("HOME", path("home")),
                ("PATH", "/usr/bin:/bin".to_owned()),
                ("MOLTINIT_STORE", path("store")),
                ("MOLTINIT_DATA_DIR", path("data")),
                ("MOLTINIT_STATE_DIR", path("home/.openclaw")),
            ];
            let machine = Machine {
                home: kit.path("home"),
                store_is_mounted: false,
                has_sandbox_server: false,
                has_legacy_workspace: false,
            };
            let file = "[[service]]\nname = \"gateway\"\ncommand = [\"sleep\", \"1000\"]";
            let config = load(Some(file), env.into_iter().collect(), &machine).unwrap();
            let (events, mut said) = Events::channel();
            let spawner = Spawner::start().unwrap();
            let services = Supervisor {
                services: config.services.clone(),
                cares: HashMap::new(),
                env: Default::default(),
                spawner: spawner.clone(),
                events: events.clone(),
                mask: Mask::default(),
            }
            .start();
            let gateway = Arc::new(Gateway::new(&config, spawner, events.clone(), |_| {}).unwrap());
            let (set, stage) = watch::channel(Stage::Before);
            let layout = Layout::new(&config);
            let restore = move |plan: &Plan, events: &Events, go: GoWithout| {
                assert!(is_late, "as asked");
                drop(bring_back(plan, events, go));
                panic!("as asked");
            };
            keep(
                config.clone(),
                layout.clone(),
                gateway,
                services.clone(),
                events,
                set,
                restore,
            )
            .await;
            let keeper = Keeper {
                stage,
                services: services.clone(),
                layout,
                work: config.work_dir(),
                restoring: Arc::new(Semaphore::new(1)),
            };

            assert_eq!(kit.path("home/.openclaw/memory.md").exists(), is_late);
            // From then on it is the engine's to say that what is on the disk is in a commit.
            assert_eq!(Saved::in_dir(&config.work_dir()).commit(), None);
            fs::create_dir_all(kit.path("home/.openclaw")).unwrap();
            fs::write(kit.path("home/.openclaw/memory.md"), "nothing").unwrap();
            assert!(matches!(keeper.commit_now().await, Err(Refusal::Store(_))));
            let soon = Instant::now() + Duration::from_secs(10);
            let stopped = (keeper.commit_stopped(soon).await, keeper.finish(soon).await);
            assert_eq!(stopped, (Ok(()), Ok(())), "nothing has run, so nothing is lost");
            let (listed, _) = kit.reopened().list().unwrap();
            assert_eq!(listed.iter().map(|one| one.meta.id).collect::<Vec<_>>(), [committed]);
            assert_eq!(services.services()[0].state, ServiceState::Waiting);
            let said: Vec<Event> = std::iter::from_fn(|| said.try_recv().ok()).collect();
            assert!(
                said.iter()
                    .any(|event| matches!(event, Event::StoreUnavailable { why } if why.contains("panic"))),
                "{said:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_restore_is_reported_while_it_goes_on() {
        let (events, mut said) = Events::channel();
        let progress = Progress::default();
        progress.total.store(10, Ordering::Relaxed);
        let seen = async {
            // The third time with an older snapshot, from its beginning.
            for step in [3, 10, 2] {
                progress.done.store(step, Ordering::Relaxed);
                let event = said.recv().await.unwrap();
                assert!(matches!(event, Event::RestoreProgress { done, total: 10 } if done == step));
            }
        };
        tokio::select! {
            never = tell(&progress, &events) => match never {},
            seen = tokio::time::timeout(Duration::from_secs(30), seen) => seen.unwrap(),
        }
    }
}
