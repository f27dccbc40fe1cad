//! When to commit: a pure function of what happened and the time.
//!
//! A change is committed after [`Settings::quiet`] without another, at most [`Settings::max_delay`] after the first,
//! at most once per [`Settings::min_gap`], never two at a time, and after a failure with growing patience, for which the
//! last one before a stop has no time.

use std::time::{Duration, Instant};

/// How soon and how often.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub quiet: Duration,
    pub max_delay: Duration,
    /// From the start of one commit to the start of the next.
    pub min_gap: Duration,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// Something changed that the last commit does not have.
    Changed,
    /// Somebody waits for a commit of all there is now.
    Asked,
    /// A commit began; it takes in everything up to now.
    Started,
    Succeeded,
    /// What the commit took in is to be committed again, without patience if it is the last. `jitter` is in `0.0..1.0`.
    Failed {
        jitter: f64,
        last: bool,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until there is more input.
    Wait,
    WaitUntil(Instant),
    Commit,
}

/// What is waiting to be committed, and since when.
#[derive(Debug, Clone, Copy, Default)]
struct Waiting {
    first: Option<Instant>,
    asked: bool,
}

/// Where the pacing stands.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    waiting: Waiting,
    last_change: Option<Instant>,
    /// What the commit under way took in.
    running: Option<Waiting>,
    started: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(20);

impl Pace {
    pub fn apply(&mut self, input: Input, now: Instant) {
        match input {
            Input::Changed => {
                self.waiting.first.get_or_insert(now);
                self.last_change = Some(now);
            }
            Input::Asked => self.waiting.asked = true,
            Input::Started => {
                self.running = Some(std::mem::take(&mut self.waiting));
                self.started = Some(now);
            }
            Input::Succeeded => {
                self.running = None;
                self.failures = 0;
                self.not_before = None;
            }
            Input::Failed { jitter, last } => {
                let taken = self.running.take().unwrap_or_default();
                // Whoever asked is told of the failure; the change itself has waited since it was made.
                self.waiting.first = taken.first.or(self.waiting.first).or(Some(now));
                let patience = if last { 0 } else { self.failures };
                self.not_before = Some(now + backoff(patience, jitter));
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// What to do now. Somebody who asks waits neither for quiet nor for the gap, and tries a failed store again.
    pub fn step(&self, settings: &Settings, now: Instant) -> Step {
        if self.running.is_some() {
            return Step::Wait;
        }
        if self.waiting.asked {
            return Step::Commit;
        }
        let (Some(first), Some(last)) = (self.waiting.first, self.last_change.or(self.waiting.first)) else {
            return Step::Wait;
        };
        let settled = (last + settings.quiet).min(first + settings.max_delay);
        let gap_over = self.started.map(|started| started + settings.min_gap);
        let due = [gap_over, self.not_before]
            .into_iter()
            .flatten()
            .fold(settled, Instant::max);
        if due <= now { Step::Commit } else { Step::WaitUntil(due) }
    }

    /// How long until a failed commit is tried again, if nobody asks before.
    pub fn retry_in(&self, now: Instant) -> Duration {
        self.not_before
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

/// Doubles from half a second to twenty, less up to a quarter so that many instances do not come back as one.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let full = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings {
        quiet: Duration::from_millis(250),
        max_delay: Duration::from_millis(1000),
        min_gap: Duration::from_millis(1000),
    };

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Change,
        Ask,
        /// The commit under way ends.
        End {
            well: bool,
        },
        Pass(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Change),
            1 => Just(Act::Ask),
            3 => prop::bool::weighted(0.7).prop_map(|well| Act::End { well }),
            6 => (1u64..700).prop_map(Act::Pass),
        ]
    }

    /// Runs the pacing as the engine does: a step is asked for after every input and at every time it named.
    struct World {
        pace: Pace,
        now: Instant,
        starts: Vec<(Instant, bool)>,
        running: bool,
        uncommitted: bool,
        taken: bool,
    }

    impl World {
        fn turn(&mut self) {
            if self.pace.step(&SETTINGS, self.now) == Step::Commit {
                assert!(!self.running, "two commits at a time");
                self.starts.push((self.now, self.pace.waiting.asked));
                self.pace.apply(Input::Started, self.now);
                self.running = true;
                self.taken = std::mem::take(&mut self.uncommitted);
            }
        }

        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while let Step::WaitUntil(at) = self.pace.step(&SETTINGS, self.now) {
                if at > end {
                    break;
                }
                self.now = at;
                self.turn();
            }
            self.now = end;
        }

        fn end(&mut self, well: bool) {
            if std::mem::take(&mut self.running) {
                let input = if well {
                    Input::Succeeded
                } else {
                    Input::Failed {
                        jitter: 0.5,
                        last: false,
                    }
                };
                self.pace.apply(input, self.now);
                self.uncommitted |= self.taken && !well;
            }
        }
    }

