//! Which variables there are, and what in them must never be shown.

use super::{
    env::{Env, Problem},
    value,
};

/// The settings: key in the file, and with `MOLTINIT_` before it and in capitals the variable.
pub const SETTINGS: &[&str] = &[
    "store",
    "store_wait",
    "store_required",
    "mount",
    "instance",
    "state_dir",
    "workspace",
    "snapshot_quiet",
    "snapshot_max_delay",
    "snapshot_min_gap",
    "key",
    "http_addr",
    "admin_token",
    "cdp_addr",
    "cdp_allow_remote",
    "cdp_idle",
    "cdp_token",
    "cdp_upstream",
    "callback_url",
    "callback_secret",
    "stop_timeout",
    "log",
    "log_format",
    "data_dir",
    "run_dir",
    "model_fallbacks",
];

/// Variables that moltinit reads or sets itself beside the settings.
const OTHER_VARIABLES: &[&str] = &["MOLTINIT_CONFIG", "MOLTINIT_SERVICE"];

/// Variables whose values are secrets.
pub const SECRETS: &[&str] = &[
    "MOLTINIT_KEY",
    "MOLTINIT_ADMIN_TOKEN",
    "MOLTINIT_CALLBACK_SECRET",
    "MOLTINIT_CDP_TOKEN",
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "CLOUDFLARE_AI_GATEWAY_API_KEY",
    "AI_GATEWAY_API_KEY",
    "OPENCLAW_GATEWAY_TOKEN",
    "MOLTBOT_GATEWAY_TOKEN",
    "TELEGRAM_BOT_TOKEN",
    "DISCORD_BOT_TOKEN",
    "SLACK_BOT_TOKEN",
    "SLACK_APP_TOKEN",
    "CDP_SECRET",
    "CF_BROWSER_TOKEN",
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
];

/// Variables without `MOLTINIT_` that are read and no secrets.
const PLAIN: &[&str] = &[
    "ANTHROPIC_BASE_URL",
    "AI_GATEWAY_BASE_URL",
    "CF_ACCOUNT_ID",
    "CLOUDFLARE_API_BASE_URL",
    "CF_AI_GATEWAY_ACCOUNT_ID",
    "CF_AI_GATEWAY_GATEWAY_ID",
    "CF_AI_GATEWAY_MODEL",
    "DISCORD_DM_POLICY",
    "OPENCLAW_DEV_MODE",
    "OPENCLAW_STATE_DIR",
    "R2_BUCKET_NAME",
    "R2_ENDPOINT",
    "TELEGRAM_DM_ALLOW_FROM",
    "TELEGRAM_DM_POLICY",
    "WORKER_URL",
];

/// What the last word of a variable's name is when its value is a secret, though we have never heard of it.
const SECRET_WORDS: &[&str] = &[
    "KEY",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
];

/// What it is when its value is an address, in which there may be a password or a token.
const ADDRESS_WORDS: &[&str] = &["URL", "URI", "DSN", "PROXY", "UPSTREAM", "ENDPOINT"];

/// A shorter value under a name that only looks like a secret's (`SORT_KEY=default`) would mask common words.
const SHORTEST_GUESSED: usize = 8;

/// No user name is as long; tokens are.
const LONGEST_USER: usize = 15;

/// The variable of a setting.
pub fn variable(key: &str) -> String {
    format!("MOLTINIT_{}", key.to_ascii_uppercase())
}

/// Every variable that is read; each may be given by file (`NAME_FILE`).
pub fn known() -> impl Iterator<Item = String> {
    let settings = SETTINGS.iter().map(|key| variable(key));
    let others = SECRETS.iter().filter(|name| !name.starts_with("MOLTINIT_"));
    settings.chain(others.chain(PLAIN).map(|name| (*name).to_owned()))
}

/// Whether the value of a variable of this name is a secret, known or by the look of its name.
pub fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name) || last_word_is_of(name, SECRET_WORDS)
}

/// What is secret in the value of a variable: all of it, or parts of an address.
pub fn secrets(name: &str, value: &str) -> Vec<String> {
    if SECRETS.contains(&name) || (last_word_is_of(name, SECRET_WORDS) && value.len() >= SHORTEST_GUESSED) {
        vec![value.to_owned()]
    } else if last_word_is_of(name, ADDRESS_WORDS) {
        secrets_of_address(value)
    } else {
        Vec::new()
    }
}

/// What is secret in a whole environment.
pub fn secrets_of(env: &Env) -> Vec<String> {
    env.iter().flat_map(|(name, value)| secrets(name, value)).collect()
}

fn last_word_is_of(name: &str, words: &[&str]) -> bool {
    let last = name.rsplit('_').next().unwrap_or(name);
    words.iter().any(|word| last.eq_ignore_ascii_case(word))
}

/// Password, query and fragment of a URL, and a user that is a token by the look of it; as they are written there and as
/// they are meant. Cut by hand: what is no sound URL may hold a secret too.
fn secrets_of_address(address: &str) -> Vec<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (before, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (before, query) = before.split_once('?').unwrap_or((before, ""));
    let authority = before.split('/').next().unwrap_or(before);
    let user_info = authority.rsplit_once('@').map_or("", |(user_info, _)| user_info);
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let token = Some(user).filter(|user| password.is_empty() || user.len() > LONGEST_USER);
    let values = query
        .split('&')
        .map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    [password, fragment]
        .into_iter()
        .chain(token)
        .chain(values)
        .filter(|part| !part.is_empty())
        .flat_map(|part| [part.to_owned(), decoded(part)])
        .collect()
}

