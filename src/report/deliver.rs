//! Posts the outbox's events to the callback URL: in order, at least once, for as long as it takes.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::Instant};

use super::{
    board::Board,
    outbox::Outbox,
    record::Record,
    settings::{Callback, Settings},
    status::{CallbackState, Delivered, Undelivered},
    web,
};
use crate::config::secret::Mask;

/// The wait after the first failure; doubled with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait, unless the receiver asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// No receiver is believed that asks to be left alone for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(24 * 3600);
/// While shutting down there is no time for a longer wait.
const CLOSING_WAIT: Duration = Duration::from_secs(1);

/// What comes of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Delivered,
    /// 410: nothing more until a restart.
    Gone,
    Retry {
        why: String,
        /// What the receiver asked for.
        after: Option<Duration>,
    },
}

/// What an answer means; `retry_after` is that header's value.
fn verdict(status: u16, retry_after: Option<&str>, now: Timestamp) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        410 => Verdict::Gone,
        _ => Verdict::Retry {
            why: match status {
                300..=399 => format!("answered {status}; redirects are not followed, set the URL it leads to"),
                _ => format!("answered {status}"),
            },
            after: retry_after.and_then(|value| asked_wait(value, now)),
        },
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn asked_wait(value: &str, now: Timestamp) -> Option<Duration> {
    let wait = match value.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
            Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(LONGEST_ASKED))
}

/// The wait after so many failures in a row: doubled each time, and somewhere in its upper half (`jitter` is in
/// 0..1), so that many containers do not come back as one.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let full = FIRST_WAIT
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST_WAIT);
    full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// What the delivery is told from outside.
#[derive(Clone)]
pub struct Orders {
    pub settings: watch::Receiver<Settings>,
    /// Set once, at shutdown: give up at this time, or when nothing is left.
    pub close_by: watch::Receiver<Option<Instant>>,
}

/// Delivers until told to close, and begins again if that breaks; ends with the number of events left undelivered.
pub async fn run_on(outbox: Outbox, board: Arc<Board>, orders: Orders) -> u64 {
    loop {
        match tokio::spawn(run(outbox.clone(), board.clone(), orders.clone())).await {
            Ok(left) => return left,
            Err(error) => tracing::error!(%error, "the delivery of events broke; this is a bug, and it begins again"),
        }
        tokio::time::sleep(FIRST_WAIT).await;
    }
}

async fn run(outbox: Outbox, board: Arc<Board>, mut orders: Orders) -> u64 {
    let mut delivery = Delivery {
        outbox: outbox.clone(),
        board,
        client: None,
        gone: false,
        failures: 0,
    };
    let mut progress = outbox.progress();
    loop {
        let Settings { callback, mask, .. } = orders.settings.borrow_and_update().clone();
        delivery.show(callback.as_ref());
        outbox.post(callback.is_some());
        let deadline = *orders.close_by.borrow();
        if let Some(deadline) = deadline {
            let left = progress.borrow_and_update().undelivered;
            if left == 0 || callback.is_none() || delivery.gone || Instant::now() >= deadline {
                return left;
            }
        }
        let wait = match &callback {
            Some(callback) if !delivery.gone && progress.borrow_and_update().undelivered > 0 => {
                let attempt = delivery.step(callback, &mask, deadline);
                match deadline {
                    Some(deadline) => tokio::time::timeout_at(deadline, attempt).await.unwrap_or(None),
                    // A shutdown does not interrupt the attempt under way, it only bounds it.
                    None => {
                        tokio::pin!(attempt);
                        tokio::select! {
                            wait = &mut attempt => wait,
                            Some(deadline) = closing(&mut orders.close_by) => {
                                tokio::time::timeout_at(deadline, attempt).await.unwrap_or(None)
                            }
                        }
                    }
                }
            }
            _ => {
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { return 0 },
                    _ = orders.settings.changed() => {}
                    _ = orders.close_by.wait_for(Option::is_some), if deadline.is_none() => {}
                    // With it go its connection and its root certificates.
                    () = tokio::time::sleep(web::IDLE), if delivery.client.is_some() => delivery.client = None,
                }
                None
            }
        };
        if let Some(wait) = wait {
            let until = deadline.map_or(Instant::now() + wait, |deadline| deadline.min(Instant::now() + wait));
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = orders.settings.changed() => {}
                _ = orders.close_by.wait_for(Option::is_some), if deadline.is_none() => {}
            }
        }
    }
}

/// Waits for the order to close; `None` if nobody can give it any more.
async fn closing(close_by: &mut watch::Receiver<Option<Instant>>) -> Option<Instant> {
    *close_by.wait_for(Option::is_some).await.ok()?
}

