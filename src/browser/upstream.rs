//! Which browser, how it is dialled, and what its refusals mean.

use std::time::Duration;

use reqwest::{Client, StatusCode, Upgraded, header};
use serde_json::Value;
use tokio::{sync::OnceCell, time::timeout};
use url::Url;

use crate::config::{Config, env::Problem, secret::Secret};

/// A cold browser takes 8 s to its first byte.
pub const DIAL: Duration = Duration::from_secs(45);
/// For a page of discovery.
const ASK: Duration = Duration::from_secs(10);
/// The longest message that Cloudflare passes.
const PLATFORM_MAX: u64 = 32 << 20;
/// The path of our own browser target, which stands for whatever the upstream calls its own.
pub const BROWSER_PATH: &str = "/devtools/browser/moltinit";

/// Where the browser is.
enum Place {
    /// A Worker's `/cdp`, with its secret in the query.
    Worker { url: Url, secret: Secret },
    /// Browser Rendering's own endpoint.
    Cloudflare { url: Url, token: Secret },
    /// An ordinary endpoint with discovery over HTTP.
    Http(Url),
    /// The WebSocket of a browser.
    WebSocket(Url),
}

/// A browser elsewhere.
pub struct Upstream {
    place: Place,
    client: OnceCell<Client>,
}

