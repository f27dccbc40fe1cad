//! The one way out over HTTPS: the system's roots, its proxies from the environment, and no redirects, so that a
//! signature goes where it was meant to.

use std::{error::Error, time::Duration};

use reqwest::{Client, redirect::Policy};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the whole of one request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A client that was not used for so long has no connection left.
pub const IDLE: Duration = Duration::from_secs(60);

/// Makes a client; reading the system's roots takes tens of milliseconds, on a thread that may block.
///
/// # Errors
/// The roots cannot be read, or a proxy's address is wrong.
pub async fn client() -> Result<Client, String> {
    let make = || {
        // Fails only where it has been done already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("moltinit/", env!("CARGO_PKG_VERSION")))
            .build()
    };
    tokio::task::spawn_blocking(make)
        .await
        .map_err(|error| error.to_string())?
        .map_err(reason)
}

/// The error and what caused it, without the URL, which may hold a secret.
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