struct Delivery {
    outbox: Outbox,
    board: Arc<Board>,
    client: Option<reqwest::Client>,
    gone: bool,
    failures: u32,
}

impl Delivery {
    /// One attempt at the next event; ends with how long to wait before the next attempt.
    async fn step(&mut self, callback: &Callback, mask: &Mask, deadline: Option<Instant>) -> Option<Duration> {
        let event = match self.outbox.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return None,
            Err(error) => {
                tracing::error!(%error, "cannot read the outbox");
                return Some(FIRST_WAIT);
            }
        };
        match self.attempt(callback, &event).await {
            Verdict::Delivered => {
                self.failures = 0;
                let at = Timestamp::now();
                self.board.update(|mut status| {
                    status.callbacks.delivered += 1;
                    status.callbacks.last_delivered = Some(Delivered {
                        id: event.id.clone(),
                        at,
                    });
                    status.callbacks.failing = None;
                    status
                });
                // A full disk must not have the receiver told the same again and again.
                while let Err(error) = self.outbox.delivered(event.boot, event.seq).await {
                    tracing::error!(%error, id = event.id, "cannot note that an event was delivered");
                    tokio::time::sleep(FIRST_WAIT).await;
                }
                None
            }
            Verdict::Gone => {
                self.gone = true;
                tracing::warn!("the callback URL answered 410: no more callbacks until a restart");
                None
            }
            Verdict::Retry { why, after } => {
                self.failures = self.failures.saturating_add(1);
                let why = mask.apply(&why).into_owned();
                let wait = match deadline {
                    Some(_) => after.unwrap_or(CLOSING_WAIT),
                    None => backoff(self.failures, rand::random()).max(after.unwrap_or(Duration::ZERO)),
                };
                if self.failures == 1 {
                    tracing::warn!(why, id = event.id, "a callback failed; trying again");
                }
                let at = Timestamp::now();
                let attempts = self.failures;
                self.board.update(|mut status| {
                    status.callbacks.failures += 1;
                    status.callbacks.failing = Some(Undelivered {
                        id: event.id,
                        at,
                        why,
                        attempts,
                        next_attempt: SignedDuration::try_from(wait)
                            .ok()
                            .and_then(|wait| at.checked_add(wait).ok()),
                    });
                    status
                });
                // It may have been the roots or the proxy: the next attempt reads them again.
                self.client = None;
                Some(wait)
            }
        }
    }

    async fn attempt(&mut self, callback: &Callback, event: &Record) -> Verdict {
        let client = match self.client().await {
            Ok(client) => client,
            Err(why) => return Verdict::Retry { why, after: None },
        };
        let body = serde_json::to_vec(event).expect("plain data");
        let timestamp = Timestamp::now().as_second();
        let answer = client
            .post(callback.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", callback.key.sign(&event.id, timestamp, &body))
            .body(body)
            .send()
            .await;
        match answer {
            Ok(answer) => {
                let retry_after = answer
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok());
                verdict(answer.status().as_u16(), retry_after, Timestamp::now())
            }
            Err(error) => Verdict::Retry {
                why: web::reason(error),
                after: None,
            },
        }
    }

    async fn client(&mut self) -> Result<reqwest::Client, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = web::client().await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    fn show(&self, callback: Option<&Callback>) {
        let state = match callback {
            None => CallbackState::Off,
            Some(_) if self.gone => CallbackState::Gone,
            Some(_) if self.failures > 0 => CallbackState::Retrying,
            Some(_) => CallbackState::On,
        };
        let url = callback.map(Callback::shown);
        let before = self.board.now();
        if before.callbacks.state != state || before.callbacks.url != url {
            self.board.update(|mut status| {
                status.callbacks.state = state;
                status.callbacks.url = url;
                status
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_means_what_the_contract_says() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        assert_eq!(verdict(204, None, now), Verdict::Delivered);
        assert_eq!(verdict(410, Some("5"), now), Verdict::Gone);
        for status in [301, 307, 400, 401, 404, 429, 500, 503] {
            assert!(
                matches!(verdict(status, None, now), Verdict::Retry { after: None, .. }),
                "{status}"
            );
        }
        let asked = |value| match verdict(503, Some(value), now) {
            Verdict::Retry { after, .. } => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Mon, 23 Nov 2026 12:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(asked("Mon, 23 Nov 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("99999999999"), Some(LONGEST_ASKED));
        assert_eq!(asked("soon"), None);
    }

    proptest! {
        #[test]
        fn the_wait_grows_to_five_minutes_and_never_vanishes(failures in 1u32..10_000, jitter in 0.0f64..1.0) {
            let wait = backoff(failures, jitter);
            prop_assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT);
            prop_assert!(backoff(failures + 1, jitter) >= wait);
            prop_assert!(backoff(failures, 1.0) >= wait);
        }
    }
}
