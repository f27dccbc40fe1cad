//! What the environment asks of the gateway, read once and checked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use url::Url;

use crate::config::{
    Cdp, Config, Problems, Workspace,
    env::{Env, Problem},
    secret::Secret,
};

/// Port of the gateway when its command does not say.
pub const DEFAULT_PORT: u16 = 18789;

/// Everything that is written into, or kept out of, the gateway's configuration on a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewaySettings {
    pub port: u16,
    /// Where to listen, for a configuration that does not say.
    pub bind: String,
    /// `None`: the configuration's own token stands, or one is generated.
    pub token: Option<Secret>,
    pub dev_mode: bool,
    /// Origin of the Worker in front, which browsers send to the control UI.
    pub origin: Option<String>,
    pub route: Option<Route>,
    /// Models to fall back to, in order; written as `CF_AI_GATEWAY_MODEL` is.
    pub fallbacks: Vec<ModelRef>,
    pub telegram: Option<Telegram>,
    pub discord: Option<Discord>,
    pub slack: Option<Slack>,
    /// The local CDP port; `None` without a browser upstream.
    pub browser: Option<Browser>,
    pub workspace: Option<Workspace>,
}

/// How the gateway reaches the local CDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Browser {
    pub addr: SocketAddr,
    pub token: Option<Secret>,
}

/// Which provider answers the agent, in moltworker's order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    AiGateway(AiGateway),
    /// `base_url` replaces Anthropic's own.
    Anthropic {
        key: Secret,
        base_url: Option<String>,
    },
    /// `base_url` replaces OpenAI's own.
    OpenAi {
        key: Secret,
        base_url: Option<String>,
    },
}

/// Cloudflare AI Gateway, or Workers AI without a gateway in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AiGateway {
    pub key: Secret,
    pub endpoint: Endpoint,
    /// The default model; `None` leaves the choice to the configuration.
    pub model: Option<ModelRef>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Gateway {
        account: String,
        gateway: String,
    },
    /// Workers AI of the account itself; reaches no other provider.
    WorkersAi {
        account: String,
    },
}

