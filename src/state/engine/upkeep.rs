//! Keeping the store small, and an eye on who else writes to it, on a thread of its own: both take many calls.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use ulid::Ulid;

use super::{clock::Clock, handle::Command, rival::Rival};
use crate::{
    event::{Event, Events, millis},
    state::{
        history::History,
        model::CommitId,
        prune::{Own, Pruner, Writing},
        retain::Record,
    },
    store::StoreError,
};

/// From one pruning to the next. The first waits as long: a boot has better things to do.
const EVERY: Duration = Duration::from_secs(600);
/// Until it is first seen who else has a generation, and after a commit until it is seen again: each look is a few
/// listings. Who commits nothing has nobody to look for.
const FIRST_LOOK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(600);
/// From one look at whether the store still has what the next commit needs to the next. The first is with that at who else
/// writes.
const INSPECT: Duration = Duration::from_secs(12 * 3600);

/// What the engine tells.
enum News {
    Committed(CommitId, Record),
    /// Another generation was begun.
    Begun,
    /// Look who else writes, now.
    Look,
    Stop,
}

/// The way to the thread. Dropped, it ends the thread when a pruning under way is over.
pub struct Upkeep {
    news: Sender<News>,
    writing: Arc<Writing>,
    ended: Ended,
    history: History,
}

/// A rival that was found to have ended.
type Ended = Arc<Mutex<Option<Rival>>>;

impl Upkeep {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(history: History, own: Own, events: Events, engine: Sender<Command>) -> io::Result<Upkeep> {
        let (send, news) = mpsc::channel();
        let keeper = Keeper::new(history.clone(), own, events);
        let upkeep = Upkeep {
            news: send,
            writing: Arc::clone(&keeper.writing),
            ended: Arc::clone(&keeper.ended),
            history,
        };
        std::thread::Builder::new()
            .name("state-upkeep".into())
            .spawn(move || keeper.run(&news, &engine))?;
        Ok(upkeep)
    }

    pub fn committed(&self, id: CommitId, record: Record, own: Own) {
        self.own(own);
        self.tell(News::Committed(id, record));
    }

    /// What is written from now on.
    pub fn own(&self, own: Own) {
        self.writing.set(Some(own));
    }

    /// When it returns nothing is removed until [`Upkeep::begun`] says what is needed then.
    pub fn pause(&self) {
        self.writing.set(None);
    }

    pub fn begun(&self, own: Own) {
        self.own(own);
        self.tell(News::Begun);
    }

    /// Looks who else writes, without waiting for what is found.
    pub fn look(&self) {
        self.tell(News::Look);
    }

    /// Whether the next commit is to be the first of a new generation, see [`super::rival`]. Says so once.
    pub fn is_to_begin_anew(&self) -> bool {
        let Some(rival) = *lock(&self.ended) else {
            return false;
        };
        // That may be long ago, and it may have gone on.
        match self.is_still(rival) {
            Ok(still) => {
                *lock(&self.ended) = None;
                still
            }
            Err(error) => {
                tracing::debug!(%error, "whether the other supervisor has gone on is not known");
                false
            }
        }
    }

    fn is_still(&self, rival: Rival) -> Result<bool, StoreError> {
        self.history.refresh()?;
        let newer = self
            .writing
            .get()
            .and_then(|own| self.history.newer_than(own.generation));
        Ok(newer == Some(rival.generation) && self.history.newest(rival.generation)? == rival.last)
    }

    fn tell(&self, news: News) {
        // Without upkeep the store grows, and nothing is lost.
        let _ = self.news.send(news);
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tell(News::Stop);
    }
}

fn lock(ended: &Ended) -> MutexGuard<'_, Option<Rival>> {
    ended.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Keeper {
    history: History,
    pruner: Pruner,
    events: Events,
    writing: Arc<Writing>,
    clock: Clock,
    /// The generation of the last commit that was told.
    committed: Option<Ulid>,
    /// Whose commits a boot would follow instead of ours, and since when that was said.
    rival: Option<(Rival, Instant)>,
    ended: Ended,
    /// The generation of which it was said that another goes on from its base.
    branched: Option<Ulid>,
    /// What the base's generation ended with when a restore went back in it: nobody has gone on from there since.
    went_back_from: Option<CommitId>,
}

