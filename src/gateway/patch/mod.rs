//! The gateway's configuration as the environment wants it: a pure function of the document, the settings and the
//! generation that will read it.
//!
//! Only keys that the environment decides are touched; everything else stays, in its order. Applied twice it changes
//! nothing the second time. Keys that are known to keep a generation from starting are dropped or moved, and every
//! change says so.

mod access;
mod browser;
mod channels;
mod editor;
mod models;

#[cfg(test)]
mod tests;

use serde_json::Value;

use self::editor::Editor;
use super::{settings::GatewaySettings, version::Generation};

pub use editor::{Change, Kind};

/// Gives the document with the settings in it, and what that changed.
pub fn patch(document: Value, settings: &GatewaySettings, generation: Generation) -> (Value, Vec<Change>) {
    let mut editor = Editor::new(document);
    access::patch(&mut editor, settings, generation);
    models::patch(&mut editor, settings, generation);
    channels::patch(&mut editor, settings, generation);
    browser::patch(&mut editor, settings, generation);
    editor.finish()
}