/// `provider/model`; the model's own name may hold further slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    pub provider: String,
    pub model: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmPolicy {
    Pairing,
    Allowlist,
    Open,
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telegram {
    pub token: Secret,
    pub policy: Option<DmPolicy>,
    pub allow_from: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discord {
    pub token: Secret,
    pub policy: Option<DmPolicy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slack {
    pub bot_token: Secret,
    pub app_token: Secret,
}

impl Browser {
    fn of(cdp: &Cdp) -> Browser {
        let mut addr = cdp.addr;
        // Listened on everywhere, it is reached here.
        match addr.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Browser {
            addr,
            token: cdp.token.clone(),
        }
    }

    /// The address as a client takes it, with the token.
    pub fn url(&self) -> String {
        let token = self.token.as_ref();
        let query = token.map_or_else(String::new, |token| format!("/?token={}", token.expose()));
        format!("http://{}{query}", self.addr)
    }
}

impl ModelRef {
    /// Reads `provider/model`.
    pub fn parse(text: &str) -> Option<ModelRef> {
        let (provider, model) = text.trim().split_once('/')?;
        let plain = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        (plain(provider) && plain(model)).then(|| ModelRef {
            provider: provider.to_owned(),
            model: model.to_owned(),
        })
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

impl DmPolicy {
    const ALL: [DmPolicy; 4] = [
        DmPolicy::Pairing,
        DmPolicy::Allowlist,
        DmPolicy::Open,
        DmPolicy::Disabled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            DmPolicy::Pairing => "pairing",
            DmPolicy::Allowlist => "allowlist",
            DmPolicy::Open => "open",
            DmPolicy::Disabled => "disabled",
        }
    }
}

impl GatewaySettings {
    /// Reads the settings from the environment. `env` is the configuration's own, or what somebody has handed over it.
    ///
    /// # Errors
    /// Every problem at once, each with the name of its variable.
    pub fn from_env(env: &Env, config: &Config) -> Result<GatewaySettings, Problems> {
        let service = config.services.iter().find(|service| service.name == "gateway");
        let command = service.map(|service| service.command.as_slice()).unwrap_or_default();
        let browser = config.cdp.upstream.is_some().then(|| Browser::of(&config.cdp));
        let fallbacks = config.model_fallbacks.as_deref();
        GatewaySettings::read(env, command, fallbacks, browser, config.workspace.clone()).map_err(Problems)
    }

    /// The settings of an environment alone.
    #[cfg(test)]
    pub fn of_env(env: &Env) -> Result<GatewaySettings, Vec<Problem>> {
        GatewaySettings::read(env, &[], env.get("MOLTINIT_MODEL_FALLBACKS"), None, None)
    }

    /// `command` is the gateway's, for its `--port` and `--bind`; `browser` is the local CDP port if there is an
    /// upstream behind it.
    fn read(
        env: &Env,
        command: &[String],
        fallbacks: Option<&str>,
        browser: Option<Browser>,
        workspace: Option<Workspace>,
    ) -> Result<GatewaySettings, Vec<Problem>> {
        let mut reader = Reader {
            env,
            problems: Vec::new(),
        };
        let settings = GatewaySettings {
            port: port_of(command),
            bind: option(command, "--bind").unwrap_or("lan").to_owned(),
            token: reader.gateway_token(),
            dev_mode: env.get("OPENCLAW_DEV_MODE") == Some("true"),
            origin: reader.url("WORKER_URL").map(|url| url.origin().ascii_serialization()),
            route: reader.route(),
            fallbacks: reader.fallbacks(fallbacks),
            telegram: reader.telegram(),
            discord: reader.discord(),
            slack: reader.slack(),
            browser,
            workspace,
        };
        if let Some(path) = env.get("OPENCLAW_CONFIG_PATH")
            && !Path::new(path).is_absolute()
        {
            reader.problem("OPENCLAW_CONFIG_PATH", format!("`{path}` must be an absolute path"));
        }
        if reader.problems.is_empty() {
            Ok(settings)
        } else {
            Err(reader.problems)
        }
    }
}

/// The port a gateway's command line names.
pub fn port_of(command: &[String]) -> u16 {
    option(command, "--port")
        .and_then(|port| port.parse().ok())
        .unwrap_or(DEFAULT_PORT)
}

/// The value of `--name VALUE` or `--name=VALUE`.
fn option<'a>(command: &'a [String], name: &str) -> Option<&'a str> {
    let mut words = command.iter();
    while let Some(word) = words.next() {
        if word == name {
            return words.next().map(String::as_str);
        }
        if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value);
        }
    }
    None
}