impl Keeper {
    fn new(history: History, own: Own, events: Events) -> Keeper {
        Keeper {
            pruner: Pruner::new(history.clone()),
            history,
            events,
            writing: Arc::new(Writing::new(own)),
            clock: Clock::new(Timestamp::now(), Instant::now()),
            committed: None,
            rival: None,
            ended: Ended::default(),
            branched: None,
            went_back_from: None,
        }
    }

    fn run(mut self, news: &Receiver<News>, engine: &Sender<Command>) {
        let mut prune_at = Instant::now() + EVERY;
        let mut inspect_at = Instant::now() + FIRST_LOOK;
        let mut look_at = Some(Instant::now() + self.first_look());
        loop {
            let due = look_at.map_or(prune_at, |at| at.min(prune_at)).min(inspect_at);
            match news.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(News::Committed(id, record)) => {
                    self.committed = Some(id.generation);
                    self.pruner.committed(id, record);
                    look_at = look_at.or_else(|| Some(Instant::now() + LOOK));
                }
                Ok(News::Begun) => {
                    self.begun();
                    look_at = Some(Instant::now() + FIRST_LOOK);
                }
                Ok(News::Look) => look_at = Some(Instant::now()),
                Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    if look_at.take_if(|at| *at <= now).is_some()
                        && let Err(error) = self.look(now)
                    {
                        tracing::debug!(%error, "who else writes to the store is not known; looked again later");
                        look_at = Some(now + FIRST_LOOK);
                    }
                    if inspect_at <= now {
                        inspect_at = Instant::now() + self.inspect(engine);
                    }
                    if prune_at <= now {
                        self.prune(Timestamp::now(), now);
                        prune_at = Instant::now() + EVERY;
                    }
                }
            }
        }
    }

    /// Who began empty beside others may not be followed, which is to be said at once.
    fn first_look(&self) -> Duration {
        let is_empty = self
            .writing
            .get()
            .is_some_and(|own| self.base(own.generation).is_none());
        let is_alone = self.history.generations().len() == 1;
        if is_empty && !is_alone {
            Duration::ZERO
        } else {
            FIRST_LOOK
        }
    }

    /// Sees who else writes, and lets them see what we do.
    fn look(&mut self, now: Instant) -> Result<(), StoreError> {
        let Some(own) = self.writing.get().map(|own| own.generation) else {
            return Ok(());
        };
        self.history.refresh()?;
        let newer = self.history.newer_than(own);
        let followed = newer.map_or_else(|| self.history.followed_before(own), |newer| Ok(Some(newer)))?;
        let Some(other) = followed else {
            *lock(&self.ended) = None;
            if let Some((_, since)) = self.rival.take() {
                let away_ms = millis(now.saturating_duration_since(since));
                self.events.emit(Event::StoreRecovered { away_ms });
            }
            if self.committed != Some(own) {
                self.history.announce(own)?;
            }
            return self.look_at_base(own);
        };
        let last = self.history.newest(other)?;
        let known = self.rival.filter(|(rival, _)| rival.generation == other);
        if known.is_none() {
            let why = newer.map_or_else(|| older(last), |newer| taken_over(self.base(newer)));
            let by = other.to_string();
            self.events.emit(Event::StoreFenced { by, why });
        }
        let rival = Rival::seen(known.map(|(rival, _)| rival), other, last, now);
        self.rival = Some((rival, known.map_or(now, |(_, since)| since)));
        // One that was there before is followed however long it has been silent.
        *lock(&self.ended) = Some(rival).filter(|rival| newer.is_some() && rival.is_silent(now));
        Ok(())
    }

    /// Tells the engine which objects of those that it needs are gone or damaged, by their ends. Returns until when it is
    /// not looked at again.
    fn inspect(&self, engine: &Sender<Command>) -> Duration {
        let needs = self.writing.get().map(|own| Vec::from_iter(own.needs));
        match self.history.infos(&needs.unwrap_or_default()) {
            Ok(found) => {
                let broken: Vec<CommitId> = found.problems.iter().map(|(id, _)| *id).collect();
                for (_, problem) in found.problems {
                    tracing::warn!(
                        object = problem.object,
                        why = problem.why,
                        "the store has lost what snapshots need"
                    );
                }
                // Without an engine nothing is needed.
                let _ = engine.send(Command::Broken(broken));
                INSPECT
            }
            Err(error) => {
                tracing::debug!(%error, "whether the store has what is needed is not known; looked again later");
                LOOK
            }
        }
    }

    fn begun(&mut self) {
        let own = self.writing.get().map(|own| own.generation);
        let base = own.and_then(|own| self.base(own));
        self.went_back_from = base.and_then(|base| self.history.newest(base.generation).ok().flatten());
    }

    /// Whether the supervisor that wrote what we began from goes on writing: from there on that is a branch.
    fn look_at_base(&mut self, own: Ulid) -> Result<(), StoreError> {
        let Some(base) = self.base(own) else { return Ok(()) };
        if self.branched == Some(own) {
            return Ok(());
        }
        let newest = self.history.newest(base.generation)?;
        let known = self.went_back_from.filter(|last| last.generation == base.generation);
        if let Some(branch) = newest.filter(|newest| *newest > known.unwrap_or(base)) {
            self.branched = Some(own);
            let why = format!(
                "another supervisor goes on from {base}, where this one began; its commits are a branch, which no boot \
                 follows: stop one of the two"
            );
            tracing::warn!(%branch, why);
            let by = own.to_string();
            self.events.emit(Event::StoreBranched { by, why, branch });
        }
        Ok(())
    }

    fn base(&self, generation: Ulid) -> Option<CommitId> {
        self.history.generations().get(&generation).copied().flatten()
    }

    fn prune(&mut self, shows: Timestamp, at: Instant) {
        if !self.clock.is_right(shows, at) {
            tracing::warn!(%shows, "the clock has jumped; no snapshot is thinned by it for a day");
            return;
        }
        match self.pruner.prune(Some(&self.writing), shows) {
            Ok(pruned) if pruned.fenced_by.is_some() => {}
            Ok(pruned) => {
                let objects = (pruned.kept + pruned.needed) as u64;
                // Counting it says that the store is ours.
                if let Some(bytes) = pruned.left.filter(|_| self.rival.is_none()) {
                    self.events.emit(Event::StoreMeasured { objects, bytes });
                }
                tracing::debug!(?pruned, "old snapshots thinned");
            }
            Err(error) => tracing::warn!(%error, "old snapshots could not be thinned; tried again later"),
        }
    }
}

