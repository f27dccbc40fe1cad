use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::{env::Env, secret::Secret},
    gateway::settings::Browser,
};

use Generation::{Current, Early};

fn settings(env: &[(&str, &str)]) -> GatewaySettings {
    GatewaySettings::of_env(&env.iter().copied().collect::<Env>()).unwrap()
}

fn patched(document: Value, env: &[(&str, &str)], generation: Generation) -> Value {
    patch(document, &Written::default(), &settings(env), generation).value
}

fn changes(document: Value, env: &[(&str, &str)], generation: Generation) -> Vec<String> {
    let patched = patch(document, &Written::default(), &settings(env), generation);
    patched.changes.iter().map(Change::to_string).collect()
}

const AI_GATEWAY: [(&str, &str); 3] = [
    ("CLOUDFLARE_AI_GATEWAY_API_KEY", "cf-secret-key"),
    ("CF_AI_GATEWAY_ACCOUNT_ID", "acct"),
    ("CF_AI_GATEWAY_GATEWAY_ID", "gw"),
];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    AI_GATEWAY.iter().chain(more).copied().collect()
}

#[test]
fn a_first_boot_gets_what_a_gateway_needs_to_start() {
    let made = patched(
        json!({}),
        &[("WORKER_URL", "https://agent.example.workers.dev/x")],
        Current,
    );
    assert_eq!(
        made,
        json!({
            "gateway": {
                "mode": "local",
                "port": 18789,
                "bind": "lan",
                "trustedProxies": ["10.1.0.0"],
                "controlUi": { "allowedOrigins": ["https://agent.example.workers.dev"] },
            },
        })
    );
}

#[test]
fn a_token_in_the_file_does_not_win_over_the_environments() {
    let file = json!({ "gateway": { "auth": { "mode": "token", "token": "old" } } });
    let made = patched(file, &[("OPENCLAW_GATEWAY_TOKEN", "new-token")], Current);
    assert_eq!(made["gateway"]["auth"], json!({ "mode": "token" }));
    assert!(!made.to_string().contains("new-token"));
}

#[test]
fn moltworkers_model_setting_makes_a_provider_and_the_default() {
    let env = with(&[("CF_AI_GATEWAY_MODEL", "workers-ai/@cf/meta/llama")]);
    let made = patched(json!({}), &env, Current);
    assert_eq!(
        made["models"]["providers"]["cf-ai-gw-workers-ai"],
        json!({
            "baseUrl": "https://gateway.ai.cloudflare.com/v1/acct/gw/workers-ai/v1",
            "apiKey": "${CLOUDFLARE_AI_GATEWAY_API_KEY}",
            "api": "openai-completions",
            "models": [{ "id": "@cf/meta/llama", "name": "@cf/meta/llama", "contextWindow": 131072, "maxTokens": 8192 }],
        })
    );
    assert_eq!(
        made["agents"]["defaults"]["model"]["primary"],
        "cf-ai-gw-workers-ai/@cf/meta/llama"
    );
    let early = patched(json!({}), &env, Early);
    assert_eq!(
        early["models"]["providers"]["cf-ai-gw-workers-ai"]["apiKey"],
        "cf-secret-key"
    );
}

#[test]
fn an_ai_gateway_without_a_model_gets_one_and_keeps_it() {
    let made = patched(json!({}), &AI_GATEWAY, Current);
    let model = &made["agents"]["defaults"]["model"]["primary"];
    assert_eq!(model, "cf-ai-gw-anthropic/claude-sonnet-4-5");
    let provider = &made["models"]["providers"]["cf-ai-gw-anthropic"];
    assert_eq!(provider["api"], "anthropic-messages");
    assert_eq!(patched(made.clone(), &AI_GATEWAY, Current), made);

    // What somebody has chosen stays.
    let chosen = json!({ "agents": { "defaults": { "model": "anthropic/claude-opus-5" } } });
    let made = patched(chosen, &AI_GATEWAY, Current);
    assert_eq!(
        made["agents"]["defaults"]["model"],
        json!({ "primary": "anthropic/claude-opus-5" })
    );
    assert_eq!(made.get("models"), None);
}

