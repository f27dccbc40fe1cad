use proptest::prelude::*;

use super::*;
use crate::config::service::Probe;

const SECOND: Duration = Duration::from_secs(1);

fn service() -> Service {
    let mut service = Service::named("a");
    service.stop.timeout = 10 * SECOND;
    service
}

/// A machine, what it asked for last, and a clock of its own.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new(service: &Service) -> Self {
        let mut bench = Bench {
            machine: Machine::new(service),
            now: Instant::now(),
        };
        bench.put(Input::Turn(true));
        bench
    }

    fn put(&mut self, input: Input) -> Vec<Action> {
        let (machine, actions) = self.machine.clone().step(input, self.now);
        self.machine = machine;
        actions
    }

    fn up(&mut self) {
        assert!(matches!(*self.put(Input::Start), [Action::Launch { .. }]));
        assert!(self.put(Input::Launched).is_empty());
    }

    /// Ends by itself; gives the delay until the next launch, or `None` if it is not launched again.
    fn crash(&mut self, exit: Exit, verdict: Verdict) -> Option<Duration> {
        self.put(Input::Exited(exit));
        let mut actions = self.put(Input::Gone(verdict));
        let since = self.now;
        if let Some(due) = self.machine.due() {
            self.now = self.now.max(due);
            actions.extend(self.put(Input::Tick));
        }
        let launched = actions.iter().any(|action| matches!(action, Action::Launch { .. }));
        launched.then(|| {
            self.put(Input::Launched);
            self.now - since
        })
    }
}

#[test]
fn exit_0_is_not_an_end_unless_it_is_wanted_or_the_policy_says_so() {
    for (restart, exit, again) in [
        (Restart::Always, Exit::Code(0), true),
        (Restart::OnFailure, Exit::Code(0), false),
        (Restart::OnFailure, Exit::Code(1), true),
        (Restart::Never, Exit::Code(1), false),
    ] {
        let mut bench = Bench::new(&Service { restart, ..service() });
        bench.up();
        assert_eq!(
            bench.crash(exit, Verdict::Restart).is_some(),
            again,
            "{restart:?} {exit:?}"
        );
    }
}

#[test]
fn what_is_told_to_stop_stays_down_whatever_its_policy() {
    let mut bench = Bench::new(&service());
    bench.up();
    assert_eq!(bench.put(Input::Stop), [Action::Terminate]);
    assert_eq!(bench.machine.state(), ServiceState::Stopping);
    assert_eq!(bench.put(Input::Exited(Exit::Code(0))), [Action::Clear { asked: true }]);
    assert_eq!(bench.put(Input::Gone(Verdict::RestartNow)), []);
    assert_eq!(bench.machine.state(), ServiceState::Stopped);
    assert_eq!(bench.machine.due(), None);
}

#[test]
fn a_stop_that_is_ignored_ends_in_a_kill() {
    let mut bench = Bench::new(&service());
    bench.up();
    bench.put(Input::Stop);
    bench.now += 10 * SECOND;
    assert_eq!(bench.put(Input::Tick), [Action::Kill]);
    assert_eq!(bench.put(Input::Tick), [], "one kill is enough");
}

#[test]
fn what_does_not_end_though_killed_is_counted_as_dead() {
    let mut bench = Bench::new(&service());
    bench.up();
    bench.put(Input::Stop);
    bench.now += 10 * SECOND;
    bench.put(Input::Tick);
    bench.now = bench.machine.due().unwrap();
    assert_eq!(bench.put(Input::Tick), [Action::Bury]);
    assert_eq!(
        bench.put(Input::Exited(Exit::Signal(9))),
        [Action::Clear { asked: true }, Action::Kill]
    );
    bench.put(Input::Gone(Verdict::Restart));
    assert_eq!(bench.machine.state(), ServiceState::Stopped);
}

