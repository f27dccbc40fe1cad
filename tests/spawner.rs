//! The spawner and its reaper, with real processes. A binary of its own: the reaper takes the status of every child
//! of its process, so nothing here may use `std::process`.

use std::{ffi::OsString, io, os::unix::fs::PermissionsExt, time::Duration};

use moltinit::pid1::{Exit, Role, RunError, Spawn, SpawnError, Spawner, take_role};
use nix::sys::signal::{Signal, kill};

/// Generous: only a hang comes near it.
const PATIENCE: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Spawn {
    Spawn::new(["sh", "-c", script])
}

fn spawner() -> Spawner {
    take_role();
    Spawner::start().unwrap()
}

#[tokio::test]
async fn every_exit_is_told_to_whom_it_belongs() {
    let spawner = spawner();
    let mut children: Vec<_> = (0..=255)
        .map(|code| (code, spawner.spawn(shell(&format!("exit {code}"))).unwrap()))
        .collect();
    for (code, child) in &mut children {
        assert_eq!(child.wait().await, Exit::Code(*code));
        assert_eq!(child.wait().await, Exit::Code(*code), "and is told again");
    }
}

#[tokio::test]
async fn a_death_by_signal_is_told_as_one() {
    let spawner = spawner();
    let mut child = spawner.spawn(Spawn::new(["sleep", "1000"])).unwrap();
    kill(child.pid(), Signal::SIGKILL).unwrap();
    let exit = child.wait().await;
    assert_eq!(exit, Exit::Signal(9));
    assert_eq!(exit.status(), 137);
}

/// They have no names, and a reaper that knows signals by their names alone stumbles over the first who dies of one.
#[tokio::test]
async fn a_death_by_a_real_time_signal_is_told_and_holds_up_nobody() {
    let spawner = spawner();
    for signal in [34, 64] {
        let orphan = format!("(sh -c 'kill -{signal} $$' &); sleep 0.1; kill -{signal} $$");
        let mut child = spawner.spawn(shell(&orphan)).unwrap();
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap();
        assert_eq!((exit, exit.status()), (Exit::Signal(signal), 128 + signal));
        let mut after = spawner.spawn(shell("exit 5")).unwrap();
        assert_eq!(
            tokio::time::timeout(PATIENCE, after.wait()).await.unwrap(),
            Exit::Code(5)
        );
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_named_with_a_shells_exit_code() {
    let spawner = spawner();
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "echo no").unwrap();
    let lost = dir.path().join("lost");
    std::fs::write(&lost, "#!/nowhere/sh\n").unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (command, code) in [
        (OsString::from("no-such-command-anywhere"), 127),
        (dir.path().join("missing").into_os_string(), 127),
        (lost.into_os_string(), 127),
        (plain.into_os_string(), 126),
        (dir.path().as_os_str().to_owned(), 126),
    ] {
        let error = spawner.spawn(Spawn::new([&command])).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(&*command.to_string_lossy()), "{error}");
    }
}

#[tokio::test]
async fn a_script_without_a_first_line_runs_in_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "exit $1").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = spawner().spawn(Spawn::new([script.as_os_str(), "7".as_ref()])).unwrap();
    assert_eq!(child.wait().await, Exit::Code(7));
}

