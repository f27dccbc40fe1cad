//! The configured store, opened.

use std::path::{Path, PathBuf};

use crate::{
    config,
    state::{crypt::Key, history::History},
    store::{Expect, Patience, Store, StoreError, mounts},
};

/// Opens the store for a boot: a plain directory is made if it is missing, a mount has to be there.
///
/// Blocks for as long as the store does, up to its patience; deriving a key takes a good part of a second.
///
/// # Errors
/// The store does not answer, or is not what it has to be.
pub fn open(config: &config::Store) -> Result<History, StoreError> {
    let expect = match mount_point(&config.dir) {
        Some(point) => Expect::MountAt(point),
        None if config.must_be_mount => Expect::MountAt(config.dir.clone()),
        None => Expect::Directory,
    };
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

/// The mount that a store in `dir` is on, if it is one of its own and not the root file system. A store that was on a
/// mount at boot has to stay on it.
fn mount_point(dir: &Path) -> Option<PathBuf> {
    let present = dir.ancestors().find_map(|above| mounts::covering(above).ok())?;
    (present.point != Path::new("/")).then_some(present.point)
}
