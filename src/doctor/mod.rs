//! `moltinit doctor`: one line a check, and what to do about each failure. Works with and without a running
//! supervisor, changes nothing, and launches no browser.

mod local;
mod network;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;

use crate::{
    config::Config,
    report::{
        SOCKET,
        client::{Client, ClientError},
        status::Status,
    },
};

/// For a check that asks the file system, which may be a mount that hangs.
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Fine,
    /// It works, but not as well as it should.
    Doubtful,
    Bad,
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was found, and for anything but [`Verdict::Fine`] what to do.
    pub said: String,
}

impl Finding {
    fn fine(check: &'static str, said: impl Into<String>) -> Finding {
        Finding {
            check,
            verdict: Verdict::Fine,
            said: said.into(),
        }
    }

    fn doubtful(check: &'static str, said: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Doubtful,
            ..Finding::fine(check, said)
        }
    }

    fn bad(check: &'static str, said: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Bad,
            ..Finding::fine(check, said)
        }
    }
}

/// Every check there is, in the order of the boot; secrets are masked.
pub async fn examine(config: Config) -> Vec<Finding> {
    let mask = config.mask.clone();
    let client = Client::unix(&config.run_dir.join(SOCKET));
    let status = client.get::<Status>("/status").await;
    // One that is stopped, or another user's, has its ports all the same.
    let runs = !matches!(status, Err(ClientError::NotRunning { .. }));
    let (mount, store) = (config.store.clone(), config.store.clone());
    let (mount, store, ports, (worker, clock), browser) = tokio::join!(
        patiently("mount", move || local::mount(&mount)),
        patiently("store", move || local::store(&store)),
        local::ports(&config, runs),
        network::worker(&config),
        network::browser(&config),
    );
    let mut findings = vec![supervisor(status), mount, store, local::gateway(&config)];
    findings.extend(ports);
    findings.extend([
        worker,
        clock,
        browser,
        network::callbacks(&config),
        local::token(&config),
    ]);
    for finding in &mut findings {
        finding.said = mask.apply(&finding.said).into_owned();
    }
    findings
}

fn supervisor(status: Result<Status, ClientError>) -> Finding {
    const CHECK: &str = "supervisor";
    match status {
        Ok(status) if status.ready => Finding::fine(CHECK, format!("runs, moltinit {}", status.versions.moltinit)),
        Ok(status) => Finding::doubtful(
            CHECK,
            format!(
                "runs, but is not ready: {}; `moltinit status` says why",
                status.failing.join(", ")
            ),
        ),
        Err(ClientError::NotRunning { path, .. }) => Finding::doubtful(
            CHECK,
            format!(
                "none runs here ({} answers nobody); start `moltinit run`",
                path.display()
            ),
        ),
        Err(error @ ClientError::Denied { .. }) => Finding::doubtful(CHECK, error.to_string()),
        Err(error @ ClientError::Silent { .. }) => Finding::bad(CHECK, error.to_string()),
        Err(error) => Finding::bad(CHECK, format!("{error}; restart it")),
    }
}

/// A check on a thread of its own, given up when it takes too long.
async fn patiently(check: &'static str, work: impl FnOnce() -> Finding + Send + 'static) -> Finding {
    let (done, finding) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(work());
    });
    match tokio::time::timeout(PATIENCE, finding).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(_)) => Finding::bad(check, "the check itself broke; this is a bug"),
        Err(_) => Finding::bad(
            check,
            format!(
                "no answer in {} s: the mount hangs; see that its s3fs is alive, else `umount -l` and mount it again",
                PATIENCE.as_secs()
            ),
        ),
    }
}