/// A channel of the gateway's that is broken for good keeps it from being ready; it serves all the same.
#[test]
fn not_ready_in_time_but_alive_is_left_alone() {
    let mut service = service();
    let check = crate::config::service::Check::Tcp { addr: "a:1".into() };
    service.ready = Some(Probe::ready(check.clone()));
    service.live = Some(Probe::live(check));
    let mut bench = Bench::new(&service);
    bench.up();
    bench.put(Input::NotReady("failing: all of it".into()));
    bench.put(Input::NotReady("failing: telegram".into()));
    assert_eq!(bench.machine.why(), None, "it has time");
    bench.now += 180 * SECOND;
    assert_eq!(bench.put(Input::Tick), [Action::Overdue]);
    assert_eq!(bench.machine.state(), ServiceState::Running);
    assert_eq!(bench.machine.why(), Some("not ready within 180 s: failing: telegram"));
    assert_eq!(bench.machine.due(), None);
    assert_eq!(bench.put(Input::NotReady("failing: discord".into())), []);
    assert_eq!(bench.machine.why(), Some("not ready within 180 s: failing: discord"));
    bench.put(Input::Ready);
    assert_eq!(
        (bench.machine.state(), bench.machine.why()),
        (ServiceState::Ready, None)
    );
    assert_eq!(bench.put(Input::Unhealthy("gone".into())), [Action::Terminate]);
}

#[test]
fn what_the_process_leaves_running_has_the_rest_of_the_stop_timeout() {
    let mut bench = Bench::new(&service());
    bench.up();
    bench.put(Input::Stop);
    bench.now += 4 * SECOND;
    bench.put(Input::Exited(Exit::Code(0)));
    assert_eq!(bench.machine.due(), Some(bench.now + 6 * SECOND));
}

#[test]
fn a_second_stop_shortens_the_first() {
    let mut bench = Bench::new(&service());
    bench.up();
    bench.put(Input::Stop);
    bench.put(Input::StopWithin(SECOND));
    assert_eq!(bench.machine.due(), Some(bench.now + SECOND));
    bench.put(Input::StopWithin(5 * SECOND));
    assert_eq!(bench.machine.due(), Some(bench.now + SECOND), "and never lengthens it");
}

#[test]
fn a_crash_loop_is_held_and_retried_slowly() {
    let mut bench = Bench::new(&service());
    bench.up();
    for _ in 0..6 {
        assert!(bench.crash(Exit::Code(1), Verdict::Restart).unwrap() < 10 * SECOND);
    }
    bench.put(Input::Exited(Exit::Code(1)));
    assert_eq!(bench.put(Input::Gone(Verdict::Restart)), [Action::ReportCrashLoop]);
    assert_eq!(bench.machine.state(), ServiceState::CrashLoop);
    assert_eq!(bench.machine.due(), Some(bench.now + 60 * SECOND));
    bench.now += 60 * SECOND;
    bench.put(Input::Tick);
    bench.put(Input::Launched);
    assert_eq!(
        bench.crash(Exit::Code(1), Verdict::Restart),
        Some(60 * SECOND),
        "still looping"
    );
    bench.now += 60 * SECOND;
    assert_eq!(
        bench.crash(Exit::Code(1), Verdict::Restart),
        Some(Duration::ZERO),
        "over it"
    );
}

#[test]
fn a_crash_loop_can_end_the_supervisor() {
    let mut bench = Bench::new(&Service {
        on_crash_loop: OnCrashLoop::Exit,
        ..service()
    });
    bench.up();
    while bench.crash(Exit::Code(1), Verdict::Restart).is_some() {}
    assert_eq!(bench.machine.state(), ServiceState::CrashLoop);
    assert_eq!(
        bench.machine.restarts(),
        7,
        "the six that were made and the one that was not"
    );
}

