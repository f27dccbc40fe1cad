//! Who reaches the gateway and how: port, authentication, proxies, control UI; and where the agent works.

use super::{
    super::{settings::GatewaySettings, version::Generation},
    editor::Editor,
};
use crate::config::Workspace;

/// Where the requests of a Cloudflare Worker come from, as moltworker has it. An exact address, since the early
/// generation takes no ranges.
const PLATFORM_PROXY: &str = "10.1.0.0";

pub fn patch(editor: &mut Editor, settings: &GatewaySettings, generation: Generation) {
    editor.rename(
        &["gateway", "token"],
        &["gateway", "auth", "token"],
        "the gateway refuses it here; it belongs into gateway.auth",
    );
    // Without it the gateway takes itself for unconfigured and does not start.
    editor.set(&["gateway", "mode"], "local");
    editor.set(&["gateway", "port"], settings.port);
    editor.default(&["gateway", "bind"], settings.bind.as_str());
    if settings.token.is_some() {
        // One in the file would win over the environment's.
        editor.remove(&["gateway", "auth", "token"], "the environment has it");
        editor.default(&["gateway", "auth", "mode"], "token");
    }
    add(editor, &["gateway", "trustedProxies"], PLATFORM_PROXY);
    if let Some(origin) = &settings.origin {
        add(editor, &["gateway", "controlUi", "allowedOrigins"], origin);
    }
    match generation {
        Generation::Early if settings.dev_mode => editor.lend(&["gateway", "controlUi", "allowInsecureAuth"], true),
        Generation::Early => {}
        Generation::Current => {
            for key in ["allowInsecureAuth", "dangerouslyDisableDeviceAuth"] {
                editor.remove(&["gateway", "controlUi", key], "this version of the gateway refuses it");
            }
        }
    }
    const WORKSPACE: [&str; 3] = ["agents", "defaults", "workspace"];
    match &settings.workspace {
        Some(Workspace::Named(path)) => editor.set(&WORKSPACE, path.to_string_lossy()),
        Some(Workspace::Default(path)) => editor.default(&WORKSPACE, path.to_string_lossy()),
        None => {}
    }
}

/// Adds an entry to a list that does not have it.
fn add(editor: &mut Editor, path: &[&str], entry: &str) {
    let mut list = editor.texts(path);
    if !list.iter().any(|known| known == entry) {
        list.push(entry.to_owned());
        editor.set(path, list);
    }
}
