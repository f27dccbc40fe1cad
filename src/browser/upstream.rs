//! Which browser, how it is dialled, and what its refusals mean.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, RequestBuilder, StatusCode, Upgraded, header};
use serde_json::Value;
use tokio::{sync::OnceCell, time::timeout};
use url::Url;

use super::version::Version;
use crate::config::{
    Config, Problems,
    env::Problem,
    secret::{Mask, Secret},
};

/// A cold browser takes 8 s to its first byte.
pub const DIAL: Duration = Duration::from_secs(45);
/// For a page that says which browser it is: one on this machine answers well within a client's patience, and one that
/// does not is not waited for.
const SOON: Duration = Duration::from_millis(200);
/// For a page without which nothing goes on.
const PAGE: Duration = Duration::from_secs(10);
/// The longest message that Cloudflare passes.
pub const PLATFORM_MAX: u64 = 32 << 20;
/// Where Cloudflare's API is, unless `CLOUDFLARE_API_BASE_URL` says otherwise, as it does to Cloudflare's own tools.
const API: &str = "https://api.cloudflare.com/client/v4";
/// Milliseconds for which a browser outlives its last command: an agent thinks between two.
const KEEP_ALIVE: u32 = 600_000;
/// The longest page in plain words that is handed on.
const WORDS: usize = 2_000;
/// The path of our own browser target, which stands for whatever the upstream calls its own.
pub const BROWSER_PATH: &str = "/devtools/browser/moltinit";

/// Where the browser is.
#[derive(PartialEq)]
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
    /// What the last browser there said of itself.
    version: Mutex<Version>,
    mask: Mask,
    idle: Duration,
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

impl Place {
    fn of(named: &str, config: &Config) -> Result<Place, Problems> {
        let get = |name: &str| config.env.get(name).unwrap_or_default();
        let need = |names: &[&str]| {
            let missing = names.iter().filter(|name| get(name).is_empty());
            let problem =
                |name: &&str| Problem::new(*name, format!("must be set when the browser's upstream is {named}"));
            let problems: Vec<Problem> = missing.map(problem).collect();
            if problems.is_empty() {
                Ok(())
            } else {
                Err(Problems(problems))
            }
        };
        let parse = |name: &str, text: &str| {
            let problem = |error| Problems(vec![Problem::new(name, format!("this is not a URL: {error}"))]);
            Url::parse(text).map_err(problem)
        };
        match named {
            "worker" => {
                need(&["WORKER_URL", "CDP_SECRET"])?;
                let mut url = parse("WORKER_URL", get("WORKER_URL"))?;
                url.set_path("/cdp");
                url.set_query(None);
                let secret = Secret::new(get("CDP_SECRET").to_owned());
                Ok(Place::Worker { url, secret })
            }
            "cloudflare" => {
                need(&["CF_ACCOUNT_ID", "CF_BROWSER_TOKEN"])?;
                let api = Some(get("CLOUDFLARE_API_BASE_URL"))
                    .filter(|api| !api.is_empty())
                    .unwrap_or(API);
                let mut url = parse("CLOUDFLARE_API_BASE_URL", api)?;
                let path = format!("/accounts/{}/browser-rendering/devtools/browser", get("CF_ACCOUNT_ID"));
                url = at(&url, &path, Some(&format!("keep_alive={KEEP_ALIVE}")));
                let token = Secret::new(get("CF_BROWSER_TOKEN").to_owned());
                Ok(Place::Cloudflare { url, token })
            }
            address => {
                let mut url = parse("MOLTINIT_CDP_UPSTREAM", address)?;
                let plain = match url.scheme() {
                    "ws" => "http",
                    "wss" => "https",
                    _ => return Ok(Place::Http(url)),
                };
                // Dialled by the same client, by the name it knows.
                let _ = url.set_scheme(plain);
                Ok(Place::WebSocket(url))
            }
        }
    }
}

