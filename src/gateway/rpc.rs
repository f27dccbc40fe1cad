//! The gateway's WebSocket protocol, as far as it takes to ask how it is and to pair devices.
//!
//! The gateway sends a `connect.challenge`; the client answers with a `connect` request; then requests and responses
//! carry ids, with events in between. An operator on direct loopback with the gateway's token or password needs no device
//! identity (the `gateway-client` in `backend` mode), so we have none that could be lost or stolen. The early generation speaks version 3, the current one version 4. The
//! protocol is described in the package's own `docs/gateway/protocol.md`.

use std::{net::Ipv4Addr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error as WsError, Message, protocol::WebSocketConfig},
};

use crate::config::secret::{Mask, Secret};

/// Versions of the protocol that this client speaks.
const PROTOCOL: (u32, u32) = (3, 4);
/// Far more than any answer asked for here, and little enough to hold.
const MESSAGE_MAX: usize = 8 << 20;

/// A call that brought no answer. Secrets are struck out of what the gateway said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    #[error("nothing answers on 127.0.0.1:{port} ({why}); is the gateway running?")]
    Unreachable { port: u16, why: String },
    #[error("the gateway is still starting")]
    Starting,
    #[error("the gateway did not answer within {} s", .0.as_secs_f64())]
    Deadline(Duration),
    #[error("the gateway refuses: {message} ({code})")]
    Refused { code: String, message: String },
    #[error("there is no request `{0}`; `moltinit devices list` shows those that wait")]
    NoSuchRequest(String),
    #[error("the gateway speaks a protocol this version does not know: {0}")]
    Unknown(String),
}

impl RpcError {
    /// What the gateway says when it says no.
    pub fn refused(code: String, message: String) -> RpcError {
        if message.contains("protocol mismatch") {
            RpcError::Unknown(message)
        } else {
            RpcError::Refused { code, message }
        }
    }
}

/// What the gateway knows an operator by; which of them counts is its configuration's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub token: Option<Secret>,
    pub password: Option<Secret>,
}

impl Credentials {
    pub fn secrets(&self) -> impl Iterator<Item = String> {
        let both = self.token.iter().chain(&self.password);
        both.map(|secret| secret.expose().clone())
    }
}

/// A client of the gateway on a loopback port. Each call is a connection of its own, some 10 ms.
#[derive(Debug, Clone)]
pub struct Rpc {
    port: u16,
    credentials: Credentials,
    mask: Mask,
}