struct Reader<'a> {
    env: &'a Env,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(name, what));
    }

    /// A secret that goes into a header or a JSON string; a line break in it is always a mistake in pasting.
    fn secret(&mut self, name: &str) -> Option<Secret> {
        let value = self.env.get(name)?;
        if value.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.problem(
                name,
                "holds a space or a line break; set it again without (a trailing line break is the usual cause)",
            );
            return None;
        }
        Some(Secret::new(value.to_owned()))
    }

    fn gateway_token(&mut self) -> Option<Secret> {
        for name in ["OPENCLAW_GATEWAY_TOKEN", "MOLTBOT_GATEWAY_TOKEN"] {
            if self.env.get(name).is_some() {
                return self.secret(name);
            }
            if self.env.names().any(|set| set == name) {
                self.problem(name, "is empty; give it a value, or unset it to have a token generated");
                return None;
            }
        }
        None
    }

    fn url(&mut self, name: &str) -> Option<Url> {
        let text = self.env.get(name)?;
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url),
            _ => {
                self.problem(name, "is not an http(s) URL");
                None
            }
        }
    }

    fn base_url(&mut self, name: &str) -> Option<String> {
        self.url(name).map(|url| url.as_str().trim_end_matches('/').to_owned())
    }

    fn model(&mut self, name: &str, text: &str) -> Option<ModelRef> {
        let model = ModelRef::parse(text);
        if model.is_none() {
            self.problem(
                name,
                format!("`{text}` is not provider/model, as in workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"),
            );
        }
        model
    }

    fn fallbacks(&mut self, list: Option<&str>) -> Vec<ModelRef> {
        words(list.unwrap_or_default())
            .filter_map(|text| self.model("MOLTINIT_MODEL_FALLBACKS", text))
            .collect()
    }

    fn route(&mut self) -> Option<Route> {
        let ai_gateway = self.ai_gateway();
        let anthropic = self.secret("ANTHROPIC_API_KEY").map(|key| Route::Anthropic {
            key,
            base_url: self.base_url("ANTHROPIC_BASE_URL"),
        });
        let openai = self
            .secret("OPENAI_API_KEY")
            .map(|key| Route::OpenAi { key, base_url: None });
        let legacy = self.legacy_ai_gateway();
        ai_gateway.or(anthropic).or(openai).or(legacy)
    }

    fn ai_gateway(&mut self) -> Option<Route> {
        const KEY: &str = "CLOUDFLARE_AI_GATEWAY_API_KEY";
        let named = self.env.get("CF_AI_GATEWAY_MODEL");
        let model = named.and_then(|text| self.model("CF_AI_GATEWAY_MODEL", text));
        let account = self.env.get("CF_AI_GATEWAY_ACCOUNT_ID");
        let gateway = self.env.get("CF_AI_GATEWAY_GATEWAY_ID");
        if self.env.get(KEY).is_none() {
            if named.is_some() {
                self.problem("CF_AI_GATEWAY_MODEL", format!("needs {KEY}, which is not set"));
            }
            return None;
        }
        let key = self.secret(KEY);
        let of_workers_ai = model.as_ref().is_some_and(|model| model.provider == "workers-ai");
        let endpoint = match (account, gateway, self.env.get("CF_ACCOUNT_ID")) {
            (Some(account), Some(gateway), _) => Endpoint::Gateway {
                account: account.to_owned(),
                gateway: gateway.to_owned(),
            },
            (_, _, Some(account)) if of_workers_ai => Endpoint::WorkersAi {
                account: account.to_owned(),
            },
            _ => {
                for (name, value) in [
                    ("CF_AI_GATEWAY_ACCOUNT_ID", account),
                    ("CF_AI_GATEWAY_GATEWAY_ID", gateway),
                ] {
                    if value.is_none() {
                        self.problem(name, format!("must be set when {KEY} is"));
                    }
                }
                return None;
            }
        };
        Some(Route::AiGateway(AiGateway {
            key: key?,
            endpoint,
            model,
        }))
    }

    fn legacy_ai_gateway(&mut self) -> Option<Route> {
        const NAMES: [&str; 2] = ["AI_GATEWAY_API_KEY", "AI_GATEWAY_BASE_URL"];
        match NAMES.map(|name| self.env.get(name).is_some()) {
            [false, false] => return None,
            // moltworker's Worker passes the pair on as Anthropic's, and the address under its own name besides.
            [false, true] if self.env.get("ANTHROPIC_API_KEY").is_some() => return None,
            [true, false] => self.problem(NAMES[1], format!("must be set when {} is", NAMES[0])),
            [false, true] => self.problem(NAMES[0], format!("must be set when {} is", NAMES[1])),
            [true, true] => {}
        }
        let (key, base_url) = (self.secret(NAMES[0])?, self.base_url(NAMES[1])?);
        // The path of an AI Gateway names the provider's protocol.
        Some(if base_url.ends_with("/openai") {
            Route::OpenAi {
                key,
                base_url: Some(base_url),
            }
        } else {
            Route::Anthropic {
                key,
                base_url: Some(base_url),
            }
        })
    }

    fn policy(&mut self, name: &str) -> Option<DmPolicy> {
        let text = self.env.get(name)?;
        let policy = DmPolicy::ALL.into_iter().find(|policy| policy.name() == text);
        if policy.is_none() {
            self.problem(name, format!("`{text}` is none of pairing, allowlist, open, disabled"));
        }
        policy
    }

    fn telegram(&mut self) -> Option<Telegram> {
        let policy = self.policy("TELEGRAM_DM_POLICY");
        let allow_from = words(self.env.get("TELEGRAM_DM_ALLOW_FROM").unwrap_or_default())
            .map(str::to_owned)
            .collect();
        let token = self.secret("TELEGRAM_BOT_TOKEN")?;
        Some(Telegram {
            token,
            policy,
            allow_from,
        })
    }

    fn discord(&mut self) -> Option<Discord> {
        let policy = self.policy("DISCORD_DM_POLICY");
        let token = self.secret("DISCORD_BOT_TOKEN")?;
        Some(Discord { token, policy })
    }

    fn slack(&mut self) -> Option<Slack> {
        const NAMES: [&str; 2] = ["SLACK_BOT_TOKEN", "SLACK_APP_TOKEN"];
        match NAMES.map(|name| self.env.get(name).is_some()) {
            [true, false] => self.problem(NAMES[1], format!("must be set when {} is", NAMES[0])),
            [false, true] => self.problem(NAMES[0], format!("must be set when {} is", NAMES[1])),
            _ => {}
        }
        let (bot_token, app_token) = (self.secret(NAMES[0]), self.secret(NAMES[1]));
        Some(Slack {
            bot_token: bot_token?,
            app_token: app_token?,
        })
    }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<GatewaySettings, String> {
        GatewaySettings::of_env(&env.iter().copied().collect())
            .map_err(|problems| problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn providers_are_chosen_in_moltworkers_order() {
        let all = [
            ("CLOUDFLARE_AI_GATEWAY_API_KEY", "cf"),
            ("CF_AI_GATEWAY_ACCOUNT_ID", "acct"),
            ("CF_AI_GATEWAY_GATEWAY_ID", "gw"),
            ("ANTHROPIC_API_KEY", "ant"),
            ("ANTHROPIC_BASE_URL", "https://proxy.example/ant/"),
            ("OPENAI_API_KEY", "oai"),
            ("AI_GATEWAY_API_KEY", "old"),
            ("AI_GATEWAY_BASE_URL", "https://proxy.example/openai"),
        ];
        let secret = |text: &str| Secret::new(text.to_owned());
        let route = |from: usize| read(&all[from..]).unwrap().route.unwrap();
        assert!(matches!(route(0), Route::AiGateway(gateway) if gateway.key == secret("cf")));
        assert_eq!(
            route(3),
            Route::Anthropic {
                key: secret("ant"),
                base_url: Some("https://proxy.example/ant".to_owned())
            }
        );
        assert_eq!(
            route(5),
            Route::OpenAi {
                key: secret("oai"),
                base_url: None
            }
        );
        assert_eq!(
            route(6),
            Route::OpenAi {
                key: secret("old"),
                base_url: Some("https://proxy.example/openai".to_owned())
            }
        );
        assert_eq!(read(&[]).unwrap().route, None);
    }

    #[test]
    fn what_moltworker_makes_of_the_legacy_pair_is_taken_as_it_is_meant() {
        const URL: &str = "https://gateway.ai.cloudflare.com/v1/a/g/anthropic";
        let settings = read(&[
            ("AI_GATEWAY_BASE_URL", URL),
            ("ANTHROPIC_BASE_URL", URL),
            ("ANTHROPIC_API_KEY", "ant"),
        ]);
        assert_eq!(
            settings.unwrap().route,
            Some(Route::Anthropic {
                key: Secret::new("ant".to_owned()),
                base_url: Some(URL.to_owned())
            })
        );
        assert!(read(&[("AI_GATEWAY_BASE_URL", URL)]).is_err());
    }

    #[test]
    fn each_mistake_is_named_with_its_variable() {
        for (env, says) in [
            (vec![("OPENCLAW_GATEWAY_TOKEN", "")], "OPENCLAW_GATEWAY_TOKEN: is empty"),
            (
                vec![("OPENCLAW_GATEWAY_TOKEN", "a b")],
                "OPENCLAW_GATEWAY_TOKEN: holds a space or a line break",
            ),
            (
                vec![("MOLTBOT_GATEWAY_TOKEN", "a\n")],
                "MOLTBOT_GATEWAY_TOKEN: holds a space or a line break",
            ),
            (
                vec![("ANTHROPIC_API_KEY", "sk\nant")],
                "ANTHROPIC_API_KEY: holds a space or a line break",
            ),
            (
                vec![
                    ("CLOUDFLARE_AI_GATEWAY_API_KEY", "k"),
                    ("CF_AI_GATEWAY_GATEWAY_ID", "g"),
                ],
                "CF_AI_GATEWAY_ACCOUNT_ID: must be set when CLOUDFLARE_AI_GATEWAY_API_KEY is",
            ),
            (
                vec![("CF_AI_GATEWAY_MODEL", "openai/gpt-4o")],
                "CF_AI_GATEWAY_MODEL: needs CLOUDFLARE_AI_GATEWAY_API_KEY",
            ),
            (
                vec![
                    ("CF_AI_GATEWAY_MODEL", "gpt-4o"),
                    ("CLOUDFLARE_AI_GATEWAY_API_KEY", "k"),
                    ("CF_AI_GATEWAY_ACCOUNT_ID", "a"),
                    ("CF_AI_GATEWAY_GATEWAY_ID", "g"),
                ],
                "CF_AI_GATEWAY_MODEL: `gpt-4o` is not provider/model",
            ),
            (
                vec![("AI_GATEWAY_API_KEY", "k")],
                "AI_GATEWAY_BASE_URL: must be set when AI_GATEWAY_API_KEY is",
            ),
            (
                vec![("ANTHROPIC_API_KEY", "k"), ("ANTHROPIC_BASE_URL", "proxy")],
                "ANTHROPIC_BASE_URL: is not an http(s) URL",
            ),
            (
                vec![("TELEGRAM_DM_POLICY", "all")],
                "TELEGRAM_DM_POLICY: `all` is none of pairing",
            ),
            (
                vec![("SLACK_BOT_TOKEN", "x")],
                "SLACK_APP_TOKEN: must be set when SLACK_BOT_TOKEN is",
            ),
            (
                vec![("OPENCLAW_CONFIG_PATH", "openclaw.json")],
                "OPENCLAW_CONFIG_PATH: `openclaw.json` must be an absolute path",
            ),
        ] {
            let problems = read(&env).unwrap_err();
            assert!(problems.starts_with(says), "{env:?}: {problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
    }

    #[test]
    fn workers_ai_needs_no_gateway() {
        let settings = read(&[
            ("CLOUDFLARE_AI_GATEWAY_API_KEY", "k"),
            ("CF_AI_GATEWAY_MODEL", "workers-ai/@cf/meta/llama"),
            ("CF_ACCOUNT_ID", "acct"),
        ])
        .unwrap();
        let Some(Route::AiGateway(gateway)) = settings.route else {
            panic!("an AI gateway")
        };
        assert_eq!(
            gateway.endpoint,
            Endpoint::WorkersAi {
                account: "acct".to_owned()
            }
        );
        assert_eq!(gateway.model.unwrap().model, "@cf/meta/llama");
    }

    #[test]
    fn the_port_is_the_commands() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(port_of(&words(&["openclaw", "gateway", "--port", "19000"])), 19000);
        assert_eq!(port_of(&words(&["openclaw", "gateway", "--port=19001"])), 19001);
        assert_eq!(port_of(&words(&["openclaw", "gateway"])), DEFAULT_PORT);
    }
}
