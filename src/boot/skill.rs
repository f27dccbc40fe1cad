//! The browser skill, put where the agent works.

use std::path::Path;

use tracing::{info, warn};

use crate::browser::skill::{self, Outcome};

/// Puts it there, unless somebody has changed the one that is there. The agent can do without.
pub fn put(workspace: &Path) {
    match skill::install(workspace) {
        Ok(Outcome::UpToDate) => {}
        Ok(Outcome::Installed) => info!("the browser skill is in {}", skill::directory(workspace).display()),
        Ok(Outcome::Kept(path)) => info!("the browser skill stays as it is: {path} has been changed"),
        Err(error) => warn!("{error}"),
    }
}
