//! Whom the kernel shall kill when memory runs out: the supervisor never, what a service has started (an agent's
//! tools) rather than the service itself.
//!
//! Each service has scores of its own, and a process inherits its score through every fork and exec. So a score also
//! tells whose an orphan is that has dropped all else: its parents, its session and its environment.

use std::fs;

use nix::unistd::{Pid, getpid};

const SUPERVISOR: i32 = -1000;
const SERVICE: i32 = 200;
const DESCENDANT: i32 = 600;
const MAX: i32 = 1000;

/// The `oom_score_adj` of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    pub main: i32,
    pub descendant: i32,
}

impl Scores {
    /// Those of the service of that index, above what there was before.
    pub fn of(index: usize, before: i32) -> Scores {
        let index = i32::try_from(index).unwrap_or(MAX);
        let above = |score: i32, max: i32| before.saturating_add(score).saturating_add(index).min(max);
        let main = above(SERVICE, MAX - 1);
        Scores {
            main,
            descendant: above(DESCENDANT, MAX),
        }
    }

    /// Whether a process with that score can only be this service's.
    pub fn tell(self, score: i32) -> bool {
        // At the upper end all services have the same.
        score < MAX - 1 && (score == self.main || score == self.descendant)
    }
}

/// Takes this process out of the kernel's choice, if it is PID 1 and may, and gives what its score was before.
pub fn settle() -> i32 {
    let before = get(getpid()).unwrap_or(0);
    if getpid() == Pid::from_raw(1) {
        set(Pid::from_raw(1), SUPERVISOR);
    }
    before.max(0)
}

/// The score of a process, if there is one.
pub fn get(pid: Pid) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
    text.trim().parse().ok()
}

/// A process that has just ended needs no score, and where setting it is not allowed nothing can be done.
pub fn set(pid: Pid, score: i32) {
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_starts_goes_first_and_the_supervisor_last() {
        for before in [0, 500, 1000] {
            let scores = Scores::of(3, before);
            assert!(SUPERVISOR < scores.main && scores.main < scores.descendant);
            assert!(scores.descendant <= MAX);
        }
    }

    #[test]
    fn a_score_is_one_services_or_nobodys() {
        let (first, second) = (Scores::of(0, 0), Scores::of(1, 0));
        assert!(first.tell(first.main) && first.tell(first.descendant));
        assert!(!first.tell(second.main) && !first.tell(0) && !first.tell(SUPERVISOR));
        assert!(!Scores::of(0, 1000).tell(1000), "there everybody has the same");
    }
}
