//! Memory that runs out for real, in a memory cgroup of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{
    PATIENCE,
    container::{Container, Disk, event, gateway},
    eventually,
};

/// So little that it is soon taken, and enough for moltinit.
const LIMIT: &str = "100663296";

/// A memory cgroup with a limit; gone when this is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where none may be made.
    fn new() -> Option<Cgroup> {
        let mounted = Path::new("/sys/fs/cgroup");
        let (parent, limit) = if mounted.join("cgroup.controllers").exists() {
            // Of the children only; refused where it is not ours to decide.
            let _ = fs::write(mounted.join("cgroup.subtree_control"), "+memory");
            (mounted.to_owned(), "memory.max")
        } else {
            let own = fs::read_to_string("/proc/self/cgroup").ok()?;
            let own = own.lines().find_map(|line| line.split_once(":memory:/"))?.1.to_owned();
            (mounted.join("memory").join(own), "memory.limit_in_bytes")
        };
        let cgroup = Cgroup(parent.join(format!("moltinit-test-{}", std::process::id())));
        fs::create_dir(&cgroup.0).ok()?;
        fs::write(cgroup.0.join(limit), LIMIT).ok()?;
        Some(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Those who were killed leave it only by and by.
        eventually("an empty cgroup", PATIENCE, || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_gateway_that_takes_all_memory_is_killed_before_pid_1_and_that_is_said() {
    let Some(cgroup) = Cgroup::new() else {
        eprintln!("skipped: no memory cgroup may be made here");
        return;
    };
    let disk = Disk::new();
    let gateway = gateway(&disk, r#"["tail", "/dev/zero"]"#, "");
    let env: Vec<(&str, &str)> = gateway.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let enter = [
        "sh",
        "-c",
        "echo 0 >\"$0\"/cgroup.procs && exec \"$@\"",
        cgroup.0.to_str().unwrap(),
    ];
    let container = Container::start_by(&enter, &disk, &disk.path("store"), &env, &["run"]);
    let exited = event(&container, "service.exited");
    assert_eq!(
        (&exited["service"], &exited["oom"]),
        (&"gateway".into(), &true.into()),
        "{exited}"
    );
    // Killed again and again, PID 1 is still there, and says why the gateway is not.
    let why = eventually(format_args!("the reason; log: {container}"), PATIENCE, || {
        let service = container.status()["services"]["gateway"].clone();
        (service["last_exit"]["oom"] == true).then_some(service)
    });
    assert!(why["restarts"].as_u64().is_some(), "{why}");
}
