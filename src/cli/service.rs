//! `moltinit start|stop|restart`: one service.

use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::{
    failure::Failure,
    talk::{done, talk},
};
use crate::report::client::{Operation, escaped};

#[derive(Debug, Args)]
pub struct Service {
    service: String,
    /// Return when it is ready, or has stopped
    #[arg(long)]
    wait: bool,
}

impl Service {
    /// `action` is `start`, `stop` or `restart`.
    pub fn run(self, action: &str, file: Option<&Path>) -> Result<(), Failure> {
        let path = format!("/services/{}/{action}", escaped(&self.service));
        talk(file, async |client| {
            if self.wait {
                done(&client.post_and_wait(&path).await?)
            } else {
                client.post::<Operation>(&path, None::<&Value>).await?;
                Ok(())
            }
        })
    }
}
