//! A service that is alive and of no use is restarted; one that is well is left alone.

use std::time::Duration;

use moltinit::{
    config::service::{Check, Probe},
    event::{Event, ServiceState},
};
use nix::sys::signal::{Signal, kill};

use super::bench::{Bench, PATIENCE, command, is_alive, ports::free_port, server, shell, until};

/// Hurts a healthy server, and waits until another one is ready in its place.
async fn is_replaced(hurt: Signal, what_is_said: &str) {
    let mut bench = Bench::start(vec![server("web", free_port())]);
    let first = bench.started("web").await;
    bench.state("web", ServiceState::Ready).await;
    kill(first, hurt).unwrap();
    let why = bench
        .event(|event| match event {
            Event::ServiceUnhealthy { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await;
    assert!(why.contains(what_is_said), "{why}");
    let second = bench.started("web").await;
    assert_ne!(first, second);
    assert!(!is_alive(first));
    bench.state("web", ServiceState::Ready).await;
    assert_eq!(bench.view("web").restarts, 1);
    bench.handle.shut_down(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_is_replaced() {
    is_replaced(Signal::SIGSTOP, "no answer within").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_listener_is_gone_is_replaced() {
    is_replaced(Signal::SIGUSR1, "refused").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_accepts_and_never_answers_is_replaced() {
    is_replaced(Signal::SIGUSR2, "no answer within").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_ready_in_time_is_unhealthy() {
    let mut service = command("a", &["sleep", "1000"]);
    service.ready = Some(Probe {
        timeout: Duration::from_millis(300),
        ..Probe::ready(Check::Tcp {
            addr: format!("127.0.0.1:{}", free_port()),
        })
    });
    let mut bench = Bench::start(vec![service]);
    bench.state("a", ServiceState::Unhealthy).await;
    bench.started("a").await;
}

/// There are reasons not to be ready that no restart mends: a channel of the gateway's that is broken for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_alive_but_never_ready_is_left_alone_until_it_is_not_alive() {
    let mut service = shell("a", "exec sleep 1000");
    service.ready = Some(Probe {
        timeout: Duration::from_millis(300),
        ..Probe::ready(Check::Tcp {
            addr: format!("127.0.0.1:{}", free_port()),
        })
    });
    service.live = Some(Probe {
        every: Duration::from_millis(20),
        failures: 1,
        ..Probe::live(Check::Command {
            argv: ["sh", "-c", "echo >>$D/asked; ! [ -e $D/dead ]"]
                .map(str::to_owned)
                .to_vec(),
        })
    });
    let mut bench = Bench::start(vec![service]);
    let first = bench.started("a").await;
    let error = bench.handle.start("a").await.unwrap_err();
    let why = error.to_string();
    assert!(why.starts_with("a is not up: running: not ready within 0.3 s"), "{why}");
    bench.handle.until_up("a").await;
    let asked = bench.file("asked");
    until(|| (std::fs::read_to_string(&asked).ok()?.lines().count() > 3).then_some(())).await;
    assert_eq!(bench.pid("a"), first, "it is not ready, and that is all");
    std::fs::write(bench.file("dead"), "").unwrap();
    bench.state("a", ServiceState::Unhealthy).await;
    assert_ne!(bench.started("a").await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_ports_are_probes_too() {
    let port = free_port();
    let mut by_command = shell("by-command", "sleep 0.2; touch $D/ready; sleep 1000");
    by_command.ready = Some(Probe::ready(Check::Command {
        argv: ["sh", "-c", "test -e $D/ready"].map(str::to_owned).to_vec(),
    }));
    by_command.live = Some(Probe {
        every: Duration::from_millis(50),
        timeout: Duration::from_millis(200),
        failures: 1,
        check: Check::Command {
            argv: ["sh", "-c", "if [ -e $D/hang ]; then sleep 1000; fi"]
                .map(str::to_owned)
                .to_vec(),
        },
    });
    let mut by_port = server("by-port", port);
    by_port.ready = Some(Probe::ready(Check::Tcp {
        addr: format!("127.0.0.1:{port}"),
    }));
    let mut bench = Bench::start(vec![by_command, by_port]);
    bench.handle.start("by-port").await.unwrap();
    bench.handle.start("by-command").await.unwrap();
    assert!(bench.file("ready").exists());
    std::fs::write(bench.file("hang"), "").unwrap();
    bench.state("by-command", ServiceState::Unhealthy).await;
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().is_empty(), "no probe is left either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_memory_is_an_orderly_restart() {
    let script = "import sys, time, signal\n\
                  signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + '/orderly', 'w').write('yes\\n'), sys.exit(0)))\n\
                  held = bytearray(300_000_000)\n\
                  held[::4096] = bytes(len(held[::4096])).replace(b'\\0', b'x')\n\
                  time.sleep(1000)\n";
    let mut service = shell("big", "exec python3 -c \"$SCRIPT\" $D");
    service.env.insert("SCRIPT".into(), script.into());
    service.memory_max = Some(200 << 20);
    let mut bench = Bench::start(vec![service, command("small", &["sleep", "1000"])]);
    let first = bench.started("big").await;
    let (used, limit) = bench
        .event(|event| match event {
            Event::MemoryPressure { service, used, limit } if service.as_deref() == Some("big") => {
                Some((*used, *limit))
            }
            _ => None,
        })
        .await;
    assert!(used > limit && limit == 200 << 20);
    let second = bench.started("big").await;
    assert_ne!(first, second);
    assert_eq!(bench.written("orderly").await, "yes\n");
    assert_eq!(bench.view("small").restarts, 0);
    bench.handle.shut_down(PATIENCE).await;
}
