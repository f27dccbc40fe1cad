//! Chat channels. Their tokens stay in the environment, where both generations look for them.

use serde_json::Value;

use super::{
    super::{
        settings::{DmPolicy, GatewaySettings},
        version::Generation,
    },
    editor::Editor,
};

const IN_ENVIRONMENT: &str = "the environment has it";
const REFUSED: &str = "this version of the gateway refuses it here";

/// Where a channel keeps who may write to it.
struct Direct<'a> {
    policy: &'a [&'a str],
    allow_from: &'a [&'a str],
}

const FLAT_TELEGRAM: Direct<'static> = Direct {
    policy: &["channels", "telegram", "dmPolicy"],
    allow_from: &["channels", "telegram", "allowFrom"],
};
const FLAT_DISCORD: Direct<'static> = Direct {
    policy: &["channels", "discord", "dmPolicy"],
    allow_from: &["channels", "discord", "allowFrom"],
};
const NESTED_DISCORD: Direct<'static> = Direct {
    policy: &["channels", "discord", "dm", "policy"],
    allow_from: &["channels", "discord", "dm", "allowFrom"],
};

pub fn patch(editor: &mut Editor, settings: &GatewaySettings, generation: Generation) {
    // Telegram never had a nested form, but backups have brought it, and a gateway does not start with it.
    flatten(editor, "telegram");
    for channel in ["discord", "slack"] {
        match generation {
            Generation::Early => nest(editor, channel),
            Generation::Current => flatten(editor, channel),
        }
    }
    if let Some(telegram) = &settings.telegram {
        editor.lend_default(&["channels", "telegram", "enabled"], true);
        editor.remove(&["channels", "telegram", "botToken"], IN_ENVIRONMENT);
        direct(editor, &FLAT_TELEGRAM, telegram.policy, &telegram.allow_from);
    }
    if let Some(discord) = &settings.discord {
        editor.lend_default(&["channels", "discord", "enabled"], true);
        editor.remove(&["channels", "discord", "token"], IN_ENVIRONMENT);
        let place = match generation {
            Generation::Early => &NESTED_DISCORD,
            Generation::Current => &FLAT_DISCORD,
        };
        direct(editor, place, discord.policy, &[]);
    }
    if settings.slack.is_some() {
        editor.lend_default(&["channels", "slack", "enabled"], true);
        editor.remove(&["channels", "slack", "botToken"], IN_ENVIRONMENT);
        editor.remove(&["channels", "slack", "appToken"], IN_ENVIRONMENT);
    }
}

fn flatten(editor: &mut Editor, channel: &str) {
    let dm = ["channels", channel, "dm"];
    for (nested, flat) in [("policy", "dmPolicy"), ("allowFrom", "allowFrom")] {
        editor.rename(&[dm[0], dm[1], dm[2], nested], &[dm[0], dm[1], flat], REFUSED);
    }
    if channel == "telegram" {
        editor.remove(&dm, REFUSED);
    } else {
        editor.prune(&dm, REFUSED);
    }
}

fn nest(editor: &mut Editor, channel: &str) {
    for (flat, nested) in [("dmPolicy", "policy"), ("allowFrom", "allowFrom")] {
        editor.rename(
            &["channels", channel, flat],
            &["channels", channel, "dm", nested],
            REFUSED,
        );
    }
}

/// Sets who may write to the agent.
///
/// A policy that is not asked for any more must not leave the agent open to everyone, so `open` needs to be asked for
/// at every boot; any other policy in the file stands.
fn direct(editor: &mut Editor, place: &Direct<'_>, policy: Option<DmPolicy>, allow_from: &[String]) {
    const EVERYONE: &str = "*";
    let open = DmPolicy::Open.name();
    match policy {
        Some(policy) => editor.set(place.policy, policy.name()),
        None if editor.text(place.policy) == Some(open) => editor.set(place.policy, DmPolicy::Pairing.name()),
        None => {}
    }
    let is_open = editor.text(place.policy) == Some(open);
    // Entries may be numbers.
    let known = editor.get(place.allow_from).and_then(Value::as_array).cloned();
    let mut list: Vec<Value> = if allow_from.is_empty() {
        known.clone().unwrap_or_default()
    } else {
        allow_from.iter().map(|entry| entry.as_str().into()).collect()
    };
    let everyone = Value::from(EVERYONE);
    let asked_for = allow_from.iter().any(|entry| entry == EVERYONE);
    if is_open && !list.contains(&everyone) {
        list.push(everyone);
    } else if !is_open && !asked_for {
        list.retain(|entry| *entry != everyone);
    }
    if known.is_some() || !list.is_empty() {
        editor.set(place.allow_from, list);
    }
}
