//! Pairing of devices: over the gateway's protocol, or by its own command line where it speaks another than ours.

use std::time::Duration;

use tracing::warn;

use super::{
    Gateway,
    rpc::{Devices, RpcError},
};

/// For an answer of the gateway, which takes milliseconds when it is well.
const ANSWER: Duration = Duration::from_secs(10);

impl Gateway {
    /// # Errors
    /// The gateway does not answer, or refuses.
    pub async fn devices(&self) -> Result<Devices, RpcError> {
        match self.rpc().devices(ANSWER).await {
            Err(RpcError::Unknown(why)) => {
                let said = self.by_command_line(why, &["devices", "list", "--json"]).await?;
                let strange = |error| RpcError::Unknown(format!("its command line's list is no such thing: {error}"));
                serde_json::from_value(said).map_err(strange)
            }
            answer => answer,
        }
    }

    /// Approves one request for pairing.
    ///
    /// # Errors
    /// The gateway does not answer, knows of no such request, or refuses.
    pub async fn approve(&self, request: &str) -> Result<(), RpcError> {
        match self.rpc().approve(request, ANSWER).await {
            Err(RpcError::Unknown(why)) => {
                let approve = ["devices", "approve", request, "--json"];
                self.by_command_line(why, &approve).await.map(drop)
            }
            answer => answer,
        }
    }

    async fn by_command_line(&self, why: String, words: &[&str]) -> Result<serde_json::Value, RpcError> {
        let Some(cli) = self.cli() else {
            return Err(RpcError::Unknown(why));
        };
        warn!("asking the gateway's command line, since its protocol is not known here: {why}");
        cli.json(words).await
    }
}