#[test]
fn not_ready_in_time_is_unhealthy_and_never_ready_does_not_reset_the_backoff() {
    let mut service = service();
    let check = crate::config::service::Check::Tcp { addr: "a:1".into() };
    service.ready = Some(Probe::ready(check));
    let mut bench = Bench::new(&service);
    bench.up();
    let mut delays = Vec::new();
    for seconds in [180, 360, 720] {
        assert_eq!(bench.machine.state(), ServiceState::Running);
        assert_eq!(bench.put(Input::Tick), []);
        bench.now += seconds * SECOND;
        assert_eq!(bench.put(Input::Tick), [Action::Terminate]);
        assert_eq!(bench.machine.state(), ServiceState::Unhealthy);
        assert_eq!(bench.machine.why(), Some(&*format!("not ready within {seconds} s")));
        delays.push(bench.crash(Exit::Signal(15), Verdict::Restart));
    }
    let ms = |ms| Some(Duration::from_millis(ms));
    assert_eq!(delays, [ms(0), ms(500), ms(1000)]);
}

#[test]
fn a_request_to_restart_is_granted_at_once_to_one_that_was_ready() {
    let mut bench = Bench::new(&Service {
        restart: Restart::Never,
        ..service()
    });
    bench.up();
    for _ in 0..3 {
        assert_eq!(bench.crash(Exit::Code(0), Verdict::RestartNow), Some(Duration::ZERO));
    }
}

#[test]
fn a_hold_from_outside_outlasts_start_and_the_keepers_does_not() {
    let mut bench = Bench::new(&service());
    bench.put(Input::Hold("no store".into()));
    assert_eq!(bench.put(Input::Start), []);
    assert_eq!(
        (bench.machine.state(), bench.machine.why()),
        (ServiceState::Held, Some("no store"))
    );
    assert_eq!(bench.put(Input::Release), [Action::Launch { attempt: 1 }]);
    assert_eq!(bench.put(Input::LaunchHeld("bad config".into())), []);
    assert_eq!(bench.machine.state(), ServiceState::Held);
    assert_eq!(bench.put(Input::Start), [Action::Launch { attempt: 1 }]);
}

#[test]
fn time_asleep_is_nobodys_fault() {
    let mut service = service();
    let check = crate::config::service::Check::Tcp { addr: "a:1".into() };
    service.ready = Some(Probe::ready(check));
    let mut bench = Bench::new(&service);
    bench.up();
    bench.now += 3600 * SECOND;
    bench.put(Input::Slept(3600 * SECOND));
    assert_eq!(bench.put(Input::Tick), []);
    assert_eq!(bench.machine.due(), Some(bench.now + 180 * SECOND));
}

#[test]
fn it_waits_for_its_turn() {
    let mut bench = Bench::new(&service());
    bench.put(Input::Turn(false));
    assert_eq!(bench.put(Input::Start), []);
    assert_eq!(bench.machine.state(), ServiceState::Waiting);
    assert_eq!(bench.put(Input::Turn(true)), [Action::Launch { attempt: 1 }]);
    bench.put(Input::Launched);
    assert_eq!(bench.put(Input::Turn(false)), [], "what is up stays up");
}

#[test]
fn a_stop_abandons_a_launch_and_ends_one_that_came_through() {
    let mut bench = Bench::new(&service());
    bench.put(Input::Start);
    assert_eq!(bench.put(Input::Stop), [Action::Abandon]);
    assert_eq!(bench.put(Input::Launched), [Action::Terminate]);
    let mut bench = Bench::new(&service());
    bench.put(Input::Start);
    bench.put(Input::Stop);
    assert_eq!(bench.put(Input::Abandoned), []);
    assert_eq!(bench.machine.state(), ServiceState::Stopped);
}

