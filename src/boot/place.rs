//! Where the store is: the step ahead of everything that has to do with it.
//!
//! Mostly it is known when we start. But a Worker may give everything to its start script and nothing to PID 1: then
//! the store is what `moltinit attach` brings, or the bucket that the Worker mounts. Until one of the two happens nothing
//! may be taken for the agent's state: what is on the disk is a fresh container's.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    config::{self, Config, env::Env},
    event::{Event, Events},
    store::{
        mounts,
        s3fs::{self, Mounter},
    },
    supervise::Handle,
};

/// Between looks at the mounts, in case the kernel does not say that they have changed.
const LOOK: Duration = Duration::from_secs(5);

/// The store's place, once it is known. It becomes so once, and then stays.
pub struct Place {
    known: watch::Sender<Option<config::Store>>,
}

impl Place {
    /// Of that configuration's store; `may_be_told` if somebody may yet come and name another than the fallback.
    pub fn of(config: &Config, may_be_told: bool) -> Arc<Place> {
        let open = may_be_told && !config.store.durable;
        let place = Arc::new(Place {
            known: watch::Sender::new((!open).then(|| config.store.clone())),
        });
        if open {
            tracing::info!(
                "no store is named: waiting for `moltinit attach gateway` to bring a bucket's keys, or for a mount at {}",
                config::MOUNTED_STORE
            );
            watch_mounts(Arc::downgrade(&place), config.clone());
        }
        place
    }

    pub fn is_known(&self) -> bool {
        self.known.borrow().is_some()
    }

    /// From now on this is the store, unless it is known already.
    pub fn settle(&self, store: config::Store) {
        let settled = self.known.send_if_modified(|known| {
            let open = known.is_none();
            known.get_or_insert_with(|| store.clone());
            open
        });
        let other = |known: &config::Store| known.dir != store.dir || (store.durable && !known.durable);
        if !settled && self.known.borrow().as_ref().is_some_and(other) {
            tracing::warn!(
                named = %store.dir.display(),
                "a store is in use already; what `moltinit attach` names counts for the next container"
            );
        }
    }

    pub async fn known(&self) -> config::Store {
        let mut known = self.known.subscribe();
        let found = known
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|known| known.clone());
        // The sender is in `self`.
        match found {
            Some(store) => store,
            None => std::future::pending().await,
        }
    }

    /// Says what is to be said of it when it is known, and has it mounted where that is our business.
    pub async fn prepare(&self, mounter: &Mounter, services: &Handle, events: &Events) {
        let store = self.known().await;
        events.emit(Event::StorePlaced {
            required: store.required,
        });
        if !store.durable {
            tracing::warn!(
                store = %store.dir.display(),
                "state is not durable: no bucket is mounted, so snapshots vanish with this container; set MOLTINIT_STORE"
            );
        }
        if let Some(bucket) = store.mount {
            mounter.mount(bucket, store.dir);
            // Whether it comes up is its own business, which its state tells.
            let _ = services.start(s3fs::SERVICE).await;
        }
    }
}

/// A thread of its own, since it blocks; it ends when the place is known.
fn watch_mounts(place: Weak<Place>, config: Config) {
    let look = move || {
        while let Some(place) = place.upgrade().filter(|place| !place.is_known()) {
            match config.late(Env::default()) {
                Ok(seen) if seen.store.durable => place.settle(seen.store),
                Ok(_) => {}
                Err(problems) => return tracing::error!(%problems, "the mounts are not watched"),
            }
            drop(place);
            mounts::wait_for_change(LOOK);
        }
    };
    if let Err(error) = thread::Builder::new().name("store-place".into()).spawn(look) {
        tracing::error!(%error, "no thread to watch the mounts on");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::config::{Machine, load};

    fn config(env: &[(&str, &str)]) -> Config {
        let machine = Machine {
            home: "/home/a".into(),
            store_is_mounted: false,
            has_sandbox_server: true,
            has_legacy_workspace: false,
        };
        load(None, env.iter().copied().collect(), &machine).unwrap()
    }

    #[test]
    fn a_store_that_is_named_is_known_whoever_may_come() {
        for may_be_told in [false, true] {
            assert!(Place::of(&config(&[("MOLTINIT_STORE", "/a")]), may_be_told).is_known());
        }
        assert!(Place::of(&config(&[]), false).is_known());
    }

    #[test]
    fn one_that_nobody_named_is_known_when_somebody_does_and_stays() {
        let nobody = config(&[]);
        let place = Place::of(&nobody, true);
        assert!(place.known().now_or_never().is_none());
        place.settle(config(&[("MOLTINIT_STORE", "/a")]).store);
        place.settle(nobody.store);
        assert_eq!(place.known().now_or_never().unwrap().dir.to_str(), Some("/a"));
    }
}
