//! Configurations on trial: what the present run was started with, whether that has proved itself, and what an end says
//! of it.
//!
//! A configuration is good once a gateway has been ready with it and stayed up for a while. Only one that is not good,
//! in a run that has not come that far, can be at fault: what a gateway says of a later edit is for the next start to
//! show.

use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::warn;

use super::{
    document::Document,
    failure::Fault,
    prepare::Failed,
    record::{Digest, Record},
    version::Version,
};

/// So many failed runs in a row with a configuration that is not good are its fault, even if the gateway does not say
/// so.
pub const SUSPICIOUS_FAILURES: u32 = 3;

/// How long it takes to know.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A gateway may take as long to become ready.
    pub ready: Duration,
    /// One that has been up for as long, and could have been ready, stays up.
    pub settled: Duration,
}

/// How far a run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It ended instead of becoming ready.
    Nothing,
    Ready,
    /// It was ready for a while; or never, but for longer than a start takes, so that something else than its
    /// configuration keeps it (a chat service that is away).
    Settled,
}

/// What to do about an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It says nothing of the configuration.
    Nothing,
    /// It may be the configuration: another such end, and it is.
    Suspicion,
    /// It is the configuration. `certain`: the gateway itself says so.
    Refused {
        reason: String,
        certain: bool,
    },
    Hopeless(String),
}

/// What an end says (pure). `suspicions` is how many ends like it there have been with the same configuration.
pub fn judge(fault: Fault, reached: Reached, is_good: bool, has_good: bool, suspicions: u32) -> Finding {
    let may_be_at_fault = has_good && !is_good;
    match (fault, reached) {
        (Fault::Hopeless(reason), _) => Finding::Hopeless(reason),
        (Fault::SecondInstance, _) | (_, Reached::Settled) => Finding::Nothing,
        (Fault::Configuration { reason, named: true }, Reached::Nothing) => Finding::Refused { reason, certain: true },
        (Fault::Configuration { reason, named: false }, Reached::Nothing) if may_be_at_fault => {
            Finding::Refused { reason, certain: false }
        }
        (Fault::Configuration { reason, .. } | Fault::Other(reason), _) if may_be_at_fault => {
            if suspicions + 1 < SUSPICIOUS_FAILURES {
                Finding::Suspicion
            } else {
                Finding::Refused { reason, certain: false }
            }
        }
        _ => Finding::Nothing,
    }
}

pub struct Trial {
    pub record: Record,
    patience: Patience,
    run: Option<Run>,
    runs: u64,
    /// The configuration that is suspected, and how often.
    suspected: Option<(Digest, u32)>,
    /// The configuration that was refused first since the gateway was last ready.
    failed: Option<Failed>,
    doctor_was_here: bool,
}

struct Run {
    number: u64,
    digest: Digest,
    version: Option<Version>,
    began: Instant,
    /// Since when, and with what on disk.
    ready: Option<(Instant, Option<Document>)>,
    settled: bool,
}

impl Run {
    fn reached(&self, was_ready: bool, patience: Patience, now: Instant) -> Reached {
        let up = now.saturating_duration_since(self.began);
        let ready = self.ready.as_ref();
        let ready_for = ready.map(|(since, _)| now.saturating_duration_since(*since));
        if self.settled
            || ready_for.is_some_and(|time| time >= patience.settled)
            || up >= patience.ready + patience.settled
        {
            Reached::Settled
        } else if was_ready {
            Reached::Ready
        } else {
            Reached::Nothing
        }
    }
}

impl Trial {
    pub fn new(record: Record, patience: Patience) -> Trial {
        Trial {
            record,
            patience,
            run: None,
            runs: 0,
            suspected: None,
            failed: None,
            doctor_was_here: false,
        }
    }

    /// The configuration that was refused first, until it has made way for another.
    pub fn failed(&self) -> Option<&Failed> {
        self.failed.as_ref()
    }

    /// A run begins with a configuration.
    pub fn begin(&mut self, digest: Digest, version: Option<Version>, rolled_back: bool, now: Instant) {
        if rolled_back {
            self.failed = None;
        }
        self.runs += 1;
        self.run = Some(Run {
            number: self.runs,
            digest,
            version,
            began: now,
            ready: None,
            settled: false,
        });
    }

    /// It is ready, with that on disk: whatever failed before has been cured. Gives the run's number.
    pub fn ready(&mut self, on_disk: Option<Document>, now: Instant) -> u64 {
        self.failed = None;
        if let Some(run) = &mut self.run {
            run.ready = Some((now, on_disk));
        }
        self.runs
    }

