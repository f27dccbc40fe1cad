//! The browser: a profile of our own that points at the local CDP port.

use serde_json::json;

use super::{
    super::{settings::GatewaySettings, version::Generation},
    editor::Editor,
};

/// Name of our profile; lower case, as the early generation wants it.
const PROFILE: &str = "moltinit";
const GONE: &str = "there is no browser upstream";

pub fn patch(editor: &mut Editor, settings: &GatewaySettings, generation: Generation) {
    if generation == Generation::Current {
        for profile in editor.keys(&["browser", "profiles"]) {
            editor.remove(
                &["browser", "profiles", &profile, "color"],
                "this version of the gateway refuses it",
            );
        }
    }
    let ours = ["browser", "profiles", PROFILE];
    let Some(browser) = &settings.browser else {
        if editor.remove(&ours, GONE).is_some() {
            editor.prune(&["browser", "profiles"], GONE);
        }
        if editor.text(&["browser", "defaultProfile"]) == Some(PROFILE) {
            editor.remove(&["browser", "defaultProfile"], GONE);
        }
        return;
    };
    // Without `attachOnly` a loopback address is taken for a browser that the gateway may start and end. The early
    // generation knows it for all profiles together only.
    let cdp_url = browser.url();
    match generation {
        Generation::Early => {
            editor.set(&ours, json!({ "cdpUrl": cdp_url, "color": "#F6821F" }));
            editor.lend(&["browser", "attachOnly"], true);
        }
        Generation::Current => editor.set(&ours, json!({ "cdpUrl": cdp_url, "attachOnly": true })),
    }
    editor.default(&["browser", "defaultProfile"], PROFILE);
}
