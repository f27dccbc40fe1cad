//! Which models answer the agent, and through which provider entries.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::{
        settings::{AiGateway, Endpoint, GatewaySettings, ModelRef, Route},
        version::Generation,
    },
    changes::STALE,
    editor::Editor,
};

/// Providers of this name are made for Cloudflare AI Gateway, by us and by moltworker.
const PREFIX: &str = "cf-ai-gw-";
const PROVIDERS: [&str; 2] = ["models", "providers"];
const MODEL: [&str; 3] = ["agents", "defaults", "model"];
const PRIMARY: [&str; 4] = ["agents", "defaults", "model", "primary"];
const FALLBACKS: [&str; 4] = ["agents", "defaults", "model", "fallbacks"];
/// A list of models here is the list of allowed ones.
const ALLOWED: [&str; 3] = ["agents", "defaults", "models"];

pub fn patch(editor: &mut Editor, settings: &GatewaySettings, generation: Generation) {
    let gateway = match &settings.route {
        Some(Route::AiGateway(gateway)) => Some(gateway),
        _ => None,
    };
    let primary = match gateway {
        Some(gateway) => gateway.model.clone().or_else(|| kept_or_default(editor)),
        None => None,
    };
    let mut wanted: BTreeMap<&str, Vec<&ModelRef>> = BTreeMap::new();
    if let Some(gateway) = gateway {
        for model in primary.iter().chain(&settings.fallbacks) {
            if gateway.reaches(&model.provider) {
                wanted.entry(&model.provider).or_default().push(model);
            }
        }
    }
    remove_stale(editor, &wanted);
    if let Some(gateway) = gateway {
        for (provider, models) in &wanted {
            provide(editor, gateway, provider, models, generation);
        }
    }
    base_urls(editor, settings);

    let written = |model: &ModelRef| match gateway {
        Some(gateway) if gateway.reaches(&model.provider) => format!("{PREFIX}{model}"),
        _ => model.to_string(),
    };
    // The early generation takes no bare string here.
    if let Some(plain) = editor.text(&MODEL).map(str::to_owned) {
        editor.set(&MODEL, json!({ "primary": plain }));
    }
    match &primary {
        Some(model) => editor.lend(&PRIMARY, written(model)),
        None => {
            if let Some(model) = default_model(settings, generation) {
                editor.lend_default(&PRIMARY, model);
            }
        }
    }
    if !settings.fallbacks.is_empty() {
        let fallbacks: Vec<String> = settings.fallbacks.iter().map(written).collect();
        editor.lend(&FALLBACKS, fallbacks);
    }
    if !editor.keys(&ALLOWED).is_empty() {
        for model in primary.iter().chain(&settings.fallbacks) {
            let name = written(model);
            editor.lend_default(&[ALLOWED[0], ALLOWED[1], ALLOWED[2], &name], json!({}));
        }
    }
}

impl AiGateway {
    fn reaches(&self, provider: &str) -> bool {
        match self.endpoint {
            Endpoint::Gateway { .. } => true,
            Endpoint::WorkersAi { .. } => provider == "workers-ai",
        }
    }

    fn base_url(&self, provider: &str) -> String {
        let suffix = if provider == "workers-ai" { "/v1" } else { "" };
        match &self.endpoint {
            Endpoint::Gateway { account, gateway } => {
                format!("https://gateway.ai.cloudflare.com/v1/{account}/{gateway}/{provider}{suffix}")
            }
            Endpoint::WorkersAi { account } => {
                format!("https://api.cloudflare.com/client/v4/accounts/{account}/ai/v1")
            }
        }
    }
}

/// What the gateway's own onboarding chooses for a provider, where the gateway would not turn to it by itself.
fn default_model(settings: &GatewaySettings, generation: Generation) -> Option<&'static str> {
    match (settings.route.as_ref()?, generation) {
        (Route::Anthropic { .. }, Generation::Current) => Some("anthropic/claude-opus-5"),
        (Route::OpenAi { .. }, Generation::Early) => Some("openai/gpt-5.2"),
        _ => None,
    }
}

