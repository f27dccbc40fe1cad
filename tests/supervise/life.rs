//! Starting, stopping, restarting, and in which order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use moltinit::{
    config::service::{Check, CrashLoop, OnCrashLoop, Probe, Restart},
    event::{Event, ServiceState},
    pid1::Exit,
    supervise::{Care, CommandError, Ended, Environment, Launch, Start, Verdict},
};
use tokio::{sync::Notify, time::timeout};

use super::bench::{Bench, PATIENCE, after, command, shell, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_0_is_not_an_end_and_stop_is() {
    let mut bench = Bench::start(vec![shell(
        "a",
        "echo run >>$D/runs; [ $(wc -l <$D/runs) -ge 3 ] && exec sleep 1000; exit 0",
    )]);
    for _ in 0..3 {
        bench.started("a").await;
    }
    assert_eq!(bench.view("a").state, ServiceState::Ready);
    assert_eq!(bench.view("a").restarts, 2);
    assert_eq!(bench.view("a").last_exit.unwrap().status, 0);
    bench.handle.stop("a").await.unwrap();
    let view = bench.view("a");
    assert_eq!((view.state, view.pid), (ServiceState::Stopped, None));
    assert_eq!(view.last_exit.unwrap().signal, Some(15));
    let intended = bench.event(|event| match event {
        Event::ServiceExited { intended, .. } => Some(*intended),
        _ => None,
    });
    assert!(intended.await);
    bench.handle.start("a").await.unwrap();
    assert_eq!(bench.view("a").state, ServiceState::Ready);
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_kept() {
    let mut never = shell("never", "exit 3");
    never.restart = Restart::Never;
    let mut on_failure = shell("on-failure", "echo >>$D/runs; [ $(wc -l <$D/runs) -ge 2 ]");
    on_failure.restart = Restart::OnFailure;
    let mut bench = Bench::start(vec![never, on_failure]);
    bench.state("on-failure", ServiceState::Stopped).await;
    until(|| (bench.view("never").state == ServiceState::Stopped).then_some(())).await;
    assert_eq!(bench.view("on-failure").restarts, 1);
    let view = bench.view("never");
    assert_eq!((view.last_exit.unwrap().status, view.restarts), (3, 0));
    assert_eq!(view.why.as_deref(), Some("exit code 3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_run_is_named() {
    let mut bench = Bench::start(vec![command("a", &["/no/such/program"])]);
    bench.state("a", ServiceState::BackingOff).await;
    let view = bench.view("a");
    assert_eq!(view.last_exit.unwrap().status, 127);
    bench.handle.stop("a").await.unwrap();
}

/// Each is ready only when told, by a file; the order in which they come up and go down is written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_waits_for_readiness_and_is_reversed_to_stop() {
    let service = |name: &str| {
        let mut service = shell(
            name,
            &format!(
                "trap 'sleep 0.2; echo {name} >>$D/stopped; exit' TERM; touch $D/{name}; \
                 while ! [ -e $D/go-{name} ]; do sleep 0.02; done; echo >&3; sleep 1000 & wait"
            ),
        );
        service.ready = Some(Probe::ready(Check::Notify { fd: 3 }));
        service
    };
    let services = vec![
        after(service("gateway"), &["store", "sandbox"]),
        service("sandbox"),
        after(service("bot"), &["gateway"]),
        service("alone"),
    ];
    let bench = Bench::start(services);
    let exists = |name: &str| bench.file(name).exists();
    let go = |name: &str| std::fs::write(bench.file(&format!("go-{name}")), "").unwrap();
    until(|| (exists("sandbox") && exists("alone")).then_some(())).await;
    assert_eq!(bench.view("gateway").state, ServiceState::Waiting);
    go("sandbox");
    until(|| (bench.view("sandbox").state == ServiceState::Ready).then_some(())).await;
    assert_eq!(bench.view("gateway").state, ServiceState::Waiting);
    assert!(!exists("gateway"), "the store is not there yet");
    bench.handle.satisfied("store");
    until(|| exists("gateway").then_some(())).await;
    assert!(!exists("bot"));
    go("gateway");
    go("bot");
    until(|| (bench.view("bot").state == ServiceState::Ready).then_some(())).await;
    bench.handle.drain(PATIENCE).await;
    assert_eq!(bench.written("stopped").await, "bot\ngateway\n");
    assert_eq!(bench.view("sandbox").state, ServiceState::Ready);
    assert_eq!(
        bench.handle.start("gateway").await,
        Err(CommandError::ShuttingDown),
        "what is being shut down is not started again"
    );
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.written("stopped").await.contains("sandbox\n"));
    assert!(bench.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_is_ignored_is_enforced_and_hurry_shortens_it() {
    let mut deaf = shell("deaf", "trap '' TERM; echo $$ >$D/deaf; while :; do sleep 1000; done");
    deaf.stop.timeout = Duration::from_millis(300);
    let mut slow = shell("slow", "trap '' TERM; echo $$ >$D/slow; while :; do sleep 1000; done");
    slow.stop.timeout = Duration::from_secs(3600);
    let bench = Bench::start(vec![deaf, slow]);
    bench.written("deaf").await;
    bench.written("slow").await;
    timeout(PATIENCE, bench.handle.stop("deaf")).await.unwrap().unwrap();
    assert_eq!(bench.view("deaf").last_exit.unwrap().signal, Some(9));
    let shut_down = tokio::spawn({
        let handle = bench.handle.clone();
        async move { handle.shut_down(Duration::from_secs(3600)).await }
    });
    until(|| (bench.view("slow").state == ServiceState::Stopping).then_some(())).await;
    bench.handle.hurry();
    timeout(PATIENCE, shut_down).await.unwrap().unwrap();
    assert!(bench.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_ends_the_supervisor_where_it_shall() {
    let mut service = shell("a", "exit 1");
    service.on_crash_loop = OnCrashLoop::Exit;
    service.backoff.base = Duration::from_millis(1);
    service.crash_loop = CrashLoop {
        restarts: 3,
        within: Duration::from_secs(60),
    };
    let mut bench = Bench::start(vec![service]);
    timeout(PATIENCE, bench.handle.gave_up()).await.unwrap();
    let restarts = bench.event(|event| match event {
        Event::ServiceCrashLoop { restarts, .. } => Some(*restarts),
        _ => None,
    });
    assert_eq!(restarts.await, 3);
    assert_eq!(bench.view("a").state, ServiceState::CrashLoop);
    let error = bench.handle.start("b").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no service `b`; the nearest known one is `a`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_keeps_it_down_until_released() {
    let bench = Bench::start(vec![after(command("a", &["sleep", "1000"]), &["store"])]);
    bench.handle.hold("a", "no store").await.unwrap();
    bench.handle.satisfied("store");
    let error = bench.handle.start("a").await.unwrap_err();
    assert_eq!(error.to_string(), "a is not up: held: no store");
    bench.handle.release("a").await.unwrap();
    bench.handle.start("a").await.unwrap();
    bench.handle.hold("a", "store gone").await.unwrap();
    until(|| (bench.view("a").state == ServiceState::Held).then_some(())).await;
    assert!(bench.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_hands_over_its_environment_and_ends_with_the_service() {
    let mut service = shell(
        "a",
        "echo $FROM_ATTACH $OWN >$D/env; trap 'exit 7' TERM; sleep 1000 & wait",
    );
    service.env.insert("OWN".into(), "own".into());
    service.env.insert("FROM_ATTACH".into(), "own".into());
    let bench = Bench::start(vec![service]);
    assert_eq!(bench.written("env").await, "own own\n");
    bench.handle.stop("a").await.unwrap();
    std::fs::remove_file(bench.file("env")).unwrap();
    let attached = tokio::spawn({
        let handle = bench.handle.clone();
        let env: Environment = [("FROM_ATTACH".into(), "attached".into())].into();
        async move { handle.attach("a", env, false).await }
    });
    assert_eq!(bench.written("env").await, "attached own\n");
    until(|| (bench.view("a").state == ServiceState::Ready).then_some(())).await;
    nix::sys::signal::kill(bench.pid("a"), nix::sys::signal::Signal::SIGKILL).unwrap();
    until(|| bench.view("a").pid.filter(|_| bench.view("a").restarts == 1)).await;
    bench.written("env").await;
    // The shell may not have set its trap yet; stop asks once, and a second attach sees the same end.
    assert!(!attached.is_finished(), "it outlives a crash of the service");
    let before = bench.view("a").pid;
    let env: Environment = [("FROM_ATTACH".into(), "anew".into())].into();
    let again = {
        let handle = bench.handle.clone();
        tokio::spawn(async move { handle.attach("a", env, true).await })
    };
    until(|| (bench.view("a").pid != before).then_some(())).await;
    let env = bench.file("env");
    until(|| std::fs::read_to_string(&env).ok().filter(|text| text == "anew own\n")).await;
    bench.handle.stop("a").await.unwrap();
    for attached in [attached, again] {
        let status = timeout(PATIENCE, attached).await.unwrap().unwrap().unwrap();
        assert!([7, 143].contains(&status), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_brings_back_what_is_on_its_way_out() {
    let service = shell(
        "a",
        "trap 'touch $D/told; sleep 1; exit 0' TERM; echo up >$D/up; sleep 1000 & wait",
    );
    let bench = Bench::start(vec![service]);
    bench.written("up").await;
    let before = bench.view("a").pid;
    bench.handle.stop("a").await.unwrap();
    let told = bench.file("told");
    until(|| told.exists().then_some(())).await;
    let attached = tokio::spawn({
        let handle = bench.handle.clone();
        async move { handle.attach("a", Environment::new(), false).await }
    });
    until(|| bench.view("a").pid.filter(|pid| Some(*pid) != before)).await;
    assert!(!attached.is_finished());
    bench.handle.stop("a").await.unwrap();
    timeout(PATIENCE, attached).await.unwrap().unwrap().unwrap();
}

/// Its keeper takes its time over the first start.
#[derive(Default)]
struct Slow {
    asked: AtomicU32,
    go_on: Notify,
}

impl Care for Slow {
    fn before_start(&self, _: u32) -> BoxFuture<'_, Start> {
        Box::pin(async {
            if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
                self.go_on.notified().await;
            }
            Start::Go(Launch::default())
        })
    }
}

/// The environment came when the one from before was already on its way to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_during_a_launch_is_not_lost() {
    let slow = Arc::new(Slow::default());
    let cares: HashMap<String, Arc<dyn Care>> = HashMap::from([("a".into(), Arc::clone(&slow) as _)]);
    let service = shell("a", "echo $FROM_ATTACH >$D/env; exec sleep 1000");
    let bench = Bench::with_cares(vec![service], cares);
    until(|| (slow.asked.load(Ordering::Relaxed) == 1).then_some(())).await;
    let attached = tokio::spawn({
        let handle = bench.handle.clone();
        let env: Environment = [("FROM_ATTACH".into(), "attached".into())].into();
        async move { handle.attach("a", env, true).await }
    });
    assert_eq!(bench.written("env").await, "attached\n");
    assert_eq!(slow.asked.load(Ordering::Relaxed), 2);
    assert_eq!(bench.view("a").restarts, 0, "what was asked for is no failure");
    slow.go_on.notify_one();
    bench.handle.stop("a").await.unwrap();
    assert_eq!(timeout(PATIENCE, attached).await.unwrap().unwrap(), Ok(143));
}

struct Keeper {
    ended: Mutex<Vec<Ended>>,
}

impl Care for Keeper {
    fn before_start(&self, attempt: u32) -> BoxFuture<'_, Start> {
        Box::pin(async move {
            Start::Go(Launch {
                argv: Some(vec![
                    "sh".into(),
                    "-c".into(),
                    "echo to stdout; echo $N $GONE >&2; exit 78".into(),
                ]),
                env: [("N".into(), attempt.to_string().into())].into(),
                unset: vec!["GONE".into()],
                cwd: None,
            })
        })
    }

    fn after_exit(&self, ended: Ended) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            let mut all = self.ended.lock().unwrap();
            all.push(ended);
            if all.len() == 2 {
                return Verdict::Hold("bad config".into());
            }
            Verdict::RestartNow
        })
    }
}

struct Stuck;

impl Care for Stuck {
    fn before_start(&self, _: u32) -> BoxFuture<'_, Start> {
        Box::pin(std::future::pending())
    }
}

struct Panics;

impl Care for Panics {
    fn before_start(&self, _: u32) -> BoxFuture<'_, Start> {
        Box::pin(async { panic!("on purpose") })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_has_its_say_and_one_that_hangs_or_panics_holds_up_nobody() {
    let keeper = Arc::new(Keeper {
        ended: Mutex::default(),
    });
    let mut kept = command("kept", &["true"]);
    kept.env.insert("GONE".into(), "still here".into());
    let cares: HashMap<String, Arc<dyn Care>> = HashMap::from([
        ("kept".into(), Arc::clone(&keeper) as _),
        ("stuck".into(), Arc::new(Stuck) as _),
        ("panics".into(), Arc::new(Panics) as _),
    ]);
    let services = vec![
        kept,
        command("stuck", &["true"]),
        command("panics", &["true"]),
        command("other", &["sleep", "1000"]),
    ];
    let mut bench = Bench::with_cares(services, cares);
    bench.state("kept", ServiceState::Held).await;
    assert_eq!(bench.view("kept").why.as_deref(), Some("bad config"));
    {
        let ended = keeper.ended.lock().unwrap();
        assert_eq!((ended[0].exit, ended[0].was_ready), (Exit::Code(78), true));
        let mut tail: Vec<_> = ended[1].tail.iter().map(|line| line.text.as_str()).collect();
        tail.sort_unstable();
        assert_eq!(tail, ["2", "to stdout"], "the lines of that run alone");
    }
    until(|| (bench.view("other").state == ServiceState::Ready).then_some(())).await;
    assert_eq!(bench.view("stuck").state, ServiceState::Starting);
    until(|| (bench.view("panics").restarts > 0).then_some(())).await;
    timeout(PATIENCE, bench.handle.shut_down(PATIENCE)).await.unwrap();
    assert_eq!(bench.view("stuck").state, ServiceState::Stopped);
}

/// What a probe or a keeper says may have a secret in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_a_reason() {
    let mut service = shell("a", "exec sleep 1000");
    service.live = Some(Probe {
        every: Duration::from_millis(20),
        failures: 1,
        ..Probe::live(Check::Command {
            argv: ["sh", "-c", "echo token hunter22 >&2; exit 1"]
                .map(str::to_owned)
                .to_vec(),
        })
    });
    let mut bench = Bench::start(vec![service]);
    let why = bench.event(|event| match event {
        Event::ServiceUnhealthy { why, .. } => Some(why.clone()),
        _ => None,
    });
    let why = why.await;
    assert!(why.ends_with("token [secret]"), "{why}");
    assert!(!format!("{:?}", bench.handle.services()).contains("hunter22"));
}
