//! A freeze of the whole container is nobody's fault. A binary of its own: it stops itself.

#[path = "supervise/bench.rs"]
#[allow(dead_code)]
mod bench;

use std::time::Duration;

use moltinit::{
    config::service::{Check, Probe},
    event::ServiceState,
};

use bench::{Bench, PATIENCE, after, ports::free_port, server, shell, until};

/// Stops a server, then its supervisor in the middle of a probe, for longer than every deadline; then wakes both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_restarts_nothing() {
    let mut web = server("web", free_port());
    if let Some(live) = &mut web.live {
        (live.timeout, live.failures) = (Duration::from_secs(2), 1);
    }
    let mut starting = shell(
        "starting",
        "while ! [ -e $D/thawed ]; do sleep 0.05; done; echo >&3; exec sleep 1000",
    );
    starting.ready = Some(Probe {
        timeout: Duration::from_secs(4),
        ..Probe::ready(Check::Notify { fd: 3 })
    });
    let mut freezer = shell(
        "freezer",
        "kill -STOP $(cat $D/web); sleep 0.5; kill -STOP $PPID; sleep 6; kill -CONT $PPID $(cat $D/web); \
         sleep 0.5; touch $D/thawed; exec sleep 1000",
    );
    freezer.command[2] = freezer.command[2].replace("$PPID", &std::process::id().to_string());
    let bench = Bench::start(vec![web, starting, after(freezer, &["web", "go"])]);
    until(|| (bench.view("web").state == ServiceState::Ready).then_some(())).await;
    std::fs::write(bench.file("web"), bench.pid("web").to_string()).unwrap();
    let pid = bench.pid("web");
    bench.handle.satisfied("go");
    until(|| bench.file("thawed").exists().then_some(())).await;
    until(|| (bench.view("starting").state == ServiceState::Ready).then_some(())).await;
    // Long enough for a probe that was asked across the freeze to be judged.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for view in bench.handle.services() {
        assert_eq!((view.state, view.restarts), (ServiceState::Ready, 0), "{view:?}");
    }
    assert_eq!(bench.pid("web"), pid);
    bench.handle.shut_down(PATIENCE).await;
}