/// Devices that ask to be paired, and those that are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    #[serde(default)]
    pub pending: Vec<PendingDevice>,
    #[serde(default)]
    pub paired: Vec<PairedDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDevice {
    /// What to approve.
    pub request_id: String,
    pub device_id: String,
    pub display_name: Option<String>,
    pub platform: Option<String>,
    pub client_id: Option<String>,
    pub role: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub remote_ip: Option<String>,
    /// Unix time in milliseconds.
    pub ts: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairedDevice {
    pub device_id: String,
    pub display_name: Option<String>,
    pub platform: Option<String>,
    pub client_id: Option<String>,
    pub role: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub remote_ip: Option<String>,
    /// Unix time in milliseconds.
    pub approved_at_ms: Option<u64>,
}

impl Rpc {
    pub fn new(port: u16, credentials: Credentials) -> Self {
        let mask = Mask::new(credentials.secrets());
        Rpc {
            port,
            credentials,
            mask,
        }
    }

    /// Whether the gateway is up and answers.
    ///
    /// # Errors
    /// It does not, within `patience`.
    pub async fn health(&self, patience: Duration) -> Result<(), RpcError> {
        self.call::<Value>("health", None, patience).await.map(drop)
    }

    /// # Errors
    /// No answer within `patience`, or a refusal.
    pub async fn devices(&self, patience: Duration) -> Result<Devices, RpcError> {
        self.call("device.pair.list", Some(json!({})), patience).await
    }

    /// Approves one request for pairing.
    ///
    /// # Errors
    /// No answer within `patience`, or a refusal: an unknown request, or one that has expired.
    pub async fn approve(&self, request_id: &str, patience: Duration) -> Result<(), RpcError> {
        let params = json!({ "requestId": request_id });
        match self.call::<Value>("device.pair.approve", Some(params), patience).await {
            Err(RpcError::Refused { message, .. }) if message.contains("unknown requestId") => {
                Err(RpcError::NoSuchRequest(request_id.to_owned()))
            }
            answer => answer.map(drop),
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Option<Value>,
        patience: Duration,
    ) -> Result<T, RpcError> {
        let whole = async {
            let mut session = Session::open(self).await?;
            let payload = session.request(self, method, params).await?;
            // The answer is here; a farewell the gateway does not take is nobody's loss.
            let _ = session.socket.close(None).await;
            serde_json::from_value(payload)
                .map_err(|error| RpcError::Unknown(format!("the answer to {method} is no such thing: {error}")))
        };
        timeout(patience, whole)
            .await
            .unwrap_or(Err(RpcError::Deadline(patience)))
    }

    fn unreachable(&self, why: impl ToString) -> RpcError {
        RpcError::Unreachable {
            port: self.port,
            why: why.to_string(),
        }
    }

    /// What somebody else wrote, for people to read: one line, no secrets.
    fn clean(&self, text: &str) -> String {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.mask.apply(&line).into_owned()
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Event {
        event: String,
    },
    Res {
        id: String,
        ok: bool,
        #[serde(default)]
        payload: Value,
        error: Option<Refusal>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Value,
}

struct Session {
    socket: WebSocketStream<TcpStream>,
}

impl Session {
    async fn open(rpc: &Rpc) -> Result<Session, RpcError> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, rpc.port))
            .await
            .map_err(|error| rpc.unreachable(error))?;
        let url = format!("ws://127.0.0.1:{}/", rpc.port);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX));
        let (socket, _) = client_async_with_config(url, stream, Some(config))
            .await
            .map_err(|error| match error {
                WsError::Io(error) => rpc.unreachable(error),
                other => RpcError::Unknown(format!("no WebSocket ({other})")),
            })?;
        let mut session = Session { socket };
        loop {
            match session.next(rpc).await? {
                Frame::Event { event } if event == "connect.challenge" => break,
                _ => {}
            }
        }
        let mut params = json!({
            "minProtocol": PROTOCOL.0,
            "maxProtocol": PROTOCOL.1,
            "client": {
                "id": "gateway-client",
                "version": env!("CARGO_PKG_VERSION"),
                "platform": "linux",
                "mode": "backend",
            },
            "role": "operator",
            "scopes": ["operator.admin"],
        });
        let Credentials { token, password } = &rpc.credentials;
        for (name, secret) in [("token", token), ("password", password)] {
            if let Some(secret) = secret {
                params["auth"][name] = secret.expose().as_str().into();
            }
        }
        session.request(rpc, "connect", Some(params)).await?;
        Ok(session)
    }

    async fn request(&mut self, rpc: &Rpc, method: &str, params: Option<Value>) -> Result<Value, RpcError> {
        let mut frame = json!({ "type": "req", "id": method, "method": method });
        if let Some(params) = params {
            frame["params"] = params;
        }
        self.socket
            .send(Message::text(frame.to_string()))
            .await
            .map_err(|error| rpc.unreachable(error))?;
        loop {
            match self.next(rpc).await? {
                Frame::Res {
                    id, ok: true, payload, ..
                } if id == method => return Ok(payload),
                Frame::Res { id, error, .. } if id == method => return Err(refusal(rpc, error)),
                _ => {}
            }
        }
    }

    async fn next(&mut self, rpc: &Rpc) -> Result<Frame, RpcError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|error| RpcError::Unknown(format!("a frame is no such thing: {error}")));
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    let code = u16::from(close.code).to_string();
                    return Err(RpcError::refused(code, rpc.clean(&close.reason)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(rpc.unreachable(error)),
                None => return Err(rpc.unreachable("it hung up")),
            }
        }
    }
}

/// What a gateway may say, a line a frame. Nothing that is shown of it is more than a line, or has the token in it.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    const TOKEN: &str = "a-token-of-a-gateway";
    let token = Some(Secret::new(TOKEN.to_owned()));
    let rpc = Rpc::new(1, Credentials { token, password: None });
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(Frame::Res { payload, error, .. }) = serde_json::from_slice(line) else {
            continue;
        };
        let _ = serde_json::from_value::<Devices>(payload);
        let said = refusal(&rpc, error).to_string();
        assert!(!said.contains(TOKEN) && !said.contains(char::is_control), "{said}");
    }
}

