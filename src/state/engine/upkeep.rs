//! Keeping the store small, on a thread of its own: removing what retention does not keep takes many calls.

use std::{
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use ulid::Ulid;

use crate::{
    event::{Event, Events},
    state::{
        history::History,
        model::CommitId,
        prune::{Own, Pruned, Pruner},
        retain::Record,
    },
};

/// From one pruning to the next. The first waits as long: a boot has better things to do.
const EVERY: Duration = Duration::from_secs(600);

/// What the engine tells.
enum News {
    /// What this process writes and needs, from now on.
    Own(Own),
    Committed(CommitId, Record),
    Stop,
}

/// The way to the thread. Dropped, it ends the thread when a pruning under way is over.
pub struct Upkeep(Sender<News>);

impl Upkeep {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(history: History, own: Own, events: Events) -> io::Result<Upkeep> {
        let (send, news) = mpsc::channel();
        let keeper = Keeper {
            pruner: Pruner::new(history.clone()),
            history,
            events,
            own,
            fenced: false,
        };
        std::thread::Builder::new()
            .name("state-upkeep".into())
            .spawn(move || keeper.run(&news))?;
        Ok(Upkeep(send))
    }

    pub fn committed(&self, id: CommitId, record: Record, own: Own) {
        self.tell(News::Committed(id, record));
        self.tell(News::Own(own));
    }

    pub fn own(&self, own: Own) {
        self.tell(News::Own(own));
    }

    fn tell(&self, news: News) {
        // Without upkeep the store grows, and nothing is lost.
        let _ = self.0.send(news);
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tell(News::Stop);
    }
}

struct Keeper {
    history: History,
    pruner: Pruner,
    events: Events,
    own: Own,
    /// It has been said that another writes on.
    fenced: bool,
}

impl Keeper {
    fn run(mut self, news: &Receiver<News>) {
        let mut due = Instant::now() + EVERY;
        loop {
            match news.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(News::Own(own)) => self.own = own,
                Ok(News::Committed(id, record)) => self.pruner.committed(id, record),
                Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.prune();
                    due = Instant::now() + EVERY;
                }
            }
        }
    }

    fn prune(&mut self) {
        match self.pruner.prune(Some(&self.own), Timestamp::now()) {
            Ok(Pruned {
                fenced_by: Some(newer), ..
            }) => {
                if !std::mem::replace(&mut self.fenced, true) {
                    self.events
                        .emit(fenced(newer, self.history.generations().get(&newer).copied().flatten()));
                }
            }
            Ok(pruned) => {
                let objects = (pruned.kept + pruned.needed) as u64;
                if let Some(bytes) = pruned.left {
                    self.events.emit(Event::StoreMeasured { objects, bytes });
                }
                tracing::debug!(?pruned, "old snapshots thinned");
            }
            Err(error) => tracing::warn!(%error, "old snapshots could not be thinned; tried again later"),
        }
    }
}

fn fenced(newer: Ulid, base: Option<CommitId>) -> Event {
    let from = base.map_or("an empty state".into(), |base| base.to_string());
    Event::StoreFenced {
        by: newer.to_string(),
        why: format!(
            "another supervisor has begun a newer generation from {from}; commits go on here as a branch, \
             which no boot follows: stop one of the two"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::kit::Kit;

    #[test]
    fn a_newer_generation_is_said_once_and_removes_nothing_here() {
        let mut kit = Kit::new();
        kit.write("a", "1");
        let id = kit.commit();
        let own = Own {
            generation: kit.generation.id(),
            needs: kit.head.needs(),
        };
        let (events, mut said) = Events::channel();
        let history = kit.history.clone();
        let mut keeper = Keeper {
            pruner: Pruner::new(history.clone()),
            history,
            events,
            own,
            fenced: false,
        };
        keeper.prune();
        assert!(
            matches!(said.try_recv(), Ok(Event::StoreMeasured { bytes: 0, .. })),
            "not told of its own commit yet"
        );
        let other = kit.reopened();
        let mut newer = Kit::new();
        newer.generation = other.begin(Ulid::generate(), Some(id));
        newer.history = other;
        newer.write("b", "1");
        newer.commit();
        keeper.prune();
        keeper.prune();
        let Ok(Event::StoreFenced { by, why }) = said.try_recv() else {
            panic!("nothing said")
        };
        assert_eq!(by, newer.generation.id().to_string());
        assert!(why.contains(&id.to_string()), "{why}");
        assert!(said.try_recv().is_err());
    }
}
