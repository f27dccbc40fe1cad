//! `moltinit attach`: what a start script of old becomes. It brings the environment that it was given to the
//! supervisor and stays for as long as the service does, so that whoever looks for the script's process finds one.

use std::{collections::BTreeMap, path::Path};

use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{failure::Failure, talk::talk};
use crate::report::client::{Attach as Request, Attached, Client, Operation, escaped};

/// Of the caller itself, not for a service.
const NOT_HANDED_OVER: &[&str] = &["_", "OLDPWD", "PWD", "SHLVL", "TERM"];

#[derive(Debug, Args)]
pub struct Attach {
    service: String,
}

impl Attach {
    pub fn run(self, file: Option<&Path>) -> Result<i32, Failure> {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, _)| !NOT_HANDED_OVER.contains(&key.as_str()))
            .collect();
        talk(file, async |client| self.stay(&client, Request { env }).await)
    }

    async fn stay(&self, client: &Client, request: Request) -> Result<i32, Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let service = format!("/services/{}", escaped(&self.service));
        let attach = format!("{service}/attach");
        let ended = client.post::<Attached>(&attach, Some(&request));
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return Ok(ended?.exit_code),
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            client
                .post::<Operation>(&format!("{service}/stop"), None::<&Value>)
                .await?;
        }
    }
}