#[test]
fn fallbacks_go_through_the_gateway_where_it_reaches_them() {
    let fallbacks = ("MOLTINIT_MODEL_FALLBACKS", "anthropic/claude-sonnet-4-5, openai/gpt-4o");
    let made = patched(
        json!({}),
        &with(&[("CF_AI_GATEWAY_MODEL", "openai/gpt-5.2"), fallbacks]),
        Current,
    );
    assert_eq!(
        made["agents"]["defaults"]["model"],
        json!({
            "primary": "cf-ai-gw-openai/gpt-5.2",
            "fallbacks": ["cf-ai-gw-anthropic/claude-sonnet-4-5", "cf-ai-gw-openai/gpt-4o"],
        })
    );
    let models = &made["models"]["providers"]["cf-ai-gw-openai"]["models"];
    assert_eq!(models.as_array().unwrap().len(), 2);

    let direct = patched(json!({}), &[("ANTHROPIC_API_KEY", "k"), fallbacks], Current);
    assert_eq!(
        direct["agents"]["defaults"]["model"]["fallbacks"],
        json!(["anthropic/claude-sonnet-4-5", "openai/gpt-4o"])
    );
}

#[test]
fn what_an_earlier_boot_made_goes_with_its_setting() {
    let env = with(&[
        ("CF_AI_GATEWAY_MODEL", "openai/gpt-4o"),
        ("MOLTINIT_MODEL_FALLBACKS", "anthropic/claude-sonnet-4-5"),
    ]);
    let mut made = patched(
        json!({ "models": { "providers": { "mine": { "baseUrl": "http://m" } } } }),
        &env,
        Current,
    );
    made["agents"]["defaults"]["models"] = json!({ "cf-ai-gw-openai/gpt-4o": {}, "mine/m": {} });
    let direct = patched(made.clone(), &[("ANTHROPIC_API_KEY", "k")], Current);
    assert_eq!(
        direct["models"]["providers"],
        json!({ "mine": { "baseUrl": "http://m" } })
    );
    assert_eq!(
        direct["agents"]["defaults"]["model"],
        json!({ "fallbacks": [], "primary": "anthropic/claude-opus-5" })
    );
    assert_eq!(direct["agents"]["defaults"]["models"], json!({ "mine/m": {} }));

    let env = with(&[("CF_AI_GATEWAY_MODEL", "google/gemini")]);
    let other = patched(made, &env, Current);
    let mut providers: Vec<_> = other["models"]["providers"].as_object().unwrap().keys().collect();
    providers.sort();
    assert_eq!(providers, ["cf-ai-gw-google", "mine"]);
}

/// The settings of one boot after those of another, on what that one made.
fn after(
    first: &[(&str, &str)],
    change: impl FnOnce(&mut Value),
    then: &[(&str, &str)],
    generation: Generation,
) -> Value {
    let mut had = patch(json!({}), &Written::default(), &settings(first), generation);
    change(&mut had.value);
    patch(had.value, &had.written, &settings(then), generation).value
}

#[test]
fn what_the_environment_asked_for_once_goes_when_it_does_not_any_more() {
    let model = |value: &Value| value["agents"]["defaults"]["model"].clone();
    let anthropic = ("ANTHROPIC_API_KEY", "k");
    let fallbacks = ("MOLTINIT_MODEL_FALLBACKS", "openai/gpt-4o");
    let unchanged = |_: &mut Value| {};
    let now = after(&[anthropic, fallbacks], unchanged, &[anthropic], Current);
    assert_eq!(model(&now), json!({ "primary": "anthropic/claude-opus-5" }));
    // Our own choice for one provider is none for another.
    let now = after(&[anthropic], unchanged, &[("OPENAI_API_KEY", "k")], Current);
    assert_eq!(now.get("agents"), None);
    let now = after(&[anthropic], unchanged, &AI_GATEWAY, Current);
    assert_eq!(
        model(&now),
        json!({ "primary": "cf-ai-gw-anthropic/claude-sonnet-4-5" })
    );
    let now = after(&[("OPENCLAW_DEV_MODE", "true")], unchanged, &[], Early);
    assert_eq!(now["gateway"].get("controlUi"), None);
    let now = after(&[("DISCORD_BOT_TOKEN", "discord-token")], unchanged, &[], Current);
    assert_eq!(now.get("channels"), None);

    // What somebody has changed since is theirs.
    let chosen = |value: &mut Value| value["agents"]["defaults"]["model"]["primary"] = json!("openai/gpt-5.2");
    let now = after(&[anthropic, fallbacks], chosen, &AI_GATEWAY, Current);
    assert_eq!(model(&now), json!({ "primary": "openai/gpt-5.2" }));
}