/// Without a model of the environment's choice: the one an earlier boot chose, else a default where there is none.
fn kept_or_default(editor: &Editor) -> Option<ModelRef> {
    let present = editor.text(&PRIMARY).or_else(|| editor.text(&MODEL));
    let Some(present) = present else {
        return ModelRef::parse("anthropic/claude-sonnet-4-5");
    };
    ModelRef::parse(present.strip_prefix(PREFIX)?)
}

fn remove_stale(editor: &mut Editor, wanted: &BTreeMap<&str, Vec<&ModelRef>>) {
    let is_stale = |name: &str| {
        let provider = name
            .split('/')
            .next()
            .and_then(|provider| provider.strip_prefix(PREFIX));
        provider.is_some_and(|provider| !wanted.contains_key(provider))
    };
    for provider in editor.keys(&PROVIDERS).iter().filter(|name| is_stale(name)) {
        editor.remove(&[PROVIDERS[0], PROVIDERS[1], provider], STALE);
    }
    for place in [&MODEL[..], &PRIMARY[..]] {
        if editor.text(place).is_some_and(is_stale) {
            editor.remove(place, STALE);
        }
    }
    let fallbacks = editor.texts(&FALLBACKS);
    if fallbacks.iter().any(|name| is_stale(name)) {
        let left: Vec<String> = fallbacks.into_iter().filter(|name| !is_stale(name)).collect();
        editor.set(&FALLBACKS, left);
    }
    for model in editor.keys(&ALLOWED).iter().filter(|name| is_stale(name)) {
        editor.remove(&[ALLOWED[0], ALLOWED[1], ALLOWED[2], model], STALE);
    }
}

fn provide(editor: &mut Editor, gateway: &AiGateway, provider: &str, models: &[&ModelRef], generation: Generation) {
    let name = format!("{PREFIX}{provider}");
    let at = |key| [PROVIDERS[0], PROVIDERS[1], name.as_str(), key];
    editor.set(&at("baseUrl"), gateway.base_url(provider));
    // A reference that cannot be resolved makes the early generation refuse the whole file, and commands run beside
    // the gateway do not have its environment.
    match generation {
        Generation::Early => editor.set(&at("apiKey"), gateway.key.expose().as_str()),
        Generation::Current => editor.set(&at("apiKey"), "${CLOUDFLARE_AI_GATEWAY_API_KEY}"),
    }
    let anthropic = provider == "anthropic";
    let api = if anthropic {
        "anthropic-messages"
    } else {
        "openai-completions"
    };
    editor.set(&at("api"), api);
    let present = editor.get(&at("models")).and_then(Value::as_array);
    let mut list = present.cloned().unwrap_or_default();
    for model in models {
        let id = model.model.as_str();
        if list.iter().any(|known| known["id"] == id) {
            continue;
        }
        let (context, output) = if anthropic { (200_000, 64_000) } else { (131_072, 8_192) };
        list.push(json!({ "id": id, "name": id, "contextWindow": context, "maxTokens": output }));
    }
    editor.set(&at("models"), list);
}

/// Sends a provider's own models elsewhere. An entry without models changes only where the known ones are asked.
fn base_urls(editor: &mut Editor, settings: &GatewaySettings) {
    let (anthropic, openai) = match &settings.route {
        Some(Route::Anthropic { base_url, .. }) => (base_url.as_deref(), None),
        Some(Route::OpenAi { base_url, .. }) => (None, base_url.as_deref()),
        _ => (None, None),
    };
    for (provider, base_url) in [("anthropic", anthropic), ("openai", openai)] {
        let entry = [PROVIDERS[0], PROVIDERS[1], provider];
        let at = |key| [PROVIDERS[0], PROVIDERS[1], provider, key];
        match base_url {
            Some(url) => {
                editor.set(&at("baseUrl"), url);
                // Neither generation takes an entry without a list.
                editor.default(&at("models"), json!([]));
            }
            None if editor.get(&entry).is_some_and(is_base_url_alone) => {
                editor.remove(&entry, STALE);
            }
            None => {}
        }
    }
}

/// What [`base_urls`] makes, and nobody else has a use for.
fn is_base_url_alone(entry: &Value) -> bool {
    entry
        .as_object()
        .is_some_and(|entry| entry.len() == 2 && entry.contains_key("baseUrl") && entry["models"] == json!([]))
}
