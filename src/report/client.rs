//! The other end of the control socket, for the command line.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::net::UnixStream;

pub use super::http::{Attach, Attached, Events, Kind, Lines, Operation, Outcome, Problem, Snapshots};

/// A supervisor that has not even said that it lives in this time is stopped or stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was asked for did not come.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no moltinit is running: {} cannot be reached ({source}); \
         start it, or name its run directory with MOLTINIT_RUN_DIR",
        path.display()
    )]
    NotRunning { path: PathBuf, source: std::io::Error },
    #[error(
        "{} may not be opened by this user; ask as the user that moltinit runs as",
        path.display()
    )]
    Denied { path: PathBuf },
    #[error(
        "moltinit does not answer on {} within {} s: it is stopped, or stuck; see its process and its log",
        path.display(),
        PATIENCE.as_secs()
    )]
    Silent { path: PathBuf },
    /// It said no.
    #[error("{}", .0.detail)]
    Refused(Problem),
    #[error("the answer of moltinit broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("moltinit answered what this version does not understand: {0}")]
    Strange(#[from] serde_json::Error),
}

/// Talks to the moltinit of a run directory; one connection a request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// To the moltinit whose control socket is at `path`.
    pub fn unix(path: &Path) -> Client {
        Client {
            socket: path.to_owned(),
        }
    }

    /// Asks for a document; `path` begins with a slash and may have a query.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        document(self.send(Method::GET, path, None::<&Value>).await?).await
    }

    /// Asks for something to be done.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        document(self.send(Method::POST, path, body).await?).await
    }

    /// Asks for something to be done that takes time, and waits until it has ended, however it has.
    pub async fn post_and_wait(&self, path: &str) -> Result<Operation, ClientError> {
        let mut operation: Operation = self.post(path, None::<&Value>).await?;
        while operation.outcome == Outcome::Running {
            operation = self.get(&format!("/operations/{}?wait=60s", operation.id)).await?;
        }
        Ok(operation)
    }

    /// Follows a stream of server-sent events, each one document.
    pub async fn follow<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + use<T>, ClientError> {
        let response = self.send(Method::GET, path, None::<&Value>).await?;
        let mut lines = Lined::default();
        let frames = BodyStream::new(response.into_body());
        Ok(frames
            .flat_map(move |frame| {
                let found = match frame {
                    Ok(frame) => lines.take(frame.data_ref().map_or(&[][..], |data| data)),
                    Err(error) => return stream::iter(vec![Err(ClientError::from(error))]),
                };
                let parsed = found.iter().map(|data| Ok(serde_json::from_slice(data)?));
                stream::iter(parsed.collect::<Vec<_>>())
            })
            .boxed())
    }

    /// A connection to a supervisor that lives. Whatever is asked for may take its time from here on.
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let path = || self.socket.clone();
        let reach = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|source| match source.kind() {
                    ErrorKind::PermissionDenied => ClientError::Denied { path: path() },
                    _ => ClientError::NotRunning { path: path(), source },
                })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let probe = Request::get("/healthz").header(HOST, "moltinit").body(Full::default());
            let answer = sender.send_request(probe.expect("it is all constant")).await?;
            answer.into_body().collect().await?;
            sender.ready().await?;
            Ok(sender)
        };
        let reached = tokio::time::timeout(PATIENCE, reach).await;
        reached.unwrap_or_else(|_| Err(ClientError::Silent { path: path() }))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut sender = self.connect().await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, "moltinit");
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let request = request
            .body(Full::new(Bytes::from(body)))
            .expect("callers escape what they put into a path");
        let response = sender.send_request(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await?.to_bytes();
        Err(ClientError::Refused(serde_json::from_slice(&bytes)?))
    }
}

async fn document<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&bytes)?)
}

/// A part of a URL's path that may hold anything.
pub fn escaped(part: &str) -> String {
    part.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

/// Cuts a stream of bytes into the data lines of server-sent events; ours are one line each.
#[derive(Default)]
struct Lined(Vec<u8>);

impl Lined {
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.0.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.0);
            if let Some(data) = line.strip_prefix(b"data:") {
                found.push(data.trim_ascii().to_vec());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let stream = b"data: {\"a\":1}\n\n: keep-alive\n\ndata:{\"b\":2}\n\n";
        for at in 0..stream.len() {
            let mut lines = Lined::default();
            let mut found = lines.take(&stream[..at]);
            found.extend(lines.take(&stream[at..]));
            assert_eq!(found, [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()]);
        }
    }

    #[test]
    fn a_path_cannot_be_broken_out_of() {
        assert_eq!(escaped("a/../b?c d"), "a%2F..%2Fb%3Fc%20d");
    }
}