#[test]
fn what_was_there_before_the_environment_asked_for_it_stays() {
    let file = json!({ "agents": { "defaults": { "model": { "primary": "anthropic/claude-opus-5" } } } });
    let had = patch(
        file.clone(),
        &Written::default(),
        &settings(&[("ANTHROPIC_API_KEY", "k")]),
        Current,
    );
    let now = patch(had.value, &had.written, &settings(&[]), Current);
    assert_eq!(now.value["agents"], file["agents"]);
}

#[test]
fn a_base_url_is_set_and_goes_away_again() {
    let env = [
        ("ANTHROPIC_API_KEY", "k"),
        ("ANTHROPIC_BASE_URL", "https://proxy.example/ant/"),
    ];
    let made = patched(json!({}), &env, Current);
    let entry = json!({ "baseUrl": "https://proxy.example/ant", "models": [] });
    assert_eq!(made["models"]["providers"]["anthropic"], entry);
    let without = patched(made, &[("ANTHROPIC_API_KEY", "k")], Current);
    assert_eq!(without["models"]["providers"], json!({}));
}

#[test]
fn channels_of_both_generations() {
    let env = [
        ("TELEGRAM_BOT_TOKEN", "telegram-token"),
        ("TELEGRAM_DM_POLICY", "open"),
        ("DISCORD_BOT_TOKEN", "discord-token"),
        ("DISCORD_DM_POLICY", "open"),
        ("SLACK_BOT_TOKEN", "slack-bot-token"),
        ("SLACK_APP_TOKEN", "slack-app-token"),
    ];
    let current = patched(json!({}), &env, Current)["channels"].take();
    assert_eq!(
        current,
        json!({
            "telegram": { "enabled": true, "dmPolicy": "open", "allowFrom": ["*"] },
            "discord": { "enabled": true, "dmPolicy": "open", "allowFrom": ["*"] },
            "slack": { "enabled": true },
        })
    );
    let early = patched(json!({}), &env, Early)["channels"].take();
    assert_eq!(
        early["discord"],
        json!({ "enabled": true, "dm": { "policy": "open", "allowFrom": ["*"] } })
    );
    // From one to the other and back.
    let there = patched(json!({ "channels": early.clone() }), &env, Current)["channels"].take();
    assert_eq!(there, current);
    let back = patched(json!({ "channels": there }), &env, Early)["channels"].take();
    assert_eq!(back, early);
}

#[test]
fn nobody_is_let_in_by_a_policy_that_is_not_asked_for_any_more() {
    let open = [("TELEGRAM_BOT_TOKEN", "telegram-token"), ("TELEGRAM_DM_POLICY", "open")];
    let made = patched(json!({}), &open, Current);
    let closed = patched(made, &[("TELEGRAM_BOT_TOKEN", "telegram-token")], Current);
    assert_eq!(
        closed["channels"]["telegram"],
        json!({ "enabled": true, "dmPolicy": "pairing", "allowFrom": [] })
    );
    let own = json!({ "channels": { "telegram": { "dmPolicy": "allowlist", "allowFrom": [12345, "67"] } } });
    let kept = patched(own.clone(), &[("TELEGRAM_BOT_TOKEN", "telegram-token")], Current);
    assert_eq!(kept["channels"]["telegram"]["allowFrom"], json!([12345, "67"]));
    assert_eq!(kept["channels"]["telegram"]["dmPolicy"], "allowlist");
    let listed = [
        ("TELEGRAM_BOT_TOKEN", "telegram-token"),
        ("TELEGRAM_DM_ALLOW_FROM", "1, @two"),
    ];
    let listed = patched(own, &listed, Current);
    assert_eq!(listed["channels"]["telegram"]["allowFrom"], json!(["1", "@two"]));
}

