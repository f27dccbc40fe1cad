//! A live restore beside what else goes on: start scripts that come in the middle of it, and the other services.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    attach::Script,
    support::{
        PATIENCE,
        container::{Container, Disk},
        eventually, http,
    },
};

/// A live restore that somebody waits for. Killed when this is dropped.
struct Restore(Child);

impl Restore {
    fn begin(disk: &Disk, id: &str) -> Restore {
        let mut command = disk.command(&["restore", id, "--live"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        Restore(command.spawn().unwrap())
    }

    fn finish(self, container: &Container) {
        let (code, said) = self.end(container);
        assert_eq!(code, Some(0), "{said}; {container}");
    }

    fn fail(self, container: &Container) -> String {
        let (code, said) = self.end(container);
        assert_eq!(code, Some(1), "{said}; {container}");
        said
    }

    fn end(mut self, container: &Container) -> (Option<i32>, String) {
        let ended = eventually(format_args!("the restore; {container}"), PATIENCE, || {
            self.0.try_wait().unwrap()
        });
        let mut said = String::new();
        let stderr = self.0.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (ended.code(), said)
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// By the control socket, where no token counts.
fn json(disk: &Disk, args: &[&str]) -> Value {
    let output = disk.command(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn status(disk: &Disk) -> Value {
    json(disk, &["status"])
}

fn snapshot(disk: &Disk) -> String {
    json(disk, &["snapshot", "now"])["id"].as_str().unwrap().to_owned()
}

fn until(container: &Container, disk: &Disk, name: &str, state: &str) {
    eventually(format_args!("{name} {state}; {container}"), PATIENCE, || {
        (status(disk)["services"][name]["state"] == state).then_some(())
    });
}

/// A container with that file, once it is ready.
fn start(disk: &Disk, config: &str) -> Container {
    start_by(&[], disk, config)
}

fn start_by(by: &[&str], disk: &Disk, config: &str) -> Container {
    let file = disk.path("moltinit.toml");
    fs::write(&file, config).unwrap();
    let env = [("MOLTINIT_CONFIG", file.to_str().unwrap())];
    let container = Container::start_by(by, disk, &disk.path("store"), &env, &["run"]);
    container.wait_for("/readyz", PATIENCE);
    container
}

/// Who comes while the gateway ends, is held or starts again is heard; the gateway begins with what was brought, and on
/// what was restored.
#[test]
fn a_script_that_comes_during_a_live_restore_is_heard_and_starts_nothing_too_early() {
    let disk = Disk::new();
    let [may_end, may_rest, may_start, starts, up] =
        ["may-end", "may-rest", "may-start", "starts", "up"].map(|name| disk.path(name));
    // The gateway ends, and is ready, only when it may; each start says with which key and on what before it can be ready. Of the same state
    // is another service that ends only when it may: until then the gateway is held.
    let config = format!(
        r#"
        [[service]]
        name = "gateway"
        command = ["sh", "-c", '''
            echo "$ANTHROPIC_API_KEY $(cat $HOME/.openclaw/note)" >>{starts}
            trap 'until [ -e {may_end} ]; do sleep 0.05; done; rm -f {up}; exit 0' TERM
            : >{up}
            while :; do sleep 0.05; done''']
        ready = {{ command = ["test", "-e", "{may_start}", "-a", "-e", "{up}"] }}
        live = {{ command = ["true"] }}

        [[service]]
        name = "notes"
        command = ["sh", "-c", '''
            trap 'until [ -e {may_rest} ]; do sleep 0.05; done; exit 0' TERM
            while :; do sleep 0.05; done''']
        after = ["store"]
        stop = {{ timeout = "5m" }}
        "#,
        starts = starts.display(),
        up = up.display(),
        may_end = may_end.display(),
        may_rest = may_rest.display(),
        may_start = may_start.display(),
    );
    fs::create_dir_all(disk.state()).unwrap();
    let note = disk.state().join("note");
    fs::write(&note, "first").unwrap();
    for gate in [&may_end, &may_rest, &may_start] {
        fs::write(gate, "").unwrap();
    }
    let container = start(&disk, &config);
    let started = || -> Vec<String> {
        let starts = fs::read_to_string(&starts).unwrap_or_default();
        starts.lines().map(str::to_owned).collect()
    };

    let mut scripts = Vec::new();
    for (state, gate) in [("stopping", &may_end), ("held", &may_rest), ("running", &may_start)] {
        let old = format!("before-{state}");
        fs::write(&note, &old).unwrap();
        let id = snapshot(&disk);
        fs::write(&note, "new").unwrap();
        fs::remove_file(gate).unwrap();
        let before = started().len();
        let restore = Restore::begin(&disk, &id);
        until(&container, &disk, "gateway", state);

        let [key, token] = ["key", "token"].map(|what| format!("{what}-of-{state}-0123456789"));
        let brought = [
            ("ANTHROPIC_API_KEY", key.as_str()),
            ("MOLTINIT_ADMIN_TOKEN", token.as_str()),
        ];
        scripts.push(Script::start(&disk, &brought));
        eventually(format_args!("the script's token; {container}"), PATIENCE, || {
            let status = http::get(container.port, "/status", Some(&token)).ok()?;
            (status.status == 200).then_some(())
        });
        let with_it = format!("{key} {old}");
        if state == "running" {
            // It is up on what was restored, and begins anew for the key.
            eventually(format_args!("{with_it}; {container}"), PATIENCE, || {
                (started().last() == Some(&with_it)).then_some(())
            });
        } else {
            assert_eq!(started().len(), before, "{container}");
        }
        fs::write(gate, "").unwrap();
        restore.finish(&container);
        assert_eq!(fs::read_to_string(&note).unwrap(), old);
        until(&container, &disk, "gateway", "ready");
        let since = started().split_off(before);
        assert_eq!(since.last(), Some(&with_it), "{container}");
        assert!(since.iter().all(|start| start.ends_with(&old)), "{since:?}");
        assert!(scripts.iter_mut().all(Script::is_there), "a restore is not their end");
    }
    drop(scripts);
    assert_eq!(status(&disk)["services"]["gateway"]["restarts"], 0);
}

/// What is of the state works on what was restored from then on; what is not goes on, and what was stopped stays so.
#[test]
fn services_of_the_state_begin_anew_on_what_is_restored_and_others_go_on() {
    let disk = Disk::new();
    let config = r#"
        [[service]]
        name = "gateway"
        command = ["sleep", "100000"]
        ready = { command = ["true"] }
        live = { command = ["true"] }

        [[service]]
        name = "beside"
        command = ["sleep", "100000"]

        [[service]]
        name = "diary"
        command = ["sh", "-c", "exec >>$HOME/.openclaw/diary; while echo line; do sleep 0.05; done"]
        after = ["store"]

        [[service]]
        name = "reader"
        command = ["sh", "-c", "cat $HOME/.openclaw/note; exec sleep 100000"]
        after = ["diary"]

        [[service]]
        name = "off"
        command = ["sleep", "100000"]
        after = ["store"]
    "#;
    fs::create_dir_all(disk.state()).unwrap();
    let container = start(&disk, config);
    let [note, diary] = ["note", "diary"].map(|name| disk.state().join(name));
    fs::write(&note, "what was restored\n").unwrap();
    let id = snapshot(&disk);
    fs::write(&note, "what came later\n").unwrap();
    assert!(disk.command(&["stop", "off", "--wait"]).status().unwrap().success());
    let pids = || ["gateway", "beside", "diary", "reader"].map(|name| status(&disk)["services"][name]["pid"].as_i64());
    let before = pids();
    assert!(before.iter().all(Option::is_some), "{container}");

    Restore::begin(&disk, &id).finish(&container);
    eventually(format_args!("what it reads; {container}"), PATIENCE, || {
        container.log().contains("what was restored").then_some(())
    });
    let after = pids();
    assert_eq!(after[1], before[1], "what is not of the state goes on");
    for of_state in [0, 2, 3] {
        assert_ne!(after[of_state], before[of_state]);
    }
    assert_eq!(status(&disk)["services"]["off"]["state"], "stopped");
    // What is written from now on is where the next snapshot finds it.
    let length = || fs::metadata(&diary).map_or(0, |file| file.len());
    let now = length();
    eventually(format_args!("a longer diary; {container}"), PATIENCE, || {
        (length() > now).then_some(())
    });
}

/// A gateway that is ready on a note that is good. On another it is up, and neither ready nor given up before it may be.
fn particular(disk: &Disk) -> String {
    format!(
        r#"
        [[service]]
        name = "gateway"
        command = ["sh", "-c", '''
            grep -q good $HOME/.openclaw/note && exec sleep 100000
            until [ -e {} ]; do sleep 0.05; done; exit 1''']
        ready = {{ command = ["sh", "-c", "grep -q good $HOME/.openclaw/note"] }}
        live = {{ command = ["true"] }}
        crash_loop = {{ restarts = 2, within = "2m" }}
        "#,
        disk.path("may-fail").display()
    )
}

/// A live restore to a note that is bad, in place and awaited.
struct Trial {
    container: Container,
    restore: Restore,
    state: PathBuf,
}

impl Trial {
    fn begin(by: &[&str], disk: &Disk) -> Trial {
        let container = start_by(by, disk, &particular(disk));
        // It may have another table of mounts than this test.
        let root = Path::new("/proc").join(container.init.to_string()).join("root");
        let state = root.join(disk.state().strip_prefix("/").unwrap());
        let note = state.join("note");
        fs::write(&note, "bad").unwrap();
        let bad = snapshot(disk);
        fs::write(&note, "good").unwrap();
        fs::write(state.join("precious"), "precious").unwrap();
        let restore = Restore::begin(disk, &bad);
        eventually(format_args!("a bad note; {container}"), PATIENCE, || {
            (fs::read_to_string(&note).is_ok_and(|text| text == "bad")).then_some(())
        });
        until(&container, disk, "gateway", "running");
        // Who asks for a commit is told why there is none.
        let asked = disk.command(&["snapshot", "now"]).output().unwrap();
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(said.contains("a restore is under way"), "{said}");
        Trial {
            container,
            restore,
            state,
        }
    }

    /// Lets the gateway fail; the state from before is back, and worked on.
    fn fail(self, disk: &Disk) -> Container {
        fs::write(disk.path("may-fail"), "").unwrap();
        let said = self.restore.fail(&self.container);
        assert!(said.contains("the state from before is back"), "{said}");
        until(&self.container, disk, "gateway", "ready");
        assert_before(&self.state);
        self.container
    }
}

fn prepared() -> Disk {
    let disk = Disk::new();
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "good").unwrap();
    disk
}

fn assert_before(state: &Path) {
    let read = |name: &str| fs::read_to_string(state.join(name)).unwrap_or_default();
    assert_eq!([read("note"), read("precious")], ["good", "precious"]);
}

/// Both on the disk that was left, and in a fresh container.
fn assert_boots_on_before(disk: &Disk) {
    for is_lost in [false, true] {
        if is_lost {
            fs::remove_dir_all(disk.path("home")).unwrap();
        }
        let container = start(disk, &particular(disk));
        assert_before(&disk.state());
        container.kill();
    }
}

#[test]
fn a_live_restore_that_does_not_come_up_is_undone_without_the_store() {
    let disk = prepared();
    let trial = Trial::begin(&[], &disk);
    let [store, away] = ["store", "away"].map(|name| disk.path(name));
    fs::rename(&store, &away).unwrap();
    let container = trial.fail(&disk);
    fs::rename(&away, &store).unwrap();
    container.kill();
    assert_boots_on_before(&disk);
}

#[test]
fn a_live_restore_that_does_not_come_up_is_undone_where_there_is_room_for_two_states() {
    let disk = Disk::new();
    let mounted = format!(
        "mount -t tmpfs -o size=40m none {home} && mkdir {state} && printf good >{state}/note \
         && head -c 15000000 /dev/urandom >{state}/large && exec \"$0\" \"$@\"",
        home = disk.path("home").display(),
        state = disk.state().display(),
    );
    let by = ["unshare", "--mount", "--propagation=private", "sh", "-c", &mounted];
    let container = Trial::begin(&by, &disk).fail(&disk);
    container.kill();
    assert_boots_on_before(&disk);
}

#[test]
fn a_container_that_is_killed_while_a_live_restore_is_tried_goes_on_with_the_state_from_before() {
    let disk = prepared();
    Trial::begin(&[], &disk).container.kill();
    assert_boots_on_before(&disk);
}

#[test]
fn a_container_that_is_stopped_while_a_live_restore_is_tried_goes_on_with_the_state_from_before() {
    let disk = prepared();
    let Trial {
        mut container, restore, ..
    } = Trial::begin(&[], &disk);
    container.signal(Signal::SIGTERM);
    assert!(container.wait(PATIENCE).success(), "{container}");
    let said = restore.fail(&container);
    assert!(
        said.contains("the next boot goes on with the state from before"),
        "{said}"
    );
    assert_boots_on_before(&disk);
}