/// A browser that cannot be had, and what to do about it. Holds no URL and no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error(
        "the browser's address answers with a redirect to a login (Cloudflare Access): exempt its path from Access, or name the address behind it"
    )]
    AccessLogin,
    #[error(
        "the browser's address answers with a redirect, which is not followed with a secret: name the address itself"
    )]
    Redirect,
    #[error("the browser refuses us ({0}): check {1}")]
    Refused(u16, &'static str),
    #[error("the browser's address does not exist there (404): check {0}")]
    NotThere(&'static str),
    #[error("too many browsers or too many starts (429): wait, or raise the account's limit")]
    TooMany,
    #[error("the browser service is not available now ({0}): try again later")]
    Unavailable(u16),
    #[error("the browser's address answers {0} where a WebSocket was asked for")]
    NoWebSocket(u16),
    #[error("the browser cannot be reached: {0}")]
    Unreachable(String),
    #[error("the browser did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("what the browser says of itself cannot be used: {0}")]
    Nonsense(String),
}

impl Upstream {
    /// The browser that the configuration names; `None` without one.
    ///
    /// # Errors
    /// A setting that it needs is missing or wrong, by name.
    pub fn of(config: &Config) -> Result<Option<Upstream>, Problem> {
        let Some(named) = config.cdp.upstream.as_deref() else {
            return Ok(None);
        };
        let need = |name: &str| {
            let missing = || Problem::new("MOLTINIT_CDP_UPSTREAM", format!("`{named}` needs {name} as well"));
            config
                .env
                .get(name)
                .filter(|value| !value.is_empty())
                .ok_or_else(missing)
        };
        let parse = |name: &str, text: &str| {
            Url::parse(text).map_err(|error| Problem::new(name, format!("this is not a URL: {error}")))
        };
        let place = match named {
            "worker" => {
                let mut url = parse("WORKER_URL", need("WORKER_URL")?)?;
                url.set_path("/cdp");
                url.set_query(None);
                Place::Worker {
                    url,
                    secret: Secret::new(need("CDP_SECRET")?.to_owned()),
                }
            }
            "cloudflare" => {
                let account = need("CF_ACCOUNT_ID")?;
                let endpoint = format!(
                    "https://api.cloudflare.com/client/v4/accounts/{account}/browser-rendering/devtools/browser?keep_alive=600000"
                );
                Place::Cloudflare {
                    url: parse("CF_ACCOUNT_ID", &endpoint)?,
                    token: Secret::new(need("CF_BROWSER_TOKEN")?.to_owned()),
                }
            }
            address => {
                let mut url = parse("MOLTINIT_CDP_UPSTREAM", address)?;
                let plain = match url.scheme() {
                    "http" | "https" => None,
                    "ws" => Some("http"),
                    "wss" => Some("https"),
                    other => {
                        let what = format!(
                            "`{other}:` is no address of a browser; use worker, cloudflare, http(s):// or ws(s)://"
                        );
                        return Err(Problem::new("MOLTINIT_CDP_UPSTREAM", what));
                    }
                };
                match plain {
                    None => Place::Http(url),
                    Some(scheme) => {
                        // Dialled by the same client, by the name it knows.
                        let _ = url.set_scheme(scheme);
                        Place::WebSocket(url)
                    }
                }
            }
        };
        Ok(Some(Upstream {
            place,
            client: OnceCell::new(),
        }))
    }

    /// What it is called in events and status, without secrets.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Worker { url, .. } => format!("worker at {}", authority(url)),
            Place::Cloudflare { .. } => "cloudflare".to_owned(),
            Place::Http(url) | Place::WebSocket(url) => authority(url),
        }
    }

    /// The root page of its server, for a look that launches nothing; without secrets.
    pub fn origin(&self) -> Url {
        let (Place::Worker { url, .. } | Place::Cloudflare { url, .. } | Place::Http(url) | Place::WebSocket(url)) =
            &self.place;
        let mut origin = url.clone();
        origin.set_path("/");
        origin.set_query(None);
        // Refused only by URLs that cannot have them.
        let _ = origin.set_username("");
        let _ = origin.set_password(None);
        origin
    }

    /// The longest message it takes, in bytes, if it has a limit.
    pub fn message_max(&self) -> Option<u64> {
        match self.place {
            Place::Worker { .. } | Place::Cloudflare { .. } => Some(PLATFORM_MAX),
            Place::Http(_) | Place::WebSocket(_) => None,
        }
    }

    /// Opens a WebSocket to what `path` stands for. This is what launches a browser that somebody pays for.
    ///
    /// # Errors
    /// [`DialError`] says what to do.
    pub async fn dial(&self, path: &str) -> Result<Upgraded, DialError> {
        timeout(DIAL, self.open(path))
            .await
            .unwrap_or(Err(DialError::TimedOut(DIAL)))
    }

    async fn open(&self, path: &str) -> Result<Upgraded, DialError> {
        let url = match &self.place {
            Place::Worker { url, secret } => {
                let mut url = url.clone();
                url.query_pairs_mut().append_pair("secret", secret.expose());
                url
            }
            Place::Cloudflare { url, .. } | Place::WebSocket(url) => url.clone(),
            Place::Http(base) if path == BROWSER_PATH => {
                let version = self.ask("GET", "/json/version", None).await?;
                let found = version["webSocketDebuggerUrl"]
                    .as_str()
                    .and_then(|url| Url::parse(url).ok());
                let found =
                    found.ok_or_else(|| DialError::Nonsense("no webSocketDebuggerUrl in /json/version".into()))?;
                // Its own idea of its host is as seen from where it runs.
                at(base, found.path(), found.query())
            }
            Place::Http(base) => at(base, path, None),
        };
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, rand::random::<[u8; 16]>());
        let mut request = self
            .client()
            .await?
            .get(url)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key);
        if let Place::Cloudflare { token, .. } = &self.place {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => answer.upgrade().await.map_err(unreachable),
            status => Err(self.refusal(status, answer.headers())),
        }
    }

    /// A page of discovery from an upstream that has it.
    ///
    /// # Errors
    /// [`DialError`]; also when the upstream has no discovery.
    pub async fn ask(&self, method: &str, path: &str, query: Option<&str>) -> Result<Value, DialError> {
        let Place::Http(base) = &self.place else {
            return Err(DialError::NotThere("whether this browser has discovery"));
        };
        let method = method.parse().map_err(|_| DialError::Nonsense("the method".into()))?;
        let request = self.client().await?.request(method, at(base, path, query)).timeout(ASK);
        let answer = request.send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer.status(), answer.headers()));
        }
        let text = answer.text().await.map_err(unreachable)?;
        // `/json/activate` and `/json/close` answer in plain words.
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Whether it may be moltworker's shim, which is no browser.
    pub fn may_be_shim(&self) -> bool {
        matches!(self.place, Place::Worker { .. })
    }

    /// Whether it can be asked for `/json/…`.
    pub fn has_discovery(&self) -> bool {
        matches!(self.place, Place::Http(_))
    }

    fn refusal(&self, status: StatusCode, headers: &header::HeaderMap) -> DialError {
        let what = match self.place {
            Place::Worker { .. } => "CDP_SECRET and WORKER_URL",
            Place::Cloudflare { .. } => "CF_ACCOUNT_ID and CF_BROWSER_TOKEN (it needs Browser Rendering - Edit)",
            Place::Http(_) | Place::WebSocket(_) => "MOLTINIT_CDP_UPSTREAM",
        };
        let to_login = || {
            let location = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
            location.is_some_and(|to| to.contains("cloudflareaccess.com") || to.contains("/cdn-cgi/access/"))
        };
        match status.as_u16() {
            300..=399 if to_login() => DialError::AccessLogin,
            300..=399 => DialError::Redirect,
            code @ (401 | 403) => DialError::Refused(code, what),
            404 => DialError::NotThere(what),
            429 => DialError::TooMany,
            code @ 500..=599 => DialError::Unavailable(code),
            code => DialError::NoWebSocket(code),
        }
    }

    /// Made when it is first needed: reading the system's roots takes tens of milliseconds.
    async fn client(&self) -> Result<&Client, DialError> {
        let make = || async {
            let made = tokio::task::spawn_blocking(|| {
                let _ = rustls::crypto::ring::default_provider().install_default();
                Client::builder()
                    .http1_only()
                    .redirect(reqwest::redirect::Policy::none())
                    .connect_timeout(Duration::from_secs(15))
                    .tcp_keepalive(Duration::from_secs(15))
                    .build()
            });
            made.await
                .map_err(|error| DialError::Unreachable(error.to_string()))?
                .map_err(unreachable)
        };
        self.client.get_or_try_init(make).await
    }
}

/// Without the URL, which may hold a secret.
fn unreachable(error: reqwest::Error) -> DialError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    DialError::Unreachable(text)
}

/// Host and port; never user, password or query.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// `path` at the place of `base`, keeping what the base has in front and its query.
fn at(base: &Url, path: &str, query: Option<&str>) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    if query.is_some() {
        url.set_query(query);
    }
    url
}
