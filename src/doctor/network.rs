//! Checks of what is elsewhere: Worker, clock, browser, callbacks.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use url::Url;

use super::Finding;
use crate::{
    browser::upstream::{DialError, Upstream},
    config::{Config, Problems},
    report::{Settings, web},
};

/// A receiver refuses what was signed more than five minutes ago or ahead; half of that is close.
const SKEW: Duration = Duration::from_secs(150);
/// A clock this far off shows in time stamps.
const DRIFT: Duration = Duration::from_secs(10);

/// What a server said to a plain request.
struct Answer {
    status: u16,
    date: Option<Timestamp>,
    took: Duration,
}

async fn get(url: Url) -> Result<Answer, String> {
    let client = web::client().await?;
    let begun = Instant::now();
    let answer = client.get(url).send().await.map_err(web::reason)?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    Ok(Answer {
        status: answer.status().as_u16(),
        date: date.and_then(|date| Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())),
        took: begun.elapsed(),
    })
}

/// The Worker answers; and since it says what time it is, the clock.
pub async fn worker(config: &Config) -> (Finding, Finding) {
    const CHECK: &str = "Worker";
    let named = config.env.get("WORKER_URL").or(config.callback.url.as_deref());
    let unknown = || Finding::doubtful("clock", "there is no Worker to compare it with");
    let Some(named) = named else {
        let finding = Finding::doubtful(CHECK, "none is named; set WORKER_URL for callbacks and the browser");
        return (finding, unknown());
    };
    let Some(origin) = Url::parse(named).ok().and_then(|url| url.join("/").ok()) else {
        return (Finding::bad(CHECK, "WORKER_URL is not a URL"), unknown());
    };
    let host = origin.host_str().unwrap_or_default().to_owned();
    match get(origin).await {
        Ok(answer) => {
            let clock = answer.date.map_or_else(unknown, |date| clock(Timestamp::now(), date));
            let said = format!("{host} answers {} in {} ms", answer.status, answer.took.as_millis());
            let worker = if answer.status >= 500 {
                Finding::bad(CHECK, format!("{said}; see the Worker's own logs (`wrangler tail`)"))
            } else {
                Finding::fine(CHECK, said)
            };
            (worker, clock)
        }
        Err(why) => (
            Finding::bad(
                CHECK,
                format!("{host} cannot be reached: {why}; check WORKER_URL, DNS, proxy and the container's network"),
            ),
            unknown(),
        ),
    }
}

fn clock(here: Timestamp, there: Timestamp) -> Finding {
    const CHECK: &str = "clock";
    let off = Duration::try_from(here.duration_since(there).abs()).unwrap_or(Duration::MAX);
    let said = format!("{} s off from the Worker's", off.as_secs());
    if off >= SKEW {
        Finding::bad(
            CHECK,
            format!("{said}: signatures of callbacks will be refused; set the clock"),
        )
    } else if off >= DRIFT {
        Finding::doubtful(CHECK, format!("{said}; set the clock"))
    } else {
        Finding::fine(CHECK, said)
    }
}

/// The browser's server would let us in, as far as can be told without launching a browser.
pub async fn browser(config: &Config) -> Finding {
    const CHECK: &str = "browser";
    let upstream = match Upstream::of(config) {
        Ok(Some(upstream)) => upstream,
        Ok(None) => return Finding::fine(CHECK, "none is configured (WORKER_URL and CDP_SECRET would be one)"),
        Err(Problems(problems)) => {
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Finding::bad(CHECK, said.join("; "));
        }
    };
    let (name, begun) = (upstream.name(), Instant::now());
    match upstream.knock().await {
        Ok(()) => Finding::fine(CHECK, format!("{name} answers in {} ms", begun.elapsed().as_millis())),
        Err(why @ (DialError::Unreachable(_) | DialError::TimedOut(_))) => Finding::bad(
            CHECK,
            format!("{name}: {why}; check MOLTINIT_CDP_UPSTREAM, DNS, proxy and the network"),
        ),
        Err(why) => Finding::bad(CHECK, format!("{name}: {why}")),
    }
}

pub fn callbacks(config: &Config) -> Finding {
    const CHECK: &str = "callbacks";
    match Settings::of(config) {
        Err(problem) => Finding::bad(CHECK, problem.to_string()),
        Ok(Settings {
            callback: Some(callback),
            ..
        }) => Finding::fine(CHECK, format!("signed and posted to {}", callback.shown())),
        Ok(_) => Finding::doubtful(
            CHECK,
            "events are kept and served, not posted; set MOLTINIT_CALLBACK_SECRET and WORKER_URL or MOLTINIT_CALLBACK_URL",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_judged_by_what_signatures_bear() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let at = |seconds: i64| clock(now, now + jiff::SignedDuration::from_secs(seconds)).verdict;
        assert_eq!(
            [at(0), at(-9), at(20), at(-400)],
            [Verdict::Fine, Verdict::Fine, Verdict::Doubtful, Verdict::Bad]
        );
    }
}