#[tokio::test]
async fn a_child_has_what_it_was_given_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let _ours = std::fs::File::create(dir.path().join("secret")).unwrap();
    let (mut read, write) = io::pipe().unwrap();
    let mut spawn = shell(
        "pwd -P; echo \"$A\"; cat; ls -l /proc/self/fd | grep -c secret; cat /proc/self/oom_score_adj; grep SigBlk /proc/self/status; echo extra >&7",
    );
    spawn.env.push(("A".into(), "b c".into()));
    spawn.cwd = Some(dir.path().to_owned());
    spawn.extra_fds = vec![(write.into(), 7)];
    spawn.oom_score_adj = Some(321);
    let output = spawner().run(spawn, PATIENCE).await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], dir.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(lines[1], "b c");
    assert_eq!(lines[2], "0", "a file that only we have open");
    assert_eq!(lines[3], "321");
    assert_eq!(lines[4].split_whitespace().last(), Some("0000000000000000"));
    let mut extra = String::new();
    io::Read::read_to_string(&mut read, &mut extra).unwrap();
    assert_eq!(extra, "extra\n");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_session() {
    let error = spawner()
        .run(shell("sleep 1000 & sleep 1000"), Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("`sh`"), "{error}");
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_is_killed() {
    let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
    let mut spawn = shell("echo started >&7; sleep 1000");
    spawn.extra_fds = vec![(write.into_blocking_fd().unwrap(), 7)];
    let spawner = spawner();
    let run = tokio::spawn(async move { spawner.run(spawn, PATIENCE).await });
    let mut line = [0; 8];
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut line).await.unwrap();
    run.abort();
    let end = tokio::io::AsyncReadExt::read(&mut read, &mut line);
    assert_eq!(
        tokio::time::timeout(PATIENCE, end).await.unwrap().unwrap(),
        0,
        "whoever held the pipe is gone"
    );
}

/// The kernel is made to give a pid again at once: who had it before must not be told of who has it now.
#[tokio::test]
async fn a_pid_that_is_used_again_is_another_process() {
    let spawner = spawner();
    let mut again = 0;
    for code in 0..100 {
        let mut first = spawner.spawn(shell(&format!("exit {code}"))).unwrap();
        let pid = first.pid();
        while kill(pid, None).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Only the privileged may.
        let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string());
        let mut second = spawner.spawn(shell(&format!("exit {}", code + 100))).unwrap();
        again += u32::from(second.pid() == pid);
        assert_eq!(second.wait().await, Exit::Code(code + 100));
        assert_eq!(first.wait().await, Exit::Code(code));
    }
    let may = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/sys/kernel/ns_last_pid");
    assert!(again > 0 || may.is_err(), "no pid was used again");
}

/// What this process does about itself is not what its children get.
#[tokio::test]
async fn a_child_is_as_likely_to_be_killed_for_memory_as_we_were() {
    let spawner = spawner();
    let before = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    std::fs::write("/proc/self/oom_score_adj", "345").unwrap();
    let output = spawner
        .run(shell("cat /proc/self/oom_score_adj"), PATIENCE)
        .await
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), before);
    // Only the privileged may go back.
    let _ = std::fs::write("/proc/self/oom_score_adj", before);
}

#[tokio::test]
async fn what_it_writes_is_bounded() {
    let output = spawner().run(shell("yes | head -c 3000000"), PATIENCE).await.unwrap();
    assert_eq!(output.exit, Exit::Code(0));
    assert_eq!(output.stdout.len(), 1 << 20);
}

#[tokio::test]
async fn a_zero_byte_is_refused() {
    let error = spawner().spawn(Spawn::new(["echo", "a\0b"])).unwrap_err();
    assert!(matches!(error, SpawnError::Fork(_)), "{error}");
}

/// Thousands of orphans and the services' own exits at the same time: none is lost, none taken for another's.
#[tokio::test]
async fn orphans_by_the_thousand_are_reaped_and_no_status_is_lost() {
    assert_ne!(take_role(), Role::Bystander);
    let spawner = spawner();
    let storm = "i=0; while [ $i -lt 500 ]; do (sleep 0.2 &) ; i=$((i+1)); done; exit 9";
    let mut storms: Vec<_> = (0..4).map(|_| spawner.spawn(shell(storm)).unwrap()).collect();
    for code in 0..100 {
        let mut child = spawner.spawn(shell(&format!("exit {code}"))).unwrap();
        assert_eq!(child.wait().await, Exit::Code(code));
    }
    for storm in &mut storms {
        assert_eq!(storm.wait().await, Exit::Code(9));
    }
    let zombies = || {
        let me = std::process::id().to_string();
        let children = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or_default();
            let mut fields = after.split_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(me.as_str())
        });
        children.count()
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while zombies() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} zombies are left", zombies());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
