//! What a gateway finds in its environment beside what the supervisor itself was given.

use std::{collections::BTreeMap, path::PathBuf};

use crate::config::env::Env;

use super::{
    places::Places,
    settings::{Browser, GatewaySettings, Route},
};

/// Variables to set and to take away, over the supervisor's own. Values may be secrets, so it does not print them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChildEnv {
    pub set: BTreeMap<String, String>,
    pub unset: Vec<String>,
}

impl ChildEnv {
    /// The whole environment of a process that has this over `env`.
    pub fn over(&self, env: &Env) -> BTreeMap<String, String> {
        let mut whole: BTreeMap<String, String> = env
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        whole.retain(|name, _| !self.unset.contains(name));
        whole.extend(self.set.clone());
        whole
    }
}

impl std::fmt::Debug for ChildEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildEnv")
            .field("set", &self.set.keys())
            .field("unset", &self.unset)
            .finish()
    }
}

/// They make a gateway believe that systemd looks after it.
const OF_SYSTEMD: [&str; 4] = [
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "OPENCLAW_SYSTEMD_UNIT",
];

/// They would have it look for its state or the agent's files where nobody takes snapshots of them.
const ELSEWHERE: [&str; 3] = ["OPENCLAW_HOME", "OPENCLAW_PROFILE", "OPENCLAW_WORKSPACE_DIR"];

/// Ours alone: whoever has them can read, forge or destroy the agent's history, and an agent may run what a stranger
/// has written to it.
const OURS: [&str; 7] = [
    "MOLTINIT_KEY",
    "MOLTINIT_ADMIN_TOKEN",
    "MOLTINIT_CALLBACK_SECRET",
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
    "CF_BROWSER_TOKEN",
    "MOLTBOT_GATEWAY_TOKEN",
];

/// Secrets that a gateway reads from its environment.
const PASSED_ON: [&str; 7] = [
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "CLOUDFLARE_AI_GATEWAY_API_KEY",
    "TELEGRAM_BOT_TOKEN",
    "DISCORD_BOT_TOKEN",
    "SLACK_BOT_TOKEN",
    "SLACK_APP_TOKEN",
];

