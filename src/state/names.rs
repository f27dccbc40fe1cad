//! What the objects of a history are called.
//!
//! `<instance>/v1/<generation>/<group>/<seq>.seg`, a generation's directory being its ULID, followed by `.from.` and its
//! base if it has one; a group is a hundred commits, so that no listing is long.

use ulid::Ulid;

use super::model::CommitId;
use crate::store::{Item, Store, StoreError};

const GROUP: u64 = 100;
const FROM: &str = ".from.";
/// Name of the empty object of a generation that was begun and has committed nothing yet.
pub const BEGUN: &str = "begun";
/// Start of the name of the empty object that says when the history was last looked through.
pub const PRUNED: &str = "pruned.";

/// The directory of an instance's history.
pub fn instance_dir(instance: &str) -> String {
    format!("{instance}/v1")
}

/// Whether a directory at the top of a store is an instance's: there is a generation in it.
pub fn is_instance(store: &Store, name: &str) -> Result<bool, StoreError> {
    if !store.list(name)?.iter().any(|item| item.is_dir && item.name == "v1") {
        return Ok(false);
    }
    let generations = store.list(&instance_dir(name))?;
    Ok(generations
        .iter()
        .any(|item| item.is_dir && parse_generation(&item.name).is_some()))
}

pub fn generation(id: Ulid, base: Option<CommitId>) -> String {
    let from = base.map(|base| format!("{FROM}{base}")).unwrap_or_default();
    format!("{id}{from}")
}

/// A generation and its base, if the name is one that [`generation`] gives.
pub fn parse_generation(name: &str) -> Option<(Ulid, Option<CommitId>)> {
    let (id, base) = match name.split_once(FROM) {
        None => (name.parse().ok()?, None),
        Some((id, base)) => (id.parse().ok()?, Some(base.parse().ok()?)),
    };
    (generation(id, base) == name).then_some((id, base))
}

/// The directory that commit `seq` of a generation is in.
pub fn group(seq: u64) -> String {
    format!("{:06}", seq / GROUP)
}

/// The object of commit `seq` in its group.
pub fn object(seq: u64) -> String {
    format!("{seq:08}.seg")
}

/// The number of the commit, if the name is one that [`object`] gives and the group is its.
pub fn parse_object(group: &str, item: &Item) -> Option<u64> {
    let stem = item.name.strip_suffix(".seg").filter(|_| !item.is_dir)?;
    let seq = stem.parse().ok()?;
    (group == self::group(seq) && item.name == object(seq)).then_some(seq)
}