impl Upstream {
    /// The browser that the configuration names; `None` without one.
    ///
    /// # Errors
    /// Settings that it needs are missing or wrong, each by name.
    pub fn of(config: &Config) -> Result<Option<Upstream>, Problems> {
        let Some(named) = config.cdp.upstream.as_deref() else {
            return Ok(None);
        };
        Ok(Some(Upstream {
            place: Place::of(named, config)?,
            client: OnceCell::new(),
            version: Mutex::default(),
            mask: config.mask.clone(),
            idle: config.cdp.idle,
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

    /// Host and port, by which others may know it.
    pub fn authority(&self) -> String {
        let (Place::Worker { url, .. } | Place::Cloudflare { url, .. } | Place::Http(url) | Place::WebSocket(url)) =
            &self.place;
        authority(url)
    }

    /// `text` without the secrets in it.
    pub fn masked(&self, text: &str) -> String {
        self.mask.apply(text).into_owned()
    }

    /// What `/json/version` says, or would say.
    pub async fn version_page(&self) -> Value {
        match self.ask("GET", "/json/version", None, SOON).await {
            Ok((StatusCode::OK, page @ Value::Object(_))) => {
                self.remember(Version::of_page(&page));
                page
            }
            _ => self.known().page(),
        }
    }

    /// Which browser it is, without launching one.
    pub async fn version(&self) -> Version {
        if self.has_discovery() {
            let _ = self.version_page().await;
        }
        self.known()
    }

    fn known(&self) -> Version {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a browser there has said of itself.
    pub fn remember(&self, version: Option<Version>) {
        if let Some(version) = version {
            *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
        }
    }

    /// Asks for a plain page where a browser is dialled, with the secret: a look that launches nothing.
    ///
    /// # Errors
    /// A dial would fail, and why.
    pub async fn knock(&self) -> Result<(), DialError> {
        let status = match &self.place {
            Place::Worker { .. } => match self.look("").await {
                // moltworker's says this to anybody, and looks at the secret where it says which browser it is.
                Ok(StatusCode::OK) => self.look("/json/version").await?,
                looked => looked?,
            },
            Place::Http(_) => self.look("/json/version").await?,
            Place::Cloudflare { .. } | Place::WebSocket(_) => self.look("").await?,
        };
        tracing::debug!(%status, "the browser's address answers");
        Ok(())
    }

    async fn look(&self, below: &str) -> Result<StatusCode, DialError> {
        let request = self.request("GET", at(&self.url(), below, None)).await?.timeout(PAGE);
        let answer = request.send().await.map_err(unreachable)?;
        match answer.status() {
            // Whatever is none of these wants a WebSocket.
            status if matches!(status.as_u16(), 300..=399 | 401 | 403 | 429 | 500..=599) => {
                Err(self.refusal(status, answer.headers()))
            }
            // A browser has no page where its WebSocket is, and the page of a Worker of ours goes no further.
            StatusCode::NOT_FOUND if below.is_empty() && !matches!(self.place, Place::WebSocket(_)) => {
                Err(self.refusal(StatusCode::NOT_FOUND, answer.headers()))
            }
            status => Ok(status),
        }
    }

    /// It launches a browser for each connection, so that clients have to share one.
    pub fn launches(&self) -> bool {
        matches!(self.place, Place::Worker { .. } | Place::Cloudflare { .. })
    }

    /// For how long a browser that is launched outlives the last of its clients.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// The same place, reached in the same way.
    pub fn is_same(&self, other: &Upstream) -> bool {
        self.place == other.place && self.idle == other.idle
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
            Place::Http(base) if path == BROWSER_PATH => {
                let (status, version) = self.ask("GET", "/json/version", None, PAGE).await?;
                if !status.is_success() {
                    return Err(self.refusal(status, &header::HeaderMap::new()));
                }
                self.remember(Version::of_page(&version));
                let found = version["webSocketDebuggerUrl"]
                    .as_str()
                    .and_then(|url| Url::parse(url).ok());
                let found =
                    found.ok_or_else(|| DialError::Nonsense("no webSocketDebuggerUrl in /json/version".into()))?;
                // Its own idea of its host is as seen from where it runs.
                at(base, found.path(), found.query())
            }
            Place::Http(base) => at(base, path, None),
            _ => self.url(),
        };
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, rand::random::<[u8; 16]>());
        let request = self
            .request("GET", url)
            .await?
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key);
        let answer = request.send().await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => answer.upgrade().await.map_err(unreachable),
            status => Err(self.refusal(status, answer.headers())),
        }
    }

    /// Where it is, with the secret if that belongs into the address.
    fn url(&self) -> Url {
        match &self.place {
            Place::Worker { url, secret } => {
                let mut url = url.clone();
                url.query_pairs_mut().append_pair("secret", secret.expose());
                url
            }
            Place::Cloudflare { url, .. } | Place::Http(url) | Place::WebSocket(url) => url.clone(),
        }
    }

    async fn request(&self, method: &str, url: Url) -> Result<RequestBuilder, DialError> {
        let method = method.parse().map_err(|_| DialError::Nonsense("the method".into()))?;
        let request = self.client().await?.request(method, url);
        Ok(match &self.place {
            Place::Cloudflare { token, .. } => request.bearer_auth(token.expose()),
            _ => request,
        })
    }

    /// A page of discovery from an upstream that has it, if it comes `within` that time; also one that says what was
    /// wrong with the question.
    ///
    /// # Errors
    /// [`DialError`]; also when the upstream has no discovery.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        query: Option<&str>,
        within: Duration,
    ) -> Result<(StatusCode, Value), DialError> {
        let Place::Http(base) = &self.place else {
            return Err(DialError::NotThere("whether this browser has discovery"));
        };
        let asked = async {
            let answer = self.request(method, at(base, path, query)).await?.send().await;
            let answer = answer.map_err(unreachable)?;
            let status = answer.status();
            let is_its_own = status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 429);
            if !status.is_success() && !is_its_own {
                return Err(self.refusal(status, answer.headers()));
            }
            let text = answer.text().await.map_err(unreachable)?;
            // `/json/activate` and `/json/close` answer in plain words.
            let words = |_| Value::String(text.chars().take(WORDS).collect());
            Ok((status, serde_json::from_str(&text).unwrap_or_else(words)))
        };
        timeout(within, asked).await.unwrap_or(Err(DialError::TimedOut(within)))
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

/// `path` at the place of `base`, keeping what the base has in front and in its query, which comes after this one's.
fn at(base: &Url, path: &str, query: Option<&str>) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    let both = [query, base.query()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("&");
    url.set_query(Some(both.as_str()).filter(|both| !both.is_empty()));
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Machine};