/// Variables by which a gateway may know a provider or a channel of which we know nothing, with their values.
pub fn keys(env: &Env) -> BTreeMap<String, String> {
    const ENDINGS: [&str; 5] = ["_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_URL"];
    let are_keys = |name: &str| ENDINGS.iter().any(|ending| name.ends_with(ending)) && !OURS.contains(&name);
    let named = env.iter().filter(|(name, _)| are_keys(name));
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The environment of a gateway in these places.
pub fn child_env(env: &Env, settings: &GatewaySettings, places: &Places) -> ChildEnv {
    let mut set = BTreeMap::new();
    let mut put = |name: &str, value: &str| {
        set.insert(name.to_owned(), value.to_owned());
    };
    // They may have come by file, or later than this process's environment.
    for name in PASSED_ON {
        if let Some(value) = env.get(name) {
            put(name, value);
        }
    }
    if let Some(token) = &settings.token {
        put("OPENCLAW_GATEWAY_TOKEN", token.expose());
    }
    match &settings.route {
        Some(Route::Anthropic { key, base_url }) => {
            put("ANTHROPIC_API_KEY", key.expose());
            if let Some(url) = base_url {
                put("ANTHROPIC_BASE_URL", url);
            }
        }
        Some(Route::OpenAi { key, base_url }) => {
            put("OPENAI_API_KEY", key.expose());
            if let Some(url) = base_url {
                put("OPENAI_BASE_URL", url);
            }
        }
        Some(Route::AiGateway(_)) | None => {}
    }
    // They may have come by file; the browser skill asks for them.
    if let Some(Browser { addr, token }) = &settings.browser {
        put("MOLTINIT_CDP_ADDR", &addr.to_string());
        if let Some(token) = token {
            put("MOLTINIT_CDP_TOKEN", token.expose());
        }
    }
    // What was attached has a `HOME` of its own.
    for (name, place) in [
        ("HOME", &places.home),
        ("OPENCLAW_STATE_DIR", &places.state_dir),
        ("OPENCLAW_CONFIG_PATH", &places.config),
    ] {
        put(name, &place.to_string_lossy());
    }
    // One process, which leaves restarts, updates and repairs of itself to us.
    put("OPENCLAW_NO_RESPAWN", "1");
    put("OPENCLAW_SUPERVISOR_MODE", "external");
    put("OPENCLAW_SERVICE_REPAIR_POLICY", "external");
    put("NODE_COMPILE_CACHE", &compile_cache(env, places).to_string_lossy());
    // Node has opened the cache already; without this the gateway's launcher starts a second Node to move it.
    put("OPENCLAW_PACKAGED_COMPILE_CACHE_RESPAWNED", "1");
    let by_file = |name: &&str| format!("{name}_FILE");
    let unset = OF_SYSTEMD.iter().chain(&ELSEWHERE).chain(&OURS);
    let unset = unset.map(|name| (*name).to_owned());
    let unset = unset
        .chain(OURS.iter().map(by_file))
        .chain(["MOLTINIT_CDP_TOKEN_FILE".to_owned()])
        .collect();
    ChildEnv { set, unset }
}

/// Where Node keeps what it has compiled of the gateway: where an image brings it, or beside our own data.
pub fn compile_cache(env: &Env, places: &Places) -> PathBuf {
    env.get("NODE_COMPILE_CACHE")
        .map_or_else(|| places.compile_cache.clone(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::secret::Secret;

    fn of(env: &[(&str, &str)]) -> ChildEnv {
        let env: Env = env.iter().copied().collect();
        let settings = GatewaySettings::of_env(&env).unwrap();
        let places = Places::new(&[("HOME", "/root")].into_iter().collect(), Path::new("/state"), &[]);
        child_env(&env, &settings, &places)
    }

    #[test]
    fn the_older_names_become_the_gateways_own() {
        let child = of(&[
            ("MOLTBOT_GATEWAY_TOKEN", "t0k3n"),
            ("AI_GATEWAY_API_KEY", "key"),
            ("AI_GATEWAY_BASE_URL", "https://proxy.example/anthropic"),
        ]);
        for (name, value) in [
            ("OPENCLAW_GATEWAY_TOKEN", "t0k3n"),
            ("ANTHROPIC_API_KEY", "key"),
            ("ANTHROPIC_BASE_URL", "https://proxy.example/anthropic"),
            ("OPENCLAW_NO_RESPAWN", "1"),
            ("OPENCLAW_SUPERVISOR_MODE", "external"),
            ("NODE_COMPILE_CACHE", "/tmp/node-compile-cache"),
        ] {
            assert_eq!(child.set.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn nobody_moves_the_state_away_from_its_snapshots() {
        let attached = [
            ("HOME", "/elsewhere"),
            ("OPENCLAW_HOME", "/elsewhere"),
            ("OPENCLAW_STATE_DIR", "/elsewhere"),
            ("OPENCLAW_CONFIG_PATH", "/elsewhere/openclaw.json"),
            ("OPENCLAW_WORKSPACE_DIR", "/elsewhere"),
        ];
        let whole = of(&attached).over(&attached.into_iter().collect());
        assert!(
            !whole.values().any(|value| value.starts_with("/elsewhere")),
            "{whole:?}"
        );
        for (name, place) in [
            ("HOME", "/root"),
            ("OPENCLAW_STATE_DIR", "/state"),
            ("OPENCLAW_CONFIG_PATH", "/state/openclaw.json"),
        ] {
            assert_eq!(whole[name], place);
        }
    }

    #[test]
    fn what_an_image_brings_compiled_is_used() {
        assert_eq!(
            of(&[("NODE_COMPILE_CACHE", "/image")]).set["NODE_COMPILE_CACHE"],
            "/image"
        );
    }

    #[test]
    fn the_browser_skill_finds_the_port_and_its_token() {
        let env = Env::default();
        let mut settings = GatewaySettings::of_env(&env).unwrap();
        settings.browser = Some(Browser {
            addr: ([127, 0, 0, 1], 9222).into(),
            token: Some(Secret::new("local-token".to_owned())),
        });
        let places = Places::new(&[("HOME", "/root")].into_iter().collect(), Path::new("/state"), &[]);
        let child = child_env(&env, &settings, &places);
        assert_eq!(child.set["MOLTINIT_CDP_ADDR"], "127.0.0.1:9222");
        assert_eq!(child.set["MOLTINIT_CDP_TOKEN"], "local-token");
    }

    #[test]
    fn a_whole_environment_has_it_over_the_supervisors() {
        let env: Env = [("INVOCATION_ID", "x"), ("HOME", "/root"), ("OPENCLAW_NO_RESPAWN", "")]
            .into_iter()
            .collect();
        let whole = of(&[]).over(&env);
        assert_eq!(whole["HOME"], "/root");
        assert_eq!(whole["OPENCLAW_NO_RESPAWN"], "1");
        assert!(!whole.contains_key("INVOCATION_ID"));
    }

    #[test]
    fn the_agent_does_not_get_the_keys_to_its_history() {
        let child = of(&[
            ("R2_SECRET_ACCESS_KEY", "r2"),
            ("MOLTINIT_KEY", "k"),
            ("ANTHROPIC_API_KEY", "a"),
        ]);
        assert_eq!(child.set.get("ANTHROPIC_API_KEY").map(String::as_str), Some("a"));
        for name in [
            "R2_SECRET_ACCESS_KEY",
            "MOLTINIT_KEY",
            "MOLTINIT_KEY_FILE",
            "INVOCATION_ID",
        ] {
            assert!(
                !child.set.contains_key(name) && child.unset.iter().any(|unset| unset == name),
                "{name}"
            );
        }
        assert!(!format!("{child:?}").contains("\"a\""));
    }
}
