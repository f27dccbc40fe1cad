//! Whether a service is ready, and whether it is still well.
//!
//! One task a run of a service asks one question at a time, so probes cannot pile up behind a service that does not
//! answer. Time in which the supervisor itself was frozen counts against nobody.

mod command;
mod http;
mod notify;
mod tcp;

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

pub use self::{http::check_url, notify::Notice};

use crate::{
    config::service::{Check, Probe, Service},
    pid1::Spawner,
};

use super::{
    care::{Care, Environment},
    pulse::Pulse,
};

/// How long a single question about readiness may take to be answered: a service that is starting is slow, but one
/// that has taken the connection and forgotten it is asked again.
const READY_ANSWER: Duration = Duration::from_secs(5);

/// What is needed to ask about one run of a service.
pub struct Prober {
    pub service: Arc<Service>,
    pub care: Arc<dyn Care>,
    pub spawner: Spawner,
    /// The service's own environment: `command` probes run in it, and are found by it when the service is ended.
    pub env: Arc<Environment>,
    pub pulse: Pulse,
}

impl Prober {
    /// Waits until the readiness probe has passed; tells each new reason why it has not. There is no limit: the service's
    /// own is kept elsewhere.
    pub async fn until_ready(&self, probe: &Probe, notice: Option<Notice>, not_yet: impl Fn(String)) {
        if let Some(notice) = notice {
            return notice.given().await;
        }
        let mut before = None;
        loop {
            match self.ask(&probe.check, READY_ANSWER).await {
                Ok(()) => return,
                // The same answer four times a second is not news.
                Err(why) if before.as_ref() != Some(&why) => {
                    debug!(service = self.service.name, "not ready yet: {why}");
                    not_yet(why.clone());
                    before = Some(why);
                }
                Err(_) => {}
            }
            sleep(probe.every).await;
        }
    }

    /// Watches a service until its liveness probe has failed as often in a row as makes it unhealthy; says why.
    pub async fn until_unhealthy(&self, probe: &Probe) -> String {
        let mut failures = Failures::new(probe.failures);
        loop {
            sleep(probe.every).await;
            let away = self.pulse.away();
            let answer = self.ask(&probe.check, probe.timeout).await;
            if self.pulse.away() > away {
                info!(service = self.service.name, "probed across a freeze; asking again");
                failures.forget();
                continue;
            }
            match &answer {
                Ok(()) if failures.in_a_row > 0 => info!(service = self.service.name, "healthy again"),
                Err(why) => warn!(service = self.service.name, "liveness probe failed: {why}"),
                Ok(()) => {}
            }
            if let Some(why) = failures.count(answer) {
                return why;
            }
        }
    }

    /// One question and its answer, or why there is none.
    async fn ask(&self, check: &Check, within: Duration) -> Result<(), String> {
        let answer = async {
            match check {
                Check::Http { url, json } => match self.care.check() {
                    Some(health) => health.await,
                    None => http::check(url, json.as_deref()).await,
                },
                Check::Tcp { addr } => tcp::check(addr).await,
                Check::Command { argv } => command::check(&self.spawner, argv, &self.env, within).await,
                Check::Keeper => match self.care.check() {
                    Some(health) => health.await,
                    None => Err("it has no keeper who could tell".into()),
                },
                Check::Notify { fd } => Err(format!("a notice on descriptor {fd} is given once, not asked for")),
            }
        };
        match timeout(within, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", within.as_secs_f32())),
        }
    }
}

/// Failures in a row: a single success forgets them all, and it takes as many again to call the service unhealthy.
struct Failures {
    limit: u32,
    in_a_row: u32,
}

impl Failures {
    fn new(limit: u32) -> Self {
        Failures { limit, in_a_row: 0 }
    }

    fn forget(&mut self) {
        self.in_a_row = 0;
    }

    /// Counts an answer; the reason if it was one failure too many.
    fn count(&mut self, answer: Result<(), String>) -> Option<String> {
        match answer {
            Ok(()) => {
                self.forget();
                None
            }
            Err(why) => {
                self.in_a_row += 1;
                (self.in_a_row >= self.limit).then(|| match self.in_a_row {
                    1 => why,
                    n => format!("{n} liveness probes failed, the last one with: {why}"),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_count() {
        let mut failures = Failures::new(3);
        let fail = || Err("gone".to_owned());
        for answer in [fail(), fail(), Ok(()), fail(), fail()] {
            assert_eq!(failures.count(answer), None);
        }
        assert_eq!(
            failures.count(fail()).unwrap(),
            "3 liveness probes failed, the last one with: gone"
        );
    }
}