#[test]
fn keys_that_keep_a_gateway_from_starting_are_dropped_and_named() {
    let file = json!({
        "gateway": { "token": "x", "controlUi": { "allowInsecureAuth": true } },
        "channels": {
            "telegram": { "botToken": "t", "dm": { "policy": "pairing" } },
            "slack": { "dm": { "policy": "pairing", "enabled": true } },
        },
        "browser": { "profiles": { "mine": { "cdpUrl": "http://b", "color": "#00AA00" } } },
    });
    let said = changes(file.clone(), &[], Current);
    for key in [
        "gateway.token",
        "gateway.controlUi.allowInsecureAuth",
        "channels.telegram.dm.policy",
        "channels.slack.dm.policy",
        "browser.profiles.mine.color",
    ] {
        assert!(
            said.iter()
                .any(|change| change.starts_with(&format!("{key} removed: "))),
            "{key}: {said:?}"
        );
    }
    let made = patched(file, &[], Current);
    assert_eq!(
        made["channels"]["slack"],
        json!({ "dm": { "enabled": true }, "dmPolicy": "pairing" })
    );
    assert_eq!(
        made["channels"]["telegram"],
        json!({ "botToken": "t", "dmPolicy": "pairing" })
    );
}

fn local(token: Option<&str>) -> Browser {
    Browser {
        addr: ([127, 0, 0, 1], 9222).into(),
        token: token.map(|token| Secret::new(token.to_owned())),
    }
}

#[test]
fn the_browser_profile_comes_and_goes_with_its_upstream() {
    let mut settings = settings(&[]);
    settings.browser = Some(local(None));
    let file = json!({ "browser": { "profiles": { "mine": { "cdpUrl": "http://b" } } } });
    let first = patch(file.clone(), &Written::default(), &settings, Current);
    let made = &first.value;
    assert_eq!(made["browser"]["defaultProfile"], "moltinit");
    assert_eq!(
        made["browser"]["profiles"]["moltinit"],
        json!({ "cdpUrl": "http://127.0.0.1:9222", "attachOnly": true })
    );
    let early = patch(file.clone(), &Written::default(), &settings, Early);
    assert_eq!(early.value["browser"]["attachOnly"], true);
    settings.browser = Some(local(Some("local-token")));
    let guarded = patch(file.clone(), &Written::default(), &settings, Current);
    let url = "http://127.0.0.1:9222/?token=local-token";
    assert_eq!(guarded.value["browser"]["profiles"]["moltinit"]["cdpUrl"], url);
    assert!(!format!("{:?}", guarded.changes).contains("local-token"));
    settings.browser = None;
    for (had, generation) in [(first, Current), (early, Early)] {
        let now = patch(had.value, &had.written, &settings, generation);
        assert_eq!(now.value["browser"], file["browser"]);
    }
}

#[test]
fn files_of_the_real_onboarding_keep_what_is_in_them() {
    for (text, generation) in [
        (include_str!("files/2026.2.3-onboarded.json"), Early),
        (include_str!("files/2026.9.6-onboarded.json"), Current),
    ] {
        let file: Value = serde_json::from_str(text).unwrap();
        let made = patched(file.clone(), &[("OPENCLAW_GATEWAY_TOKEN", "t0k3n")], generation);
        let mut expected = file;
        expected["gateway"]["auth"] = json!({ "mode": "token" });
        expected["gateway"]["trustedProxies"] = json!(["10.1.0.0"]);
        assert_eq!(made, expected);
        let order = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(order(&made), order(&expected));
    }
}

