//! `moltinit devices`: pairing requests.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    failure::{Failure, whole},
    show,
    talk::talk,
};
use crate::report::{
    client::{Client, escaped},
    control,
};

#[derive(Debug, Subcommand)]
pub enum Devices {
    /// What waits for approval, and what is paired
    List {
        #[arg(long)]
        json: bool,
    },
    Approve(Approve),
}

/// Approve a request, or all of them
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Approve {
    id: Option<String>,
    #[arg(long)]
    all: bool,
}

impl Devices {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        talk(file, async |client| match self {
            Devices::List { json } => list(&client, json).await,
            Devices::Approve(Approve { id: Some(id), .. }) => approve(&client, &id).await,
            Devices::Approve(Approve { id: None, .. }) => approve_all(&client).await,
        })
    }
}

async fn approve(client: &Client, id: &str) -> Result<(), Failure> {
    client
        .post::<Value>(&format!("/devices/{}/approve", escaped(id)), None::<&Value>)
        .await?;
    Ok(show::line(format_args!("approved {id}"))?)
}

/// One that is refused, because it has run out meanwhile, does not keep the others waiting.
async fn approve_all(client: &Client) -> Result<(), Failure> {
    let devices: control::Devices = client.get("/devices").await?;
    let pending: Vec<&str> = devices
        .pending
        .iter()
        .filter_map(|device| text(device, "requestId"))
        .collect();
    if pending.is_empty() {
        show::line(format_args!("no device asks to be paired"))?;
    }
    let mut refused = 0;
    for id in &pending {
        if let Err(failure) = approve(client, id).await {
            show::remark(&format!("{id}: {}", whole(&failure.error)));
            refused += 1;
        }
    }
    if refused > 0 {
        let all = pending.len();
        return Err(anyhow::anyhow!("{refused} of {all} requests were not approved").into());
    }
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let devices: control::Devices = client.get("/devices").await?;
    if json {
        return Ok(show::json(&devices)?);
    }
    let row = |state: &str, id: &str, device: &Value| {
        let field = |name| text(device, name).unwrap_or_default().to_owned();
        [
            state.to_owned(),
            text(device, id).unwrap_or_default().to_owned(),
            field("displayName"),
            field("platform"),
            field("role"),
        ]
    };
    let mut rows = vec![["STATE", "ID", "NAME", "PLATFORM", "ROLE"].map(str::to_owned)];
    rows.extend(devices.pending.iter().map(|device| row("pending", "requestId", device)));
    rows.extend(devices.paired.iter().map(|device| row("paired", "deviceId", device)));
    Ok(show::table(&rows)?)
}

fn text<'a>(device: &'a Value, field: &str) -> Option<&'a str> {
    device[field].as_str()
}
