//! `http`: a 2xx answer to GET; with `json`, a JSON object in which that key is true.
//!
//! A status alone says little: the gateway's control UI answers 200 with HTML on any path it does not know.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use url::{Host, Position, Url};

/// No probe's answer is longer.
const BODY_MAX: usize = 64 * 1024;

/// Whether that is a URL that can be probed.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(url: &str) -> Result<Url, String> {
    match Url::parse(url) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(url),
        Ok(_) => Err(format!(
            "`{url}` cannot be probed; write it like http://127.0.0.1:8080/healthz"
        )),
        Err(error) => Err(format!("`{url}` is not a URL: {error}")),
    }
}

/// Asks once.
///
/// # Errors
/// What was wrong with the answer, or that there was none.
pub async fn check(url: &str, json: Option<&str>) -> Result<(), String> {
    let url = check_url(url)?;
    let port = url.port_or_known_default().unwrap_or(80);
    let connected = match url.host() {
        Some(Host::Ipv4(ip)) => TcpStream::connect((ip, port)).await,
        Some(Host::Ipv6(ip)) => TcpStream::connect((ip, port)).await,
        Some(Host::Domain(name)) => TcpStream::connect((name, port)).await,
        None => return Err(format!("`{url}` names no host")),
    };
    let stream = connected.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "moltinit")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(said)?;
        let status = response.status();
        let refused = |more: &str| Err(format!("status {status}{more}"));
        let Some(key) = json else {
            return if status.is_success() { Ok(()) } else { refused("") };
        };
        match Limited::new(response.into_body(), BODY_MAX).collect().await {
            Ok(body) if status.is_success() => is_true(&body.to_bytes(), key),
            Ok(body) => refused(&failing(&body.to_bytes())),
            Err(error) if status.is_success() => Err(format!("the answer broke off: {error}")),
            Err(_) => refused(""),
        }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the answer already here.
        _ = connection => exchange.await,
    }
}

fn said(error: hyper::Error) -> String {
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The parts of it that fail, where it names them as the gateway does: `{"ready":false,"failing":["telegram"]}`.
fn failing(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Named {
        failing: Vec<String>,
    }
    match serde_json::from_slice(body) {
        Ok(Named { failing }) if !failing.is_empty() => format!(", failing: {}", failing.join(", ")),
        _ => String::new(),
    }
}

fn is_true(body: &[u8], key: &str) -> Result<(), String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => match object.get(key) {
            Some(Value::Bool(true)) => Ok(()),
            Some(other) => Err(format!("`{key}` is {other}")),
            None => Err(format!("the answer has no `{key}`")),
        },
        Ok(_) => Err("the answer is JSON, but not an object".into()),
        Err(_) => Err("the answer is not JSON".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    /// Serves one connection that answer, and gives what was asked.
    async fn asked(answer: &'static str, json: Option<&str>) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz?a=b", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request.truncate(read);
            String::from_utf8(request).unwrap()
        });
        let checked = timeout(Duration::from_secs(30), check(&url, json)).await.unwrap();
        (checked, server.await.unwrap())
    }

    #[tokio::test]
    async fn only_the_json_asked_for_is_health() {
        for (answer, json, verdict) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", None, Ok(())),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"ready\":true}",
                Some("ready"),
                Ok(()),
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"ready\r\n7\r\n\":true}\r\n0\r\n\r\n",
                Some("ready"),
                Ok(()),
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n<html></html>",
                Some("ready"),
                Err("the answer is not JSON"),
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"ready\":false}",
                Some("ready"),
                Err("`ready` is false"),
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"ok\":true}",
                Some("ready"),
                Err("the answer has no `ready`"),
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\ntrue",
                Some("ready"),
                Err("the answer is JSON, but not an object"),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"ready\":true}",
                Some("ready"),
                Err("status 503 Service Unavailable"),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"ready\":false,\"failing\":[\"telegram\",\"slack\"]}",
                Some("ready"),
                Err("status 503 Service Unavailable, failing: telegram, slack"),
            ),
            ("HTTP/1.1 302 Found\r\n\r\n", None, Err("status 302 Found")),
        ] {
            let (checked, request) = asked(answer, json).await;
            assert_eq!(checked, verdict.map_err(str::to_owned), "{answer}");
            assert!(
                request.starts_with("GET /readyz?a=b HTTP/1.1\r\nhost: 127.0.0.1:"),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_a_failure() {
        for answer in [
            "",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{",
        ] {
            let (checked, _) = asked(answer, Some("ready")).await;
            checked.unwrap_err();
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(&[b' '; 4096]).await.is_ok() {}
        });
        let checked = timeout(Duration::from_secs(30), check(&url, Some("ok"))).await.unwrap();
        let why = checked.unwrap_err();
        assert!(why.contains("length limit"), "{why}");
        server.await.unwrap();
    }

    #[test]
    fn urls_that_cannot_be_probed_are_refused() {
        for url in ["https://127.0.0.1/", "unix:/a", "127.0.0.1:1", "http://", "nonsense"] {
            check_url(url).unwrap_err();
        }
    }
}