    fn of(env: &[(&str, &str)]) -> Result<Option<Upstream>, Problems> {
        let config = config::load(None, env.iter().copied().collect(), &Machine::look())?;
        Upstream::of(&config)
    }

    #[test]
    fn what_is_missing_is_named_all_at_once() {
        let problems = |env: &[(&str, &str)]| of(env).err().unwrap().to_string();
        let said = problems(&[("MOLTINIT_CDP_UPSTREAM", "cloudflare")]);
        assert!(
            said.contains("CF_ACCOUNT_ID") && said.contains("CF_BROWSER_TOKEN"),
            "{said}"
        );
        let said = problems(&[("MOLTINIT_CDP_UPSTREAM", "worker"), ("WORKER_URL", "w.example")]);
        assert!(said.contains("CDP_SECRET") && !said.contains("WORKER_URL"), "{said}");
    }

    #[test]
    fn a_workers_address_needs_no_scheme() {
        let upstream = of(&[("WORKER_URL", "w.example"), ("CDP_SECRET", "s e&cret")])
            .unwrap()
            .unwrap();
        assert_eq!(upstream.url().as_str(), "https://w.example/cdp?secret=s+e%26cret");
    }

    #[test]
    fn an_upstreams_own_query_stays() {
        let base = Url::parse("https://b.example/in/front/?token=t").unwrap();
        let new = at(&base, "/json/new", Some("https://page.example/?a=1"));
        assert_eq!(
            new.as_str(),
            "https://b.example/in/front/json/new?https://page.example/?a=1&token=t"
        );
        assert_eq!(at(&base, "", None).as_str(), "https://b.example/in/front?token=t");
    }
}