/// Without percent-encoding.
fn decoded(part: &str) -> String {
    // A form's parser wants a name, cuts at `&` and takes `+` for a space.
    let form = format!("part={}", part.replace('&', "%26").replace('+', "%2B"));
    let mut pairs = url::form_urlencoded::parse(form.as_bytes());
    pairs.next().map_or_else(String::new, |(_, value)| value.into_owned())
}

/// Variables with our prefix that mean nothing to us, and among them those that are somebody else's doing.
pub fn unknown(env: &Env) -> (Vec<Problem>, Vec<Problem>) {
    let ours = SETTINGS.iter().map(|key| variable(key));
    let ours: Vec<String> = ours
        .chain(OTHER_VARIABLES.iter().map(|name| (*name).to_owned()))
        .collect();
    let by_file = |name: &str| {
        let plain = name
            .strip_suffix("_FILE")
            .and_then(|plain| plain.strip_prefix("MOLTINIT_"));
        plain.is_some_and(|plain| SETTINGS.contains(&plain.to_ascii_lowercase().as_str()))
    };
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for (name, value) in env.iter() {
        if !name.starts_with("MOLTINIT_") || by_file(name) || ours.iter().any(|known| known == name) {
            continue;
        }
        if is_service_link(name, value) {
            warnings.push(Problem::new(
                name,
                "is taken for one that Kubernetes sets for a service of that name; `enableServiceLinks: false` leaves it out",
            ));
        } else {
            let nearest = value::did_you_mean(name, ours.iter().map(String::as_str));
            problems.push(Problem::new(name, format!("unknown variable{nearest}")));
        }
    }
    (problems, warnings)
}

/// `MOLTINIT_SERVICE_HOST`, `MOLTINIT_PORT_9180_TCP_ADDR` and their like: what Kubernetes tells every pod of a service
/// called `moltinit`, or `moltinit-…`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_link = |text: &str| text.starts_with("tcp://") || text.starts_with("udp://") || text.starts_with("sctp://");
    name.ends_with("_SERVICE_HOST")
        || (name.contains("_SERVICE_PORT") && is_port(value))
        || (name.ends_with("_PORT") && is_link(value))
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
            let (port, protocol) = rest.split_once('_').unwrap_or((rest, ""));
            is_port(port) && matches!(protocol.split('_').next(), Some("TCP" | "UDP" | "SCTP"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secret::Mask;

    #[test]
    fn what_is_secret_in_an_address_is_found_in_either_form() {
        let masked = |address: &str, text: &str| {
            let mask = Mask::new(secrets("MOLTINIT_CDP_UPSTREAM", address));
            mask.apply(text).into_owned()
        };
        for (address, canaries) in [
            ("https://user:can%20ary%2F1@host/x", &["can%20ary%2F1", "can ary/1"][..]),
            ("https://host/x?key=canary%3Dtwo&v=1", &["canary%3Dtwo", "canary=two"]),
            ("https://host/x?canary-without-a-name", &["canary-without-a-name"]),
            ("https://canary-as-user@host", &["canary-as-user"]),
            ("https://canary-long-as-a-token:x@host", &["canary-long-as-a-token"]),
            ("https://host/#canary-fragment", &["canary-fragment"]),
            ("user:canary-proxy@host:3128", &["canary-proxy"]),
            ("http://user:canary-unsound@host:port/", &["canary-unsound"]),
        ] {
            for canary in canaries {
                let said = masked(address, &format!("it was {canary}."));
                assert_eq!(said, "it was [secret].", "{address}");
            }
        }
        let plain = "https://admin:canary-password@host.example/path";
        assert_eq!(masked(plain, plain), "https://admin:[secret]@host.example/path");
    }

    #[test]
    fn a_secret_is_known_by_its_name() {
        assert_eq!(secrets("GITHUB_TOKEN", "ghp_canary"), ["ghp_canary"]);
        assert_eq!(
            secrets("DATABASE_URL", "postgres://u:canary@db/x"),
            ["canary", "canary"]
        );
        assert!(secrets("SORT_KEY", "default").is_empty());
        assert!(secrets("NODE_OPTIONS", "--max-old-space-size=1536").is_empty());
    }

    #[test]
    fn what_kubernetes_sets_is_no_mistake() {
        let env: Env = [
            ("MOLTINIT_SERVICE_HOST", "10.0.0.1"),
            ("MOLTINIT_SERVICE_PORT", "9180"),
            ("MOLTINIT_SERVICE_PORT_HTTP", "9180"),
            ("MOLTINIT_PORT", "tcp://10.0.0.1:9180"),
            ("MOLTINIT_PORT_9180_TCP", "tcp://10.0.0.1:9180"),
            ("MOLTINIT_PORT_9180_TCP_PROTO", "tcp"),
            ("MOLTINIT_PORT_9180_TCP_ADDR", "10.0.0.1"),
        ]
        .into_iter()
        .collect();
        let (problems, warnings) = unknown(&env);
        assert!(problems.is_empty() && warnings.len() == 7, "{problems:?}");
        let wrong: Env = [("MOLTINIT_PORT", "9180"), ("MOLTINIT_HTTP_ADRR", "x")]
            .into_iter()
            .collect();
        assert_eq!(unknown(&wrong).0.len(), 2);
    }
}