    /// The run of that number has been ready for a while: what it has is good. Not if it has ended.
    pub fn settle(&mut self, number: u64) {
        let Some(run) = self.run.as_mut().filter(|run| run.number == number) else {
            return;
        };
        run.settled = true;
        (self.suspected, self.doctor_was_here) = (None, false);
        if let Some((_, Some(document))) = &run.ready {
            let digest = Digest::of(&document.value, run.version);
            if let Err(error) = self.record.keep_good(&document.text, &digest) {
                warn!("cannot keep the configuration that works: {error}");
            }
        }
    }

    /// It has ended, unasked, with that on disk. Says what that means, and whether the gateway's doctor may try first.
    pub fn ended(
        &mut self,
        fault: Fault,
        was_ready: bool,
        on_disk: impl FnOnce() -> Option<Document>,
        now: Instant,
    ) -> (Finding, bool) {
        let Some(run) = self.run.take() else {
            return (Finding::Nothing, false);
        };
        let good = self.record.good();
        let is_good = self.record.is_good(&run.digest) || good.as_ref().is_some_and(|good| run.is(good));
        let suspected = self.suspected.take().filter(|(digest, _)| *digest == run.digest);
        let suspicions = suspected.map_or(0, |(_, times)| times);
        let reached = run.reached(was_ready, self.patience, now);
        let finding = judge(fault, reached, is_good, good.is_some(), suspicions);
        match &finding {
            Finding::Suspicion => self.suspected = Some((run.digest, suspicions + 1)),
            Finding::Refused { reason, certain } => {
                // Where it has worked under this very version, something beside it has changed, and may change back.
                if !self.record.is_good(&run.digest) {
                    self.record.refuse(run.digest, *certain);
                }
                if self.failed.is_none()
                    && let Some(document) = on_disk()
                {
                    self.failed = Some(Failed {
                        text: document.text,
                        reason: reason.clone(),
                    });
                }
                return (finding, !std::mem::replace(&mut self.doctor_was_here, true));
            }
            Finding::Nothing | Finding::Hopeless(_) => {}
        }
        (finding, false)
    }
}

impl Run {
    fn is(&self, config: &Value) -> bool {
        Digest::of(config, self.version) == self.digest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_fault() -> impl Strategy<Value = Fault> {
        let reason = || "why".to_owned();
        prop_oneof![
            any::<bool>().prop_map(move |named| Fault::Configuration {
                reason: reason(),
                named
            }),
            Just(Fault::SecondInstance),
            Just(Fault::Other("why".to_owned())),
        ]
    }

    proptest! {
        #[test]
        fn what_works_is_only_refused_by_name_at_the_start(
            fault in any_fault(),
            reached in prop::sample::select(vec![Reached::Nothing, Reached::Ready, Reached::Settled]),
            has_good: bool,
            suspicions in 0..10u32,
        ) {
            let named = matches!(fault, Fault::Configuration { named: true, .. });
            let finding = judge(fault.clone(), reached, true, true, suspicions);
            let refused = matches!(finding, Finding::Refused { .. });
            prop_assert_eq!(refused, named && reached == Reached::Nothing);
            // And nothing that was up for a while is at fault.
            let settled = judge(fault, Reached::Settled, false, has_good, suspicions);
            prop_assert_eq!(settled, Finding::Nothing);
        }
    }

    #[test]
    fn a_run_settles_by_being_ready_or_by_being_up_for_longer_than_a_start_takes() {
        let second = Duration::from_secs(1);
        let patience = Patience {
            ready: 180 * second,
            settled: 60 * second,
        };
        let began = Instant::now();
        let run = |ready: Option<Duration>| Run {
            number: 1,
            digest: Digest::of(&Value::Null, None),
            version: None,
            began,
            ready: ready.map(|after| (began + after, None)),
            settled: false,
        };
        let reached = |ready: Option<u32>, up: u32| {
            let run = run(ready.map(|after| after * second));
            run.reached(ready.is_some(), patience, began + up * second)
        };
        assert_eq!(reached(None, 200), Reached::Nothing);
        assert_eq!(reached(None, 240), Reached::Settled);
        assert_eq!(reached(Some(10), 60), Reached::Ready);
        assert_eq!(reached(Some(10), 70), Reached::Settled);
    }
}
