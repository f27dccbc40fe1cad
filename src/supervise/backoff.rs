//! How long to wait before the next restart, and when restarts have become a crash loop.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::config::service;

/// The delay before each restart: `first`, then `base` doubled each time up to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: service::Backoff,
    /// Restarts since the last reset.
    restarts: u32,
}

impl Backoff {
    pub fn new(policy: service::Backoff) -> Self {
        Backoff { policy, restarts: 0 }
    }

    /// The delay before the restart that is due now; the next one will be longer.
    pub fn next(&mut self) -> Duration {
        let delay = match self.restarts {
            0 => self.policy.first,
            n => self
                .policy
                .base
                .saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX))
                .min(self.policy.max),
        };
        self.restarts = self.restarts.saturating_add(1);
        delay
    }

    pub fn reset(&mut self) {
        self.restarts = 0;
    }
}

/// The restarts that count towards a crash loop.
#[derive(Debug, Clone)]
pub struct CrashLoop {
    policy: service::CrashLoop,
    restarts: VecDeque<Instant>,
}

impl CrashLoop {
    pub fn new(policy: service::CrashLoop) -> Self {
        CrashLoop {
            policy,
            restarts: VecDeque::new(),
        }
    }

    /// Whether as many restarts as make a crash loop were made within the window; if not, one more is counted.
    pub fn is_reached(&mut self, now: Instant) -> bool {
        while self
            .restarts
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > self.policy.within)
        {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.policy.restarts as usize {
            return true;
        }
        self.restarts.push_back(now);
        false
    }

    pub fn reset(&mut self) {
        self.restarts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service::Service;

    #[test]
    fn delays_double_from_base_to_max_and_start_anew() {
        let mut backoff = Backoff::new(Service::named("a").backoff);
        let delays: Vec<u128> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(delays, [0, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next(), Duration::ZERO);
    }

    #[test]
    fn delays_stay_at_max_for_ever() {
        let mut backoff = Backoff::new(Service::named("a").backoff);
        backoff.restarts = u32::MAX;
        assert_eq!(backoff.next(), Duration::from_secs(30));
        assert_eq!(backoff.next(), Duration::from_secs(30));
    }

    #[test]
    fn only_restarts_within_the_window_count() {
        let mut window = CrashLoop::new(service::CrashLoop {
            restarts: 2,
            within: Duration::from_secs(10),
        });
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert!(!window.is_reached(at(0)));
        assert!(!window.is_reached(at(5)));
        assert!(window.is_reached(at(9)));
        assert!(!window.is_reached(at(11)), "the first one is out of the window");
        assert!(window.is_reached(at(12)));
    }
}