/// What was asked for during a launch is about the next one: it has the new environment, or the new configuration.
#[test]
fn a_restart_during_a_launch_is_another_launch() {
    for ask in [&[Input::Restart][..], &[Input::Stop, Input::Start]] {
        for come in [
            Input::Abandoned,
            Input::NotLaunched {
                code: 1,
                why: "w".into(),
            },
            Input::LaunchHeld("h".into()),
        ] {
            let mut bench = Bench::new(&Service {
                restart: Restart::Never,
                ..service()
            });
            bench.put(Input::Start);
            for input in ask {
                bench.put(input.clone());
            }
            assert_eq!(bench.put(come.clone()), [Action::Launch { attempt: 1 }], "{come:?}");
            assert_eq!(bench.put(Input::Launched), []);
            assert_eq!(bench.machine.restarts(), 0);
        }
        let mut bench = Bench::new(&service());
        bench.put(Input::Start);
        for input in ask {
            bench.put(input.clone());
        }
        assert_eq!(bench.put(Input::Launched), [Action::Terminate]);
        bench.put(Input::Exited(Exit::Signal(15)));
        assert_eq!(
            bench.put(Input::Gone(Verdict::Restart)),
            [Action::Launch { attempt: 1 }]
        );
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    let exit = prop_oneof![(0..256).prop_map(Exit::Code), Just(Exit::Signal(9))];
    let verdict = prop_oneof![
        3 => Just(Verdict::Restart),
        1 => Just(Verdict::RestartNow),
        1 => Just(Verdict::Hold("h".into()))
    ];
    prop_oneof![
        2 => Just(Input::Start),
        1 => Just(Input::Stop),
        1 => (0..20u64).prop_map(|s| Input::StopWithin(Duration::from_secs(s))),
        1 => Just(Input::Restart),
        1 => Just(Input::Hold("h".into())),
        1 => Just(Input::Release),
        2 => any::<bool>().prop_map(Input::Turn),
        4 => Just(Input::Launched),
        1 => Just(Input::NotLaunched { code: 127, why: "w".into() }),
        1 => Just(Input::LaunchHeld("h".into())),
        1 => Just(Input::Abandoned),
        1 => Just(Input::NotReady("n".into())),
        3 => Just(Input::Ready),
        1 => Just(Input::Unhealthy("u".into())),
        1 => Just(Input::TooLarge("t".into())),
        6 => exit.prop_map(Input::Exited),
        6 => verdict.prop_map(Input::Gone),
        1 => (0..4000u64).prop_map(|s| Input::Slept(Duration::from_secs(s))),
        6 => Just(Input::Tick),
    ]
}

/// What is known of a service from outside: enough to say which inputs can happen and which actions are allowed.
#[derive(Default)]
struct World {
    wanted: bool,
    turn: bool,
    held: bool,
    keeper_held: bool,
    launching: bool,
    /// What comes of the launch is out of date.
    outdated: bool,
    abandoned: bool,
    killed: bool,
    alive: bool,
    ending: bool,
    clearing: bool,
    /// The least time at which it may be launched, for want of a command that allows it at once.
    not_before: Option<Instant>,
    /// Ends in a row that nobody asked for, none of them after a time of being ready.
    failures: u32,
    ready: Option<Instant>,
    /// The coming launch was asked for.
    asked: bool,
}

impl World {
    fn can_happen(&self, input: &Input) -> bool {
        match input {
            Input::Launched | Input::NotLaunched { .. } | Input::LaunchHeld(_) => self.launching,
            Input::Abandoned => self.launching && self.abandoned,
            Input::NotReady(_) | Input::Ready | Input::Unhealthy(_) | Input::TooLarge(_) | Input::Exited(_) => {
                self.alive
            }
            Input::Gone(_) => self.clearing,
            _ => true,
        }
    }

    fn least_delay(&self, policy: &Service) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            1 => policy.backoff.first,
            n => (policy.backoff.base * 2_u32.pow((n - 2).min(16))).min(policy.backoff.max),
        }
    }

    fn before(&mut self, input: &Input, now: Instant, policy: &Service) {
        match input {
            Input::Start | Input::Restart => {
                let ends = self.ending || *input == Input::Restart;
                self.outdated |= self.launching && (*input == Input::Restart || !self.wanted);
                (self.wanted, self.not_before, self.failures) = (true, None, 0);
                self.asked = if self.launching {
                    self.outdated
                } else {
                    !self.alive || ends
                };
                self.keeper_held = false;
            }
            Input::Stop | Input::StopWithin(_) => self.wanted = false,
            Input::Hold(_) => self.held = true,
            Input::Release => {
                if self.held || self.keeper_held {
                    (self.asked, self.not_before) = (true, None);
                }
                (self.held, self.keeper_held) = (false, false);
            }
            Input::Turn(turn) => self.turn = *turn,
            Input::Launched => {
                (self.launching, self.alive, self.killed) = (false, true, false);
                self.ready = policy.ready.is_none().then_some(now);
            }
            Input::NotLaunched { .. } => {
                self.launching = false;
                self.ended_by_itself(now, false, policy);
            }
            Input::LaunchHeld(_) => (self.launching, self.keeper_held) = (false, !self.outdated),
            Input::Abandoned => self.launching = false,
            Input::Ready => {
                self.ready.get_or_insert(now);
            }
            Input::Exited(_) => {
                (self.alive, self.ending, self.clearing) = (false, false, true);
                if self.ready.is_some_and(|at| now - at >= policy.backoff.reset_after) {
                    self.failures = 0;
                }
            }
            Input::Gone(verdict) => {
                self.clearing = false;
                self.keeper_held = matches!(verdict, Verdict::Hold(_));
                let at_once = *verdict == Verdict::RestartNow && self.ready.is_some();
                self.ended_by_itself(now, at_once || self.keeper_held, policy);
            }
            _ => {}
        }
    }

    fn ended_by_itself(&mut self, now: Instant, excused: bool, policy: &Service) {
        if self.wanted && !self.held && !self.asked && !excused {
            self.failures += 1;
            self.not_before = Some(now + self.least_delay(policy));
        }
    }

    fn after(&mut self, action: &Action, now: Instant) {
        match action {
            Action::Launch { .. } => {
                assert!(self.wanted, "launched though told to stop");
                assert!(self.turn, "launched though not its turn");
                assert!(!self.held, "launched though held");
                assert!(
                    !self.launching && !self.alive && !self.clearing,
                    "launched beside another of its kind"
                );
                if let Some(not_before) = self.not_before.take() {
                    assert!(now >= not_before, "launched before its backoff was over");
                }
                (self.launching, self.asked, self.keeper_held) = (true, false, false);
                (self.outdated, self.abandoned) = (false, false);
            }
            Action::Abandon => {
                assert!(self.launching || self.clearing);
                self.abandoned = self.launching;
            }
            Action::Terminate => {
                assert!(self.alive && !self.ending);
                self.ending = true;
            }
            Action::Kill => {
                assert!(self.alive || self.clearing);
                self.killed = true;
            }
            Action::Bury => assert!(self.alive && self.ending && self.killed),
            Action::Overdue => assert!(self.alive && !self.ending && self.ready.is_none()),
            Action::Clear { .. } => assert!(self.clearing),
            Action::ReportCrashLoop | Action::GiveUp => assert!(self.wanted),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// No sequence at all leads to a panic or to a timer that does not move on.
    #[test]
    fn nothing_is_undefined(inputs in prop::collection::vec((any_input(), 0..40_000u64), 0..60)) {
        let mut bench = Bench::new(&service());
        for (input, ms) in inputs {
            bench.now += Duration::from_millis(ms);
            bench.put(input);
            if let Some(due) = bench.machine.due().filter(|due| *due <= bench.now) {
                bench.put(Input::Tick);
                prop_assert_ne!(bench.machine.due(), Some(due), "it would spin");
            }
        }
    }

    /// No sequence of what can happen restarts faster than the backoff, restarts what was told to stop, or runs two.
    #[test]
    fn restarts_obey_intent_and_backoff(
        inputs in prop::collection::vec((any_input(), prop_oneof![Just(0), 0..2_000u64, 0..100_000u64]), 0..120),
        probed: bool,
        watched: bool,
        on_failure: bool,
    ) {
        let mut policy = service();
        policy.crash_loop.restarts = 1000;
        policy.ready = probed.then(|| Probe::ready(crate::config::service::Check::Notify { fd: 3 }));
        policy.live = watched.then(|| Probe::live(crate::config::service::Check::Tcp { addr: "a:1".into() }));
        if on_failure {
            policy.restart = Restart::OnFailure;
        }
        let mut bench = Bench::new(&policy);
        let mut world = World { turn: true, ..World::default() };
        for (input, ms) in inputs {
            bench.now += Duration::from_millis(ms);
            // Slept moves the machine's clock against the world's, which only makes it more patient.
            if !world.can_happen(&input) || matches!(input, Input::Slept(_)) {
                continue;
            }
            world.before(&input, bench.now, &policy);
            for action in bench.put(input) {
                world.after(&action, bench.now);
            }
        }
        if !world.wanted {
            prop_assert!(!matches!(
                bench.machine.state(),
                ServiceState::Ready | ServiceState::Running | ServiceState::Unhealthy | ServiceState::BackingOff
            ));
        }
    }

    /// It is not alive before it is ready, and the machine gives it too little of itself: it is up in the end, and as soon
    /// as it can be told to be.
    #[test]
    fn a_start_that_takes_long_is_not_cut_short_for_ever(need in 1..=8 * 180u32, watched: bool) {
        let mut policy = service();
        let check = crate::config::service::Check::Tcp { addr: "a:1".into() };
        policy.ready = Some(Probe::ready(check.clone()));
        policy.live = watched.then(|| Probe::live(check));
        let mut bench = Bench::new(&policy);
        bench.up();
        let need = need * SECOND;
        let mut cut_short = 0;
        while bench.machine.due().is_some_and(|due| due < bench.now + need) {
            bench.now = bench.machine.due().unwrap();
            if bench.put(Input::Tick) == [Action::Overdue] {
                prop_assert_eq!(bench.put(Input::Unhealthy("no answer".into())), [Action::Terminate]);
            }
            cut_short += 1;
            prop_assert!(cut_short <= 3, "cut short for ever");
            prop_assert!(bench.crash(Exit::Signal(15), Verdict::Restart).is_some());
        }
        bench.now += need;
        bench.put(Input::Ready);
        prop_assert_eq!(bench.machine.state(), ServiceState::Ready);
        prop_assert_eq!(cut_short, (0..4).find(|times| need <= (180 << times) * SECOND).unwrap());
        // One that was up and well has the time that it was given, again.
        bench.now += policy.backoff.reset_after;
        bench.crash(Exit::Code(1), Verdict::Restart);
        prop_assert_eq!(bench.machine.due(), Some(bench.now + 180 * SECOND));
    }

    /// However it ends, no more unasked launches are made in the window than make a crash loop, but for the slow ones.
    #[test]
    fn a_crash_loop_is_bounded(runs in prop::collection::vec((0..90_000u64, any::<bool>()), 0..60)) {
        let policy = service();
        let mut bench = Bench::new(&policy);
        bench.up();
        let mut launches = Vec::new();
        for (ms, now) in runs {
            bench.now += Duration::from_millis(ms);
            let verdict = if now { Verdict::RestartNow } else { Verdict::Restart };
            if bench.crash(Exit::Code(1), verdict).is_some() && ms < 60_000 {
                launches.push(bench.now);
            }
        }
        for (at, first) in launches.iter().enumerate() {
            let within = launches[at..].iter().take_while(|next| **next - *first <= policy.crash_loop.within);
            prop_assert!(within.count() <= policy.crash_loop.restarts as usize + 2);
        }
    }
}
