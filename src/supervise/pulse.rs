//! The supervisor's own heartbeat: that its loop turns, and how long it was kept from turning.
//!
//! A container that is frozen, or a machine that is suspended, wakes to find deadlines passed and answers overdue. None
//! of the time it was away for is the fault of any service, so deadlines and probes leave it out.
//!
//! Two clocks tell. The one that deadlines are set by stands still while the machine is suspended, so a suspension
//! moves none of them; but what a service was asked before it is as little to be held against it as after a freeze.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// The time from one beat to the next. Most wake-ups of an idle supervisor are these.
const BEAT: Duration = Duration::from_secs(3);
/// A beat that comes so late was kept from coming.
const LATE: Duration = Duration::from_secs(6);
/// Without a beat for so long, the supervisor's loop is not turning.
const DEAD: Duration = Duration::from_secs(15);

/// When the last beat was, and the time lost so far, on one clock.
#[derive(Debug, Clone, Copy)]
struct Beats {
    last: Duration,
    lost: Duration,
}

impl Beats {
    fn from(now: Duration) -> Self {
        Beats {
            last: now,
            lost: Duration::ZERO,
        }
    }

    fn beat(&mut self, now: Duration) {
        self.lost = self.lost_at(now);
        self.last = now;
    }

    /// Says the same whether the first beat after a freeze has come yet or not.
    fn lost_at(&self, now: Duration) -> Duration {
        let gap = now.saturating_sub(self.last);
        if gap < LATE { self.lost } else { self.lost + gap - BEAT }
    }
}

/// The beats by the clock of deadlines (`Instant`), and by the one that runs on while the machine is suspended.
#[derive(Debug)]
struct Clocks {
    awake: Beats,
    always: Beats,
}

/// The heartbeat. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<Clocks>>);

impl Pulse {
    /// Starts to beat, as long as the runtime does.
    pub fn start() -> Self {
        let pulse = Pulse(Arc::new(Mutex::new(Clocks {
            awake: Beats::from(awake()),
            always: Beats::from(always()),
        })));
        let beating = pulse.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                let mut clocks = beating.lock();
                clocks.awake.beat(awake());
                clocks.always.beat(always());
            }
        });
        pulse
    }

    /// All the time since the start, as deadlines count it, in which the supervisor was frozen. Never goes back.
    pub fn lost(&self) -> Duration {
        self.lock().awake.lost_at(awake())
    }

    /// All the time since the start in which the supervisor was frozen or the machine suspended. Never goes back.
    pub fn away(&self) -> Duration {
        self.lock().always.lost_at(always())
    }

    /// Whether the supervisor's loop turns.
    pub fn is_alive(&self) -> bool {
        awake().saturating_sub(self.lock().awake.last) < DEAD
    }

    fn lock(&self) -> MutexGuard<'_, Clocks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn awake() -> Duration {
    now(ClockId::CLOCK_MONOTONIC)
}

fn always() -> Duration {
    now(ClockId::CLOCK_BOOTTIME)
}

fn now(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn lost_time_is_told_once_before_the_beat_and_after() {
        let mut beats = Beats::from(at(100));
        beats.beat(at(101));
        assert_eq!(beats.lost_at(at(106)), Duration::ZERO, "a little late is not frozen");
        assert_eq!(beats.lost_at(at(3704)), at(3600));
        beats.beat(at(3704));
        assert_eq!(beats.lost_at(at(3704)), at(3600));
        beats.beat(at(3707));
        assert_eq!(beats.lost_at(at(3709)), at(3600));
    }

    /// Simulated by setting back the last beat on the one clock that runs on in a suspension.
    #[tokio::test]
    async fn a_suspension_moves_no_deadline_and_is_no_death() {
        let pulse = Pulse::start();
        pulse.lock().always.last = Duration::ZERO;
        assert_eq!(pulse.lost(), Duration::ZERO);
        assert!(pulse.away() > Duration::ZERO);
        assert!(pulse.is_alive());
    }
}