fn taken_over(base: Option<CommitId>) -> String {
    let from = base.map_or("an empty state".into(), |base| base.to_string());
    format!(
        "another supervisor has begun a newer generation from {from}; from its first commit on, what is committed here is a \
         branch, which no boot follows: stop one of the two"
    )
}

fn older(newest: Option<CommitId>) -> String {
    let newest = newest.map_or("its newest".into(), |newest| newest.to_string());
    format!(
        "this agent began without the history that the store has, of which {newest} is the newest; commits here are a branch, \
         which no boot follows: start it again to go on from there"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::SignedDuration;

    use super::*;
    use crate::state::{engine::rival::SILENT, tests::kit::Kit};

    fn own(kit: &Kit) -> Own {
        Own {
            generation: kit.generation.id(),
            needs: kit.head.needs(),
        }
    }

    /// Another supervisor that began from `id`.
    fn other(kit: &Kit, id: Option<CommitId>) -> Kit {
        let mut newer = Kit::new();
        newer.history = kit.reopened();
        newer.generation = newer.history.begin(Ulid::generate(), id);
        newer
    }

    #[test]
    fn a_newer_generation_is_said_once_and_removes_nothing_here() {
        let mut kit = Kit::new();
        kit.write("a", "1");
        let id = kit.commit();
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(kit.history.clone(), own(&kit), events);
        let prune = |keeper: &mut Keeper| keeper.prune(Timestamp::now(), Instant::now());
        prune(&mut keeper);
        assert!(
            matches!(said.try_recv(), Ok(Event::StoreMeasured { bytes: 0, .. })),
            "not told of its own commit yet"
        );
        let mut newer = other(&kit, Some(id));
        newer.write("b", "1");
        newer.commit();
        for _ in 0..2 {
            keeper.look(Instant::now()).unwrap();
            prune(&mut keeper);
        }
        let Ok(Event::StoreFenced { by, why }) = said.try_recv() else {
            panic!("nothing said")
        };
        assert_eq!(by, newer.generation.id().to_string());
        assert!(why.contains(&id.to_string()), "{why}");
        assert!(said.try_recv().is_err());
    }

    #[test]
    fn what_is_needed_and_gone_or_cut_short_is_told() {
        let mut kit = Kit::new();
        let [whole, cut, gone] = ["1", "2", "3"].map(|name| {
            kit.write(name, name);
            kit.commit()
        });
        std::fs::write(kit.object_path(cut), "").unwrap();
        std::fs::remove_file(kit.object_path(gone)).unwrap();
        let (events, _) = Events::channel();
        let (engine, told) = mpsc::channel();
        let keeper = Keeper::new(kit.history.clone(), own(&kit), events);
        assert_eq!(keeper.inspect(&engine), INSPECT);
        let Ok(Command::Broken(mut broken)) = told.try_recv() else {
            panic!("nothing told")
        };
        broken.sort();
        assert!(kit.head.needs().contains(&whole));
        assert_eq!(broken, [cut, gone]);
    }

    #[test]
    fn what_a_live_restore_went_back_from_is_no_branch_of_another() {
        let mut kit = Kit::new();
        let [base, _] = ["1", "2"].map(|content| {
            kit.write("a", content);
            kit.commit()
        });
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(kit.history.clone(), own(&kit), events);
        let restored = kit.history.begin(Ulid::generate(), Some(base));
        keeper.writing.set(Some(Own {
            generation: restored.id(),
            ..own(&kit)
        }));
        keeper.begun();
        keeper.look(Instant::now()).unwrap();
        assert!(said.try_recv().is_err());
        // As another supervisor that has not been told to end.
        kit.write("a", "3");
        kit.commit();
        keeper.look(Instant::now()).unwrap();
        assert!(matches!(said.try_recv(), Ok(Event::StoreBranched { .. })));
    }

    #[test]
    fn a_branch_from_where_this_one_began_is_said_once() {
        let mut old = Kit::new();
        old.write("a", "1");
        let base = old.commit();
        let newer = other(&old, Some(base));
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(newer.history.clone(), own(&newer), events);
        keeper.look(Instant::now()).unwrap();
        assert!(said.try_recv().is_err());
        old.write("a", "2");
        let first = old.commit();
        keeper.look(Instant::now()).unwrap();
        let Ok(Event::StoreBranched { by, why, branch }) = said.try_recv() else {
            panic!("nothing said")
        };
        assert_eq!((by, branch), (newer.generation.id().to_string(), first));
        assert!(why.contains(&base.to_string()), "{why}");
        old.write("a", "3");
        old.commit();
        keeper.look(Instant::now()).unwrap();
        assert!(said.try_recv().is_err());
    }

    #[test]
    fn one_that_has_committed_nothing_is_seen_by_the_one_it_began_from() {
        let mut kit = Kit::new();
        kit.write("a", "1");
        let id = kit.commit();
        let newer = other(&kit, Some(id));
        let (events, _) = Events::channel();
        Keeper::new(newer.history.clone(), own(&newer), events)
            .look(Instant::now())
            .unwrap();
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(kit.history.clone(), own(&kit), events);
        keeper.look(Instant::now()).unwrap();
        assert!(matches!(said.try_recv(), Ok(Event::StoreFenced { .. })));
        // But a boot goes on from what was committed.
        kit.write("a", "2");
        let two = kit.commit();
        assert_eq!(kit.reopened().restorable().unwrap()[0], two);
        // Nobody takes away what it began from.
        let pruned = Pruner::new(kit.reopened()).prune(None, Timestamp::now() + SignedDuration::from_hours(48));
        pruned.unwrap();
        assert!(kit.object_path(id).exists());
    }

    /// What the engine asks.
    fn asked(keeper: &Keeper) -> Upkeep {
        Upkeep {
            news: mpsc::channel().0,
            writing: Arc::clone(&keeper.writing),
            ended: Arc::clone(&keeper.ended),
            history: keeper.history.clone(),
        }
    }

    #[test]
    fn who_began_without_the_history_that_there_is_says_so_and_never_has_the_line() {
        let mut kit = Kit::new();
        kit.write("a", "1");
        let last = kit.commit();
        let mut without = Kit::new();
        without.history = kit.reopened();
        without.generation = without.history.begin_apart(Ulid::generate());
        without.write("b", "1");
        let branch = without.commit();
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(without.history.clone(), own(&without), events);
        assert_eq!(keeper.first_look(), Duration::ZERO);
        let (began, shows) = (Instant::now(), Timestamp::now());
        for after in [Duration::ZERO, SILENT, 2 * SILENT] {
            keeper.look(began + after).unwrap();
            assert!(!asked(&keeper).is_to_begin_anew());
            keeper.prune(shows + SignedDuration::try_from(after).unwrap(), began + after);
        }
        let Ok(Event::StoreFenced { by, why }) = said.try_recv() else {
            panic!("nothing said")
        };
        assert_eq!(by, last.generation.to_string());
        assert!(why.contains(&last.to_string()), "{why}");
        assert!(said.try_recv().is_err());
        assert_eq!(kit.reopened().restorable().unwrap(), [last]);
        assert!(kit.reopened().load(branch).is_ok());
        // Who is followed is told nothing.
        let (events, mut said) = Events::channel();
        Keeper::new(kit.reopened(), own(&kit), events).look(began).unwrap();
        assert!(said.try_recv().is_err());
    }

    #[test]
    fn a_rival_that_has_ended_is_not_left_the_line() {
        let mut kit = Kit::new();
        kit.write("a", "1");
        let id = kit.commit();
        let mut newer = other(&kit, Some(id));
        newer.write("b", "1");
        newer.commit();
        kit.write("a", "2");
        let last = kit.commit();
        let (events, mut said) = Events::channel();
        let mut keeper = Keeper::new(kit.history.clone(), own(&kit), events);
        let began = Instant::now();
        keeper.look(began).unwrap();
        assert!(!asked(&keeper).is_to_begin_anew());
        keeper.look(began + SILENT).unwrap();
        // It goes on after all, before anything is committed here.
        newer.write("b", "2");
        newer.commit();
        assert!(!asked(&keeper).is_to_begin_anew());
        keeper.look(began + SILENT).unwrap();
        assert!(!asked(&keeper).is_to_begin_anew());
        keeper.look(began + 2 * SILENT).unwrap();
        fs::rename(kit.path("store"), kit.path("away")).unwrap();
        fs::write(kit.path("store"), "").unwrap();
        assert!(!asked(&keeper).is_to_begin_anew());
        fs::remove_file(kit.path("store")).unwrap();
        fs::rename(kit.path("away"), kit.path("store")).unwrap();
        assert!(asked(&keeper).is_to_begin_anew());
        assert!(!asked(&keeper).is_to_begin_anew(), "once");
        kit.generation = kit.history.begin(Ulid::generate(), Some(last));
        keeper.writing.set(Some(own(&kit)));
        kit.write("a", "3");
        let first = kit.commit();
        assert_eq!(kit.reopened().restorable().unwrap(), [first, last, id]);
        keeper.look(began + SILENT).unwrap();
        assert!(matches!(said.try_recv(), Ok(Event::StoreFenced { .. })));
        assert!(matches!(said.try_recv(), Ok(Event::StoreRecovered { .. })));
    }
}
