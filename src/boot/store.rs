//! The configured store, opened.

use crate::{
    config,
    state::{crypt::Key, history::History},
    store::{Expect, Patience, Store, StoreError},
};

/// Opens the store for a boot: a plain directory is made if it is missing, a mount has to be there. What it is on now it
/// has to stay on.
///
/// Blocks for as long as the store does, up to its patience; deriving a key takes a good part of a second.
///
/// # Errors
/// The store does not answer, or is not what it has to be.
pub fn open(config: &config::Store) -> Result<History, StoreError> {
    let expect = config
        .mount_point()
        .map_or(Expect::Directory, |point| Expect::MountAt(point.to_owned()));
    open_as(config, expect)
}

/// Opens the store for a look at it: nothing is made.
///
/// # Errors
/// As [`open`], and when there is no such directory.
pub fn open_existing(config: &config::Store) -> Result<History, StoreError> {
    open_as(config, Expect::Existing)
}

fn open_as(config: &config::Store, expect: Expect) -> Result<History, StoreError> {
    let store = Store::open(&config.dir, expect, Patience::default());
    store.check()?;
    let key = config
        .key
        .as_ref()
        .map(|key| Key::derive(key.expose(), &config.instance));
    History::open(store, &config.instance, key)
}
