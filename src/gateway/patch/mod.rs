//! The gateway's configuration as the environment wants it: a pure function of the document, the settings and the
//! generation that will read it.
//!
//! Only keys that the environment decides are touched; everything else stays, in its order. What it asked for once and
//! does not any more goes again. Applied twice it changes nothing the second time. Keys that are known to keep a generation from starting are dropped or moved, and every
//! change says so.

mod access;
mod browser;
mod changes;
mod channels;
mod editor;
mod models;
mod written;

#[cfg(test)]
mod tests;

use serde_json::Value;

use self::editor::Editor;
use super::{settings::GatewaySettings, version::Generation};

pub use self::{
    changes::{Change, Kind},
    editor::Patched,
    written::Written,
};

/// Gives the document with the settings in it, and what that changed. `earlier` is what earlier boots have written into
/// it.
pub fn patch(document: Value, earlier: &Written, settings: &GatewaySettings, generation: Generation) -> Patched {
    let mut editor = Editor::new(document, earlier);
    access::patch(&mut editor, settings, generation);
    models::patch(&mut editor, settings, generation);
    channels::patch(&mut editor, settings, generation);
    browser::patch(&mut editor, settings, generation);
    editor.finish()
}

/// No more of the settings than it takes to reach the gateway; all else is as it was.
pub fn patch_access(document: Value, earlier: &Written, settings: &GatewaySettings, generation: Generation) -> Patched {
    let mut editor = Editor::new(document, &Written::default());
    access::patch(&mut editor, settings, generation);
    Patched {
        written: earlier.clone(),
        ..editor.finish()
    }
}