fn refusal(rpc: &Rpc, error: Option<Refusal>) -> RpcError {
    let Some(error) = error else {
        return RpcError::Unknown("a refusal without a reason".to_owned());
    };
    if error.code == "UNAVAILABLE" && error.details["reason"] == "startup-sidecars" {
        return RpcError::Starting;
    }
    RpcError::refused(rpc.clean(&error.code), rpc.clean(&error.message))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    use super::*;

    const TOKEN: &str = "t0k3n-0123456789";
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A gateway that answers each frame it gets with the next of `script`.
    async fn stand_in(script: Vec<&'static str>) -> Rpc {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = accept_async(stream).await.unwrap();
            for (at, text) in script.into_iter().enumerate() {
                if at > 0 {
                    socket.next().await;
                }
                for line in text.lines() {
                    let _ = socket.send(Message::text(line)).await;
                }
            }
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        });
        let token = Some(Secret::new(TOKEN.to_owned()));
        let credentials = Credentials { token, password: None };
        Rpc::new(port, credentials)
    }

    const CHALLENGE: &str = r#"{"type":"event","event":"connect.challenge","payload":{"nonce":"n","ts":1}}"#;
    const HELLO: &str = r#"{"type":"res","id":"connect","ok":true,"payload":{"type":"hello-ok","protocol":4}}"#;

    #[tokio::test]
    async fn an_answer_is_found_among_events() {
        let rpc = stand_in(vec![
            CHALLENGE,
            HELLO,
            "{\"type\":\"event\",\"event\":\"tick\"}\n{\"type\":\"strange\"}\n{\"type\":\"res\",\"id\":\"device.pair.list\",\"ok\":true,\"payload\":{\"pending\":[{\"requestId\":\"r\",\"deviceId\":\"d\",\"new\":1}],\"paired\":[]}}",
        ])
        .await;
        let devices = rpc.devices(PATIENCE).await.unwrap();
        assert_eq!(devices.pending[0].request_id, "r");
        assert!(devices.paired.is_empty());
    }

    #[tokio::test]
    async fn a_refusal_does_not_show_the_token() {
        let rpc = stand_in(vec![
            CHALLENGE,
            r#"{"type":"res","id":"connect","ok":false,"error":{"code":"UNAUTHORIZED","message":"bad\ntoken t0k3n-0123456789"}}"#,
        ])
        .await;
        let error = rpc.health(PATIENCE).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the gateway refuses: bad token [secret] (UNAUTHORIZED)"
        );
        assert!(!format!("{rpc:?} {error:?}").contains(TOKEN));
    }

    #[tokio::test]
    async fn a_gateway_that_is_starting_is_not_a_broken_one() {
        let rpc = stand_in(vec![
            CHALLENGE,
            r#"{"type":"res","id":"connect","ok":false,"error":{"code":"UNAVAILABLE","message":"starting","details":{"reason":"startup-sidecars"}}}"#,
        ])
        .await;
        assert_eq!(rpc.health(PATIENCE).await, Err(RpcError::Starting));
    }

    #[tokio::test]
    async fn another_protocol_is_no_refusal() {
        let rpc = stand_in(vec![
            CHALLENGE,
            r#"{"type":"res","id":"connect","ok":false,"error":{"code":"INVALID_REQUEST","message":"protocol mismatch"}}"#,
        ])
        .await;
        assert!(matches!(rpc.health(PATIENCE).await, Err(RpcError::Unknown(_))));
    }

    #[tokio::test]
    async fn a_request_that_is_gone_is_named() {
        let rpc = stand_in(vec![
            CHALLENGE,
            HELLO,
            r#"{"type":"res","id":"device.pair.approve","ok":false,"error":{"code":"INVALID_REQUEST","message":"unknown requestId"}}"#,
        ])
        .await;
        let gone = RpcError::NoSuchRequest("r".to_owned());
        assert_eq!(rpc.approve("r", PATIENCE).await, Err(gone));
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let rpc = stand_in(vec![CHALLENGE]).await;
        let patience = Duration::from_millis(200);
        assert_eq!(rpc.health(patience).await, Err(RpcError::Deadline(patience)));
    }

    #[tokio::test]
    async fn what_is_no_gateway_is_named() {
        let rpc = stand_in(vec!["hello there"]).await;
        assert!(matches!(rpc.health(PATIENCE).await, Err(RpcError::Unknown(_))));

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = Rpc::new(port, Credentials::default())
            .health(PATIENCE)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is the gateway running?"), "{error}");
    }
}
