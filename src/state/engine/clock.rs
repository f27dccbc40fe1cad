//! Whether the clock can be believed: what is removed by its word does not come back.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// A step of the clock by more than this is a mistake, or the mending of one.
const STEP: SignedDuration = SignedDuration::from_hours(24);
/// After such a step the clock is given this long to be set right, or to stay as it is.
const CALM: Duration = Duration::from_secs(24 * 3600);

/// What the clock showed when it was last believed, beside one that cannot be set.
#[derive(Debug)]
pub struct Clock {
    believed: (Timestamp, Instant),
    doubted: Option<Instant>,
}

impl Clock {
    pub fn new(shows: Timestamp, at: Instant) -> Clock {
        Clock {
            believed: (shows, at),
            doubted: None,
        }
    }

    /// Whether the clock has gone on as it should since it was believed, or for long since it did not.
    pub fn is_right(&mut self, shows: Timestamp, at: Instant) -> bool {
        let (then, before) = self.believed;
        let passed = SignedDuration::try_from(at.saturating_duration_since(before)).unwrap_or(SignedDuration::MAX);
        let off = shows.duration_since(then).saturating_sub(passed);
        if off.abs() > STEP {
            (self.believed, self.doubted) = ((shows, at), Some(at));
        }
        self.doubted
            .is_none_or(|since| at.saturating_duration_since(since) >= CALM)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3600;

    /// Goes through (seconds that pass, seconds that the clock is off from then on); the answers.
    fn answers(steps: &[(i64, i64)]) -> Vec<bool> {
        let (start, began): (Timestamp, Instant) = ("2026-11-23T12:00:00Z".parse().unwrap(), Instant::now());
        let mut clock = Clock::new(start, began);
        let mut passed = 0;
        let mut look = |(seconds, off): &(i64, i64)| {
            passed += seconds;
            let shows = start + SignedDuration::from_secs(passed + off);
            clock.is_right(shows, began + Duration::from_secs(passed as u64))
        };
        steps.iter().map(&mut look).collect()
    }

    #[test]
    fn a_clock_that_jumps_is_not_believed_for_a_day() {
        let ahead = 31 * 24 * HOUR;
        let steps = [
            (600, 0),
            (600, ahead),
            (23 * HOUR, ahead),
            (HOUR, ahead),
            (600, 0),
            (24 * HOUR, 0),
        ];
        assert_eq!(answers(&steps), [true, false, false, true, false, true]);
        // Nor one that creeps away.
        assert_eq!(answers(&[(600, 20 * HOUR), (600, 40 * HOUR)]), [true, false]);
    }

    proptest! {
        #[test]
        fn whatever_it_shows_a_jump_is_seen_at_once_and_a_steady_clock_believed(
            steps in proptest::collection::vec((1i64..48 * HOUR, -12 * HOUR..12 * HOUR), 0..20),
            jump in prop_oneof![-1000 * HOUR..-37 * HOUR, 37 * HOUR..1000 * HOUR],
        ) {
            let mut steps = steps;
            prop_assert!(answers(&steps).into_iter().all(|right| right));
            steps.push((1, jump));
            prop_assert_eq!(answers(&steps).pop(), Some(false));
        }
    }
}