    proptest! {
        #[test]
        fn commits_neither_overlap_nor_crowd_nor_forget(acts in prop::collection::vec(act(), 1..200)) {
            let mut world = World {
                pace: Pace::default(), now: Instant::now(), starts: Vec::new(), running: false, uncommitted: false, taken: false,
            };
            for act in acts {
                match act {
                    Act::Change => {
                        world.pace.apply(Input::Changed, world.now);
                        world.uncommitted = true;
                    }
                    Act::Ask => world.pace.apply(Input::Asked, world.now),
                    Act::End { well } => world.end(well),
                    Act::Pass(ms) => world.pass(Duration::from_millis(ms)),
                }
                world.turn();
            }
            for pair in world.starts.windows(2) {
                prop_assert!(pair[1].1 || pair[1].0 - pair[0].0 >= SETTINGS.min_gap, "crowded without being asked");
            }
            // From here on all goes well: whatever is left is committed, once, within the longest wait there is.
            world.end(true);
            world.turn();
            world.end(true);
            world.pass(LAST_RETRY + SETTINGS.max_delay);
            world.end(true);
            prop_assert!(!world.uncommitted, "a change was forgotten");
            prop_assert_eq!(world.pace.step(&SETTINGS, world.now), Step::Wait);
            prop_assert!(world.pace.waiting.first.is_none());
        }

        #[test]
        fn a_steady_writer_is_committed_within_the_delay(every in 1u64..249) {
            let start = Instant::now();
            let (mut pace, mut now) = (Pace::default(), start);
            while pace.step(&SETTINGS, now) != Step::Commit {
                pace.apply(Input::Changed, now);
                now += Duration::from_millis(every);
                prop_assert!(now - start <= SETTINGS.max_delay + Duration::from_millis(every));
            }
        }
    }

    #[test]
    fn a_single_change_waits_for_quiet_only() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.step(&SETTINGS, now), Step::Wait);
        pace.apply(Input::Changed, now);
        assert_eq!(pace.step(&SETTINGS, now), Step::WaitUntil(now + SETTINGS.quiet));
        assert_eq!(pace.step(&SETTINGS, now + SETTINGS.quiet), Step::Commit);
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly_up_to_a_limit() {
        let waits: Vec<Duration> = (0..12).map(|failures| backoff(failures, 0.0)).collect();
        assert_eq!(waits[0], FIRST_RETRY);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(*waits.last().unwrap(), LAST_RETRY);
        assert!(backoff(3, 1.0) < backoff(3, 0.0));
    }

    #[test]
    fn the_last_commit_is_tried_again_soon_however_often_others_failed() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let mut fail = |last| {
            pace.apply(Input::Asked, now);
            pace.apply(Input::Started, now);
            pace.apply(Input::Failed { jitter: 0.0, last }, now);
            pace.retry_in(now)
        };
        let many: Vec<Duration> = (0..9).map(|_| fail(false)).collect();
        assert_eq!(many[8], LAST_RETRY);
        assert_eq!([fail(true), fail(true)], [FIRST_RETRY; 2]);
        assert_eq!(fail(false), LAST_RETRY);
    }
}
