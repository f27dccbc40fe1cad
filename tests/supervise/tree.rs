//! Kill means the tree: whatever a service has started ends with it, however far it has gone.

use std::{fs, time::Duration};

use moltinit::event::ServiceState;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::bench::{Bench, PATIENCE, is_alive, ports::free_port, server, shell, until};

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap())
}

/// A child, one in a session of its own, one that is an orphan in a session of its own and deaf, and one that is that
/// with nothing left in its environment.
const SPREAD: &str = "sleep 1000 & echo $! >$D/child
    setsid sh -c 'echo $$ >$D/session; exec sleep 1000' &
    (setsid sh -c 'trap \"\" TERM; echo $$ >$D/orphan; exec sleep 1000' &)
    (setsid env -i D=$D SUPERVISE_TEST=$SUPERVISE_TEST sh -c 'trap \"\" TERM; echo $$ >$D/bare; exec sleep 1000' &)
    exec sleep 1000";

const ALL: [&str; 4] = ["child", "session", "orphan", "bare"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_ends_what_escaped() {
    let mut service = shell("spread", SPREAD);
    service.stop.timeout = Duration::from_millis(500);
    let bench = Bench::start(vec![service]);
    let mut pids = Vec::new();
    for name in ALL {
        pids.push(pid(&bench.written(name).await));
    }
    bench.handle.stop("spread").await.unwrap();
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    assert!(bench.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_leaves_is_ended_before_the_next_start() {
    let mut service = shell("spread", SPREAD);
    service.stop.timeout = Duration::from_millis(500);
    let mut bench = Bench::start(vec![service]);
    let main = bench.started("spread").await;
    let mut pids = Vec::new();
    for name in ALL {
        pids.push(pid(&bench.written(name).await));
    }
    for name in ALL {
        fs::remove_file(bench.file(name)).unwrap();
    }
    kill(main, Signal::SIGKILL).unwrap();
    bench.started("spread").await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().is_empty());
}

/// A daemon that serves a file system stays when the service that mounted it goes: others live on that mount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_systems_daemon_is_spared() {
    let mut bench = Bench::start(vec![shell(
        "mounter",
        "(setsid sh -c 'exec 9<>/dev/fuse; echo $$ >$D/daemon; exec sleep 1000' &); exec sleep 1000",
    )]);
    let main = bench.started("mounter").await;
    let daemon = pid(&bench.written("daemon").await);
    kill(main, Signal::SIGKILL).unwrap();
    bench.started("mounter").await;
    assert!(is_alive(daemon));
    bench.handle.shut_down(PATIENCE).await;
    assert!(is_alive(daemon), "until the sweep");
}

/// The port's holder has left the service's tree without a trace, as one left by an earlier supervisor has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_the_port_is_ended_before_the_start() {
    let port = free_port();
    let mut holder = server("holder", port);
    let script = holder.command.remove(2);
    let mut bench = Bench::start(vec![
        shell(
            "daemoniser",
            &format!("(setsid env -i D=$D sh -c 'echo $$ >$D/holder; exec python3 -c \"$0\" {port}' \"$SCRIPT\" &); exec sleep 1000"),
        ),
        super::bench::after(server("web", port), &["store"]),
    ]
    .into_iter()
    .map(|mut service| {
        service.env.insert("SCRIPT".into(), script.clone());
        service
    })
    .collect());
    let holder = pid(&bench.written("holder").await);
    until(|| std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
    bench.handle.satisfied("store");
    bench.state("web", ServiceState::Ready).await;
    assert!(!is_alive(holder));
    assert_eq!(bench.view("web").restarts, 0);
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().is_empty());
}