/// Any JSON, with keys that the patch knows among others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        prop::sample::select(vec!["open", "*", "cf-ai-gw-openai/gpt", "pairing", "x", ""]).prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "gateway",
        "auth",
        "token",
        "mode",
        "port",
        "controlUi",
        "allowInsecureAuth",
        "trustedProxies",
        "agents",
        "defaults",
        "model",
        "primary",
        "fallbacks",
        "models",
        "providers",
        "cf-ai-gw-openai",
        "anthropic",
        "channels",
        "telegram",
        "discord",
        "slack",
        "dm",
        "policy",
        "dmPolicy",
        "allowFrom",
        "browser",
        "profiles",
        "moltinit",
        "color",
        "mine",
        "a.b",
    ]);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

fn any_settings() -> impl Strategy<Value = GatewaySettings> {
    let pairs: Vec<(&str, &str)> = vec![
        ("OPENCLAW_GATEWAY_TOKEN", "gateway-secret"),
        ("WORKER_URL", "https://w.example"),
        ("OPENCLAW_DEV_MODE", "true"),
        ("ANTHROPIC_API_KEY", "ant-secret"),
        ("ANTHROPIC_BASE_URL", "https://a.example"),
        ("MOLTINIT_MODEL_FALLBACKS", "openai/gpt,anthropic/claude"),
        ("TELEGRAM_BOT_TOKEN", "tg-secret"),
        ("TELEGRAM_DM_POLICY", "open"),
        ("TELEGRAM_DM_ALLOW_FROM", "1,2"),
        ("DISCORD_BOT_TOKEN", "dc-secret"),
        ("DISCORD_DM_POLICY", "allowlist"),
    ];
    let gateway = prop::option::of(prop::sample::select(vec!["openai/gpt", "anthropic/claude"]));
    (
        prop::sample::subsequence(pairs, 0..=11),
        prop::option::of(gateway),
        any::<bool>(),
    )
        .prop_map(|(mut pairs, ai_gateway, browser)| {
            if let Some(model) = ai_gateway {
                pairs.extend(AI_GATEWAY);
                pairs.extend(model.map(|model| ("CF_AI_GATEWAY_MODEL", model)));
            }
            let mut settings = settings(&pairs);
            settings.browser = browser.then(|| local(None));
            settings
        })
}

proptest! {
    #[test]
    fn a_second_time_changes_nothing(
        document in any_json(), settings in any_settings(), generation in prop::sample::select(vec![Early, Current])
    ) {
        let once = patch(document, &Written::default(), &settings, generation);
        for earlier in [&once.written, &Written::default()] {
            let twice = patch(once.value.clone(), earlier, &settings, generation);
            prop_assert_eq!(&twice.value, &once.value);
            prop_assert_eq!(twice.value.to_string(), once.value.to_string());
            prop_assert_eq!(twice.changes, vec![]);
        }
    }

    #[test]
    fn what_changed_is_said_and_holds_no_secret(document in any_json(), settings in any_settings()) {
        let Patched { value: made, changes, written } = patch(document.clone(), &Written::default(), &settings, Current);
        prop_assert_eq!(&Written::parse(&written.render()), &written);
        prop_assert_eq!(made == document, changes.is_empty());
        let said: String = changes.iter().map(Change::to_string).collect();
        prop_assert!(!said.contains("secret"), "{}", said);
        prop_assert!(!made.to_string().contains("secret"), "secrets stay in the environment");
    }

    #[test]
    fn what_is_not_ours_stays(own in any_json(), settings in any_settings()) {
        let document = json!({ "plugins": own, "gateway": { "http": own }, "channels": { "matrix": own } });
        let made = patch(document, &Written::default(), &settings, Early).value;
        prop_assert_eq!(&made["plugins"], &own);
        prop_assert_eq!(&made["gateway"]["http"], &own);
        prop_assert_eq!(&made["channels"]["matrix"], &own);
    }
}
