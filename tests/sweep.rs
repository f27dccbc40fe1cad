//! At the very end nothing is left running. A binary of its own: a sweep ends every process below this one.

#[path = "supervise/bench.rs"]
#[allow(dead_code)]
mod bench;

use std::time::Duration;

use moltinit::pid1::{Spawn, Spawner};

use bench::{Bench, PATIENCE, shell, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_the_sweep() {
    let bench = Bench::start(vec![shell("b", "exec sleep 1000")]);
    // Left by a command that is no service: without a parent, a session or an environment to tell whose, and deaf.
    let script = "for n in 1 2 3; do
            (setsid env -i D=$D SUPERVISE_TEST=$SUPERVISE_TEST sh -c \
                'trap \"\" TERM; echo up >>$D/up; while :; do sleep 1000; done' >/dev/null 2>&1 &)
        done";
    let mut command = Spawn::new(["sh", "-c", script]);
    command.env.push(("D".into(), bench.dir.path().into()));
    command.env.push(("SUPERVISE_TEST".into(), bench.mark.clone().into()));
    Spawner::start().unwrap().run(command, PATIENCE).await.unwrap();
    until(|| {
        let up = std::fs::read_to_string(bench.file("up")).unwrap_or_default();
        (up.lines().count() == 3).then_some(())
    })
    .await;
    bench.handle.shut_down(PATIENCE).await;
    assert!(bench.left().len() >= 3, "they are nobody's");
    bench.handle.sweep(Duration::from_millis(300)).await;
    assert!(bench.left().is_empty());
    let me = std::process::id().to_string();
    let children = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1))
            .map(str::to_owned);
        parent.as_deref() == Some(me.as_str()) && !stat.contains(") Z ")
    });
    assert_eq!(children.count(), 0);
}
