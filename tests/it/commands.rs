//! The commands, against a running supervisor and without one.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    process::{Child, Command, Output, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    container::{Container, Disk, commit, stand_in, with_gateway},
    eventually,
};

fn run(disk: &Disk, args: &[&str]) -> Output {
    let output = disk.command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    output
}

fn text(disk: &Disk, args: &[&str]) -> String {
    String::from_utf8(run(disk, args).stdout).unwrap()
}

fn json(disk: &Disk, args: &[&str]) -> Value {
    serde_json::from_slice(&run(disk, &[args, &["--json"]].concat()).stdout).unwrap()
}

#[test]
fn services_are_shown_and_told() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    assert_eq!(json(&disk, &["status"])["ready"], true);
    assert!(text(&disk, &["status"]).contains("gateway"));
    let pid = || json(&disk, &["status"])["services"]["gateway"]["pid"].clone();
    let before = pid();
    run(&disk, &["restart", "gateway", "--wait"]);
    assert_ne!(pid(), before);
    run(&disk, &["stop", "gateway", "--wait"]);
    assert_eq!(json(&disk, &["status"])["services"]["gateway"]["state"], "stopped");
    run(&disk, &["start", "gateway", "--wait"]);
    run(&disk, &["logs", "gateway", "-n", "5"]);
    let unknown = disk.command(&["restart", "gatevay"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("gateway"),
        "the nearest name is offered"
    );
}

