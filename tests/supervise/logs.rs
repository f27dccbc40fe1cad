//! What services write, at any speed.

use futures_util::StreamExt;
use moltinit::{
    event::ServiceState,
    supervise::{Followed, Stream},
};
use tokio::time::timeout;

use super::bench::{Bench, PATIENCE, command, shell, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_streams_are_kept_and_followed_and_secrets_are_not() {
    let bench = Bench::start(vec![shell(
        "a",
        "echo one; echo token=hunter22 >&2; while ! [ -e $D/go ]; do sleep 0.02; done; printf 'caf\\303'; echo; exec sleep 1000",
    )]);
    until(|| (bench.handle.logs("a", 10).unwrap().len() == 2).then_some(())).await;
    let mut follow = bench.handle.follow("a", 10).unwrap();
    std::fs::write(bench.file("go"), "").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match timeout(PATIENCE, follow.next()).await.unwrap().unwrap() {
            Followed::Line(line) => seen.push((line.stream, line.text.clone())),
            missed => panic!("{missed:?}"),
        }
    }
    assert_eq!(seen.pop().unwrap(), (Stream::Stdout, "caf\u{fffd}".into()));
    seen.sort_by_key(|(_, text)| text.clone());
    assert_eq!(
        seen,
        [
            (Stream::Stdout, "one".into()),
            (Stream::Stderr, "token=[secret]".into())
        ]
    );
    bench.handle.shut_down(PATIENCE).await;
}

/// One floods its log without end, another writes a line of 50 MB: both live, others are served, memory is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_slows_nobody() {
    let bench = Bench::start(vec![
        command(
            "flood",
            &["yes", "the quick brown fox jumps over the lazy dog and does it again"],
        ),
        shell(
            "long",
            "head -c 50000000 /dev/zero | tr '\\0' x; sleep 0.3; echo; echo done; exec sleep 1000",
        ),
    ]);
    until(|| {
        let lines = bench.handle.logs("long", 1).unwrap();
        lines.first().filter(|line| line.text == "done").cloned()
    })
    .await;
    let flood = until(|| {
        let lines = bench.handle.logs("flood", usize::MAX).unwrap();
        let dropped = lines.iter().any(|line| line.text.contains("lines dropped"));
        dropped.then_some(lines)
    })
    .await;
    assert!(flood.len() <= 2_000);
    assert!(flood.iter().map(|line| line.text.len()).sum::<usize>() <= 1 << 20);
    for name in ["flood", "long"] {
        let view = bench.view(name);
        assert_eq!((view.state, view.restarts), (ServiceState::Ready, 0));
    }
    timeout(PATIENCE, bench.handle.stop("flood")).await.unwrap().unwrap();
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().is_empty());
}
