//! Without `/proc` services are started and ended all the same. A binary of its own: it takes `/proc` away from itself.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use moltinit::{
    config::{secret::Mask, service::Service},
    event::{Events, ServiceState},
    pid1::Spawner,
    supervise::{Environment, Handle, Supervisor},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::kill,
    unistd::{Pid, geteuid},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// In a mount namespace of this thread and those it starts.
fn take_proc_away() {
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !geteuid().is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    // What is mounted below it may keep it from being taken away; an empty directory over it does as well.
    if umount2("/proc", MntFlags::MNT_DETACH).is_err() {
        mount(Some("none"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    assert!(!Path::new("/proc/self").exists());
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look)
        .await
        .expect("it did not come to pass")
}

fn state(handle: &Handle) -> ServiceState {
    handle.services()[0].state
}

#[test]
fn services_are_ended_with_their_process_groups() {
    take_proc_away();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut service = Service::named("a");
        let script = "sh -c 'trap \"\" TERM; echo $$ >$D/deaf; while :; do sleep 1000; done' & exec sleep 1000";
        service.command = ["sh", "-c", script].map(str::to_owned).to_vec();
        service.stop.timeout = Duration::from_millis(500);
        let mut env: Environment = std::env::vars_os().collect();
        env.insert("D".into(), dir.path().into());
        let supervisor = Supervisor {
            services: vec![service],
            cares: HashMap::new(),
            env,
            spawner: Spawner::start().unwrap(),
            events: Events::channel().0,
            mask: Mask::default(),
        };
        let handle = supervisor.start();
        let file = dir.path().join("deaf");
        let deaf = until(|| fs::read_to_string(&file).ok()?.trim().parse().ok()).await;
        let deaf = Pid::from_raw(deaf);
        assert_eq!(state(&handle), ServiceState::Ready);
        tokio::time::timeout(PATIENCE, handle.restart("a"))
            .await
            .unwrap()
            .unwrap();
        assert!(
            kill(deaf, None).is_err(),
            "what was left was killed before the next start"
        );
        tokio::time::timeout(PATIENCE, handle.shut_down(PATIENCE))
            .await
            .unwrap();
        assert_eq!(state(&handle), ServiceState::Stopped);
        tokio::time::timeout(PATIENCE, handle.sweep(Duration::from_millis(100)))
            .await
            .unwrap();
    });
}
