//! The supervisor's own heartbeat: that its loop turns, and how long it was kept from turning.
//!
//! A container that is frozen, or a machine that is suspended, wakes to find every deadline passed. None of the time
//! it was away for is the fault of any service, so deadlines and probes leave it out.

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

/// When the last beat was, and the time lost so far, on a clock that runs on while the machine is suspended.
#[derive(Debug, Clone, Copy)]
struct Beats {
    last: Duration,
    lost: Duration,
}

impl Beats {
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

/// The heartbeat. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<Beats>>);

impl Pulse {
    /// Starts to beat, as long as the runtime does.
    pub fn start() -> Self {
        let pulse = Pulse(Arc::new(Mutex::new(Beats {
            last: now(),
            lost: Duration::ZERO,
        })));
        let beating = pulse.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                beating.lock().beat(now());
            }
        });
        pulse
    }

    /// All the time since the start in which the supervisor was frozen. Never goes back.
    pub fn lost(&self) -> Duration {
        self.lock().lost_at(now())
    }

    /// Whether the supervisor's loop turns.
    pub fn is_alive(&self) -> bool {
        now().saturating_sub(self.lock().last) < DEAD
    }

    fn lock(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_time_is_told_once_before_the_beat_and_after() {
        let at = Duration::from_secs;
        let mut beats = Beats {
            last: at(100),
            lost: Duration::ZERO,
        };
        beats.beat(at(101));
        assert_eq!(beats.lost_at(at(106)), Duration::ZERO, "a little late is not frozen");
        assert_eq!(beats.lost_at(at(3704)), at(3600));
        beats.beat(at(3704));
        assert_eq!(beats.lost_at(at(3704)), at(3600));
        beats.beat(at(3707));
        assert_eq!(beats.lost_at(at(3709)), at(3600));
    }
}
