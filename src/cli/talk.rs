//! Talking to the supervisor that runs here, over its control socket.

use std::{future::Future, path::Path};

use super::failure::{CONFIG, Failure, UNAVAILABLE};
use crate::{
    config::Config,
    report::{
        SOCKET,
        client::{Client, ClientError, Kind, Operation, Outcome},
    },
};

/// Runs `talk` with a client of the supervisor whose run directory the configuration names.
pub fn talk<T, F>(file: Option<&Path>, talk: impl FnOnce(Client) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let config = Config::from_process(file)?;
    let client = Client::unix(&config.run_dir.join(SOCKET));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(talk(client))
}

/// Fails if what was asked for did not work out.
pub fn done(operation: &Operation) -> Result<(), Failure> {
    match operation.outcome {
        Outcome::Failed => {
            let why = operation.why.as_deref().unwrap_or("no reason was given");
            Err(Failure::new(
                code(operation.kind),
                anyhow::anyhow!("{}: {why}", operation.what),
            ))
        }
        _ => Ok(()),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let code = match &error {
            ClientError::Refused(problem) => code(problem.kind),
            _ => 1,
        };
        Failure::new(code, error)
    }
}

fn code(kind: Kind) -> i32 {
    match kind {
        Kind::Plain => 1,
        Kind::Store => UNAVAILABLE,
        Kind::Configuration => CONFIG,
    }
}