/// Ends what it follows for ever.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Running {
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_end_of_a_pipe_is_the_end_and_no_failure() {
    let disk = Disk::new();
    let container = with_gateway(&disk, &disk.path("store"), r#"["yes", "a line"]"#);
    container.wait_for("/readyz", PATIENCE);
    for args in [
        &["logs", "gateway", "-f"][..],
        &["logs", "-n", "10000"],
        &["status"],
        &["doctor"],
        &["config", "show"],
    ] {
        let mut running = Running::start(disk.command(args));
        // As `head` does when it has seen enough; before a word is said, for the commands that say little.
        let mut out = BufReader::new(running.0.stdout.take().unwrap());
        if args[0] == "logs" {
            out.read_line(&mut String::new()).unwrap();
        }
        drop(out);
        let code = eventually(args.join(" "), PATIENCE, || running.0.try_wait().unwrap()).code();
        let mut said = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(code == Some(0) && said.is_empty(), "{args:?}: {code:?} {said}");
    }
}

#[test]
fn a_log_is_followed_across_a_restart_and_what_is_missed_is_said() {
    let disk = Disk::new();
    let line = |text: &str| {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(disk.path("lines"))
            .unwrap();
        writeln!(file, "{text}").unwrap();
    };
    line("first");
    let tail = format!(r#"["tail", "-n", "1", "-f", "{}"]"#, disk.path("lines").display());
    let container = with_gateway(&disk, &disk.path("store"), &tail);
    container.wait_for("/readyz", PATIENCE);
    let mut running = Running::start(disk.command(&["logs", "gateway", "-f"]));
    let mut out = BufReader::new(running.0.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut until = |text: &str| {
        out.find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no {text}"))
    };
    until("first");
    line("second");
    until("second");
    run(&disk, &["restart", "gateway", "--wait"]);
    until("second");
    line("third");
    until("third");
    // Far more at once than a slow reader keeps up with: it reads nothing until all of it is written.
    let many: String = (0..400_000)
        .map(|number| format!("number {number} of many\n"))
        .collect();
    fs::File::options()
        .append(true)
        .open(disk.path("lines"))
        .unwrap()
        .write_all(many.as_bytes())
        .unwrap();
    eventually("the last of many", PATIENCE, || {
        text(&disk, &["logs", "gateway", "-n", "1"])
            .contains("number 399999 of many")
            .then_some(())
    });
    until(" lines missed]");
    until("number 399999 of many");
}

#[test]
fn why_a_command_cannot_be_done_is_said_by_its_code() {
    let disk = Disk::new();
    let code = |args: &[&str], said: &str| {
        let output = disk.command(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{args:?}: {error}");
        output.status.code()
    };
    assert_eq!(code(&["status"], "no moltinit is running"), Some(1));
    // A store that is required and not there.
    let store = disk.path("store");
    fs::write(&store, "no directory").unwrap();
    let container = stand_in(&disk, &store);
    container.wait_for("/healthz", PATIENCE);
    assert_eq!(code(&["snapshot", "now"], "the store is not there"), Some(69));
    let id = format!("{}-1", ulid::Ulid::nil());
    let restore = container.post(&format!("/snapshots/{id}/restore")).unwrap().json();
    assert_eq!(restore["type"], "urn:moltinit:problem:store", "{restore}");

    container.signal(Signal::SIGSTOP);
    assert_eq!(code(&["status"], "does not answer"), Some(1));
    assert_eq!(code(&["snapshot", "now"], "does not answer"), Some(1));
    let output = disk.command(&["doctor"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("supervisor") && said.contains("does not answer"),
        "{said}"
    );
    container.signal(Signal::SIGCONT);

    // One of another user's: a directory that this one may not even look into.
    fs::create_dir_all(disk.path("other")).unwrap();
    drop(UnixListener::bind(disk.path("other/control.sock")).unwrap());
    let mut as_nobody = Command::new("setpriv");
    let chmod = |path: &str, mode: &str| {
        assert!(
            Command::new("chmod")
                .arg(mode)
                .arg(disk.path(path))
                .status()
                .unwrap()
                .success()
        );
    };
    chmod(".", "755");
    chmod("other", "700");
    let output = as_nobody
        .args(["--reuid=65534", "--clear-groups", crate::support::MOLTINIT, "status"])
        .env_clear()
        .env("MOLTINIT_RUN_DIR", disk.path("other"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("may not be opened by this user"), "{said}");
}

#[test]
fn an_examination_is_a_document_too() {
    let disk = Disk::new();
    fs::create_dir_all(disk.path("store")).unwrap();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    let output = disk.command(&["doctor", "--json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let of = |check: &str| findings.iter().find(|finding| finding["check"] == check).unwrap();
    assert_eq!(of("supervisor")["verdict"], "fine");
    assert_eq!(of("store")["verdict"], "fine");
    assert!(of("gateway")["said"].is_string());
}

#[test]
fn the_history_is_listed_shown_compared_verified_and_restored() {
    let disk = Disk::new();
    let container = stand_in(&disk, &disk.path("store"));
    container.wait_for("/readyz", PATIENCE);
    let note = disk.state().join("note");
    fs::write(&note, "one").unwrap();
    let one = json(&disk, &["snapshot", "now"])["id"].as_str().unwrap().to_owned();
    fs::write(&note, "two").unwrap();
    fs::write(disk.state().join("more"), "").unwrap();
    let two = json(&disk, &["snapshot", "now"])["id"].as_str().unwrap().to_owned();

    let listed = json(&disk, &["snapshot", "list"]);
    let ids: Vec<&str> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|meta| meta["id"].as_str())
        .collect();
    assert!(ids.contains(&one.as_str()) && ids.contains(&two.as_str()));
    assert!(text(&disk, &["snapshot", "list"]).contains(&two));
    assert!(text(&disk, &["snapshot", "show", &one]).contains("state/note"));
    let changes = text(&disk, &["snapshot", "diff", &one, &two]);
    assert!(
        changes.contains("M  state/note") && changes.contains("+  state/more"),
        "{changes}"
    );
    assert!(text(&disk, &["snapshot", "verify", "--all"]).contains(" 0 flaw"));
    run(&disk, &["snapshot", "prune"]);

    let time = |id: &str| {
        let of = listed["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .find(|meta| meta["id"] == id);
        of.unwrap()["time"].as_str().unwrap().to_owned()
    };
    for (at, content) in [(&one, "one"), (&two, "two")] {
        let to = disk.path(&format!("at-{content}"));
        run(&disk, &["restore", "--at", &time(at), "--to", to.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), content);
    }
    let early = disk
        .command(&["snapshot", "show", "--at", "2020-01-01T00:00:00Z"])
        .output()
        .unwrap();
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("no snapshot from 2020"));

    let to = disk.path("restored");
    let unknown = format!("{}-00009999", one.split('-').next().unwrap());
    let none = disk
        .command(&["restore", &unknown, "--to", to.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains(&format!("no snapshot {unknown}")));
    run(&disk, &["restore", &one, "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), "one");
    let again = disk
        .command(&["restore", "--to", to.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));

    run(&disk, &["restore", &one, "--live"]);
    assert_eq!(fs::read_to_string(&note).unwrap(), "one");
    fs::write(&note, "three").unwrap();
    let three = json(&disk, &["snapshot", "now"]);
    assert_ne!(
        three["id"].as_str().unwrap().split('-').next(),
        two.split('-').next(),
        "a branch of its own"
    );
    assert_eq!(json(&disk, &["status"])["ready"], true);
}

#[test]
fn a_live_restore_holds_whatever_is_killed_after_it_and_one_that_does_not_come_up_is_undone() {
    let disk = Disk::new();
    let store = disk.path("store");
    // A gateway that does not start on a bad note, and is not ready in the moment that it takes to see it.
    let file = disk.path("moltinit.toml");
    let gateway = r#"
        [[service]]
        name = "gateway"
        command = ["sh", "-c", "grep -q bad $HOME/.openclaw/note && exit 1; exec sleep 100000"]
        ready = { command = ["sh", "-c", "! grep -q bad $HOME/.openclaw/note"] }
        live = { command = ["true"] }
        crash_loop = { restarts = 2, within = "2m" }
    "#;
    fs::write(&file, gateway).unwrap();
    let boot = |disk: &Disk| {
        let container = Container::start(disk, &store, &[("MOLTINIT_CONFIG", file.to_str().unwrap())], &["run"]);
        container.wait_for("/readyz", PATIENCE);
        container
    };
    let container = boot(&disk);
    let note = disk.state().join("note");
    fs::create_dir_all(disk.state()).unwrap();
    let [good, bad, newest] = ["good", "bad", "newest"].map(|text| {
        fs::write(&note, text).unwrap();
        commit(&container)
    });

    let undone = disk.command(&["restore", &bad, "--live"]).output().unwrap();
    assert_eq!(undone.status.code(), Some(1), "{undone:?}");
    let said = String::from_utf8_lossy(&undone.stderr).into_owned();
    assert!(said.contains("the state from before is back"), "{said}");
    assert_eq!(fs::read_to_string(&note).unwrap(), "newest");
    container.wait_for("/readyz", PATIENCE);
    container.kill();

    // What was undone is undone for the next container too.
    fs::remove_dir_all(disk.path("home")).unwrap();
    let container = boot(&disk);
    assert_eq!(fs::read_to_string(&note).unwrap(), "newest");
    run(&disk, &["restore", &good, "--live"]);
    container.kill();
    fs::remove_dir_all(disk.path("home")).unwrap();
    let _container = boot(&disk);
    assert_eq!(fs::read_to_string(&note).unwrap(), "good");
    let listed = json(&disk, &["snapshot", "list"]);
    let kept = |id: &str| {
        listed["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .any(|meta| meta["id"] == id)
    };
    assert!(kept(&newest) && kept(&bad), "{listed}");
}
