//! What is wrong with the surroundings: one clear error or event that names the thing and what to do, the documented
//! exit code, and nothing lost.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
};
use serde_json::{Value, json};

use crate::support::{
    MOLTINIT, PATIENCE,
    container::{Container, Disk, commit, event, stand_in, with_gateway, with_gateway_and},
    eventually,
};

/// `moltinit ARGS…` outside a container, with that disk.
fn moltinit(disk: &Disk, env: &[(&str, &str)], args: &[&str]) -> Output {
    let home = disk.path("home");
    fs::create_dir_all(&home).unwrap();
    Command::new(MOLTINIT)
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home)
        .env("MOLTINIT_STORE", disk.path("store"))
        .env("MOLTINIT_DATA_DIR", disk.path("data"))
        .env("MOLTINIT_RUN_DIR", disk.path("run"))
        .env("MOLTINIT_HTTP_ADDR", "127.0.0.1:0")
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_problem_of_the_configuration_is_listed_at_once() {
    let disk = Disk::new();
    let file = disk.path("bad.toml");
    fs::write(
        &file,
        "stor = \"/a\"\nstore_wait = \"soon\"\n[[service]]\nname = \"gateway\"\nafter = [\"nobody\"]\n",
    )
    .unwrap();
    let env = [
        ("MOLTINIT_CONFIG", file.to_str().unwrap()),
        ("MOLTINIT_SNAPSHOT_QUITE", "1s"),
    ];
    for args in [&["run"][..], &["config", "check"], &[]] {
        let output = moltinit(&disk, &env, args);
        assert_eq!(output.status.code(), Some(78), "{}", said(&output));
        for expected in [
            "stor",
            "`store`",
            "store_wait",
            "soon",
            "MOLTINIT_SNAPSHOT_QUITE",
            "MOLTINIT_SNAPSHOT_QUIET",
            "nobody",
        ] {
            assert!(said(&output).contains(expected), "{expected} in {}", said(&output));
        }
    }
    assert!(
        !disk.path("store").exists() && !disk.path("data").exists(),
        "nothing was started"
    );
}

/// What is wrong with what the gateway is given is said by the name of its variable, and nothing is started.
#[test]
fn a_bad_token_or_provider_of_the_gateways_is_named_and_nothing_is_started() {
    let disk = Disk::new();
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("OPENCLAW_GATEWAY_TOKEN", "")], "OPENCLAW_GATEWAY_TOKEN: is empty"),
        (&[("MOLTBOT_GATEWAY_TOKEN", "")], "MOLTBOT_GATEWAY_TOKEN: is empty"),
        (
            &[("OPENCLAW_GATEWAY_TOKEN", "my canary")],
            "OPENCLAW_GATEWAY_TOKEN: holds a space",
        ),
        (
            &[("OPENCLAW_GATEWAY_TOKEN", "canary\nline")],
            "OPENCLAW_GATEWAY_TOKEN: holds a space or a line break",
        ),
        (
            &[
                ("CLOUDFLARE_AI_GATEWAY_API_KEY", "canary"),
                ("CF_AI_GATEWAY_GATEWAY_ID", "g"),
            ],
            "CF_AI_GATEWAY_ACCOUNT_ID: must be set",
        ),
        (&[("AI_GATEWAY_API_KEY", "canary")], "AI_GATEWAY_BASE_URL: must be set"),
        (
            &[("ANTHROPIC_API_KEY", "canary"), ("ANTHROPIC_BASE_URL", "proxy")],
            "ANTHROPIC_BASE_URL: is not an http(s) URL",
        ),
        (&[("SLACK_BOT_TOKEN", "canary")], "SLACK_APP_TOKEN: must be set"),
    ];
    for (env, expected) in cases {
        for args in [&["run"][..], &["config", "check"]] {
            let output = moltinit(&disk, env, args);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(78), "{env:?}: {said}");
            assert_eq!(said.matches(expected).count(), 1, "{env:?}: {said}");
            assert!(!said.contains("canary"), "{said}");
        }
    }
    assert!(!disk.path("store").exists() && !disk.path("data").exists() && !disk.state().exists());
}

/// A configuration of the gateway's that no one but its owner can mend.
struct Unusable {
    disk: Disk,
    container: Container,
    says: &'static str,
}

impl Unusable {
    /// `make` puts it into its place.
    fn start(says: &'static str, make: impl FnOnce(&Path)) -> Unusable {
        let disk = Disk::new();
        fs::create_dir_all(disk.state()).unwrap();
        make(&disk.state().join("openclaw.json"));
        let container = stand_in(&disk, &disk.path("store"));
        Unusable { disk, container, says }
    }

    /// It is said wherever one would look, nobody loops, and nothing is overwritten.
    fn is_held(&self) {
        let gateway = || self.container.status()["services"]["gateway"].clone();
        eventually(format_args!("{}; log: {}", self.says, self.container), PATIENCE, || {
            (gateway()["state"] == "held").then_some(())
        });
        let gateway = gateway();
        let why = gateway["why"].as_str().unwrap();
        let file = self.disk.state().join("openclaw.json");
        assert!(why.contains(self.says) && why.contains(file.to_str().unwrap()), "{why}");
        assert_eq!((&gateway["starts"], &gateway["pid"]), (&Value::from(0), &Value::Null));
        let ready = self.container.get("/readyz").unwrap();
        assert_eq!((ready.status, &ready.json()["failing"]), (503, &json!(["gateway"])));
        let shown = self.disk.command(&["status"]).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains(self.says), "{shown:?}");
        assert!(
            self.container.log().matches(self.says).count() < 4,
            "{}",
            self.container
        );
    }
}

#[test]
fn a_configuration_that_only_a_person_can_mend_is_named_in_the_status_and_stays_as_it_is() {
    let torn = Unusable::start("is not JSON5", |file| fs::write(file, "{ my notes").unwrap());
    let directory = Unusable::start("is a directory", |file| fs::create_dir(file).unwrap());
    let dangling = Unusable::start("is a link to /nowhere/openclaw.json, which is not there", |file| {
        symlink("/nowhere/openclaw.json", file).unwrap();
    });
    let read_only = Unusable::start("make it writable", |file| {
        fs::write(file, "{}").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o444)).unwrap();
    });
    let mut bound = None;
    let mounted = Unusable::start("mount its directory instead", |file| {
        fs::write(file, "{}").unwrap();
        mount(Some(file), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        bound = Some(Volume(file.to_owned()));
    });
    for one in [&torn, &directory, &dangling, &read_only, &mounted] {
        one.is_held();
    }
    let config = |of: &Unusable| of.disk.state().join("openclaw.json");
    assert_eq!(fs::read_to_string(config(&torn)).unwrap(), "{ my notes");
    assert_eq!(fs::read_dir(config(&directory)).unwrap().count(), 0);
    assert!(fs::symlink_metadata(config(&dangling)).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(config(&read_only)).unwrap(), "{}");
    assert_eq!(fs::read_to_string(config(&mounted)).unwrap(), "{}");
    for one in [&torn, &directory, &dangling, &read_only] {
        let kept = fs::read_dir(one.disk.state()).unwrap().flatten();
        let kept: Vec<_> = kept.map(|entry| entry.file_name()).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }

    fs::write(config(&torn), "{ mine: {} }").unwrap();
    let started = torn.disk.command(&["start", "gateway", "--wait"]).output().unwrap();
    assert!(started.status.success(), "{started:?}; {}", torn.container);
    torn.container.wait_for("/readyz", PATIENCE);
    drop((mounted, bound));
}

#[test]
fn a_busy_port_is_named() {
    let disk = Disk::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let output = moltinit(&disk, &[("MOLTINIT_HTTP_ADDR", &addr)], &["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains(&addr) && said(&output).contains("MOLTINIT_HTTP_ADDR"),
        "{}",
        said(&output)
    );
}

/// It must not so much as open what the first one is writing.
#[test]
fn a_second_moltinit_in_the_same_place_begins_nothing() {
    let disk = Disk::new();
    let first = stand_in(&disk, &disk.path("store"));
    first.wait_for("/readyz", PATIENCE);
    let other = Disk::new();
    let (file, began) = (other.path("moltinit.toml"), other.path("began"));
    let text = format!("[[service]]\nname = \"early\"\ncommand = [\"touch\", {began:?}]\n");
    fs::write(&file, text).unwrap();
    let env = [
        ("MOLTINIT_CONFIG", file.to_str().unwrap()),
        ("MOLTINIT_RUN_DIR", disk.path("run").to_str().unwrap()),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let output = moltinit(&other, &env, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("another moltinit answers"), "{}", said(&output));
    assert!(!began.exists() && !other.path("data").exists() && !other.path("store").exists());
    event(&first, "boot.started");
    assert_eq!(
        first.get("/events?after=0").unwrap().json()["boots"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// A service that always fails and shall end the supervisor then.
const HOPELESS: &str = "[[service]]\nname = \"gateway\"\nafter = []\ncommand = [\"sh\", \"-c\", \"exit 3\"]\n\
                        on_crash_loop = \"exit\"\ncrash_loop = { restarts = 1, within = \"1m\" }\n";

/// Called by one that ignores SIGCHLD, so that the kernel would reap for it and tell nobody.
#[test]
fn a_crash_loop_is_exit_code_70_whoever_called() {
    let disk = Disk::new();
    let file = disk.path("moltinit.toml");
    fs::write(&file, HOPELESS).unwrap();
    let log = disk.path("log");
    let mut run = Command::new("env")
        .args(["--ignore-signal=CHLD", MOLTINIT, "run"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", disk.path("home"))
        .env("MOLTINIT_CONFIG", &file)
        .env("MOLTINIT_STORE", disk.path("store"))
        .env("MOLTINIT_DATA_DIR", disk.path("data"))
        .env("MOLTINIT_RUN_DIR", disk.path("run"))
        .env("MOLTINIT_HTTP_ADDR", "127.0.0.1:0")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let status = eventually("its end", PATIENCE, || run.try_wait().unwrap());
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(status.code(), Some(70), "{log}");
    assert!(log.contains("exit code 3") && log.contains("crash loop"), "{log}");
    let roles = log.matches("running as a child subreaper").count();
    assert_eq!(roles, 1, "{log}");
}

/// PID 1 is sent nothing that it does not listen for, and here it does not get far: somebody has to write the secret.
#[test]
fn a_stop_before_anything_is_started_is_heard() {
    let disk = Disk::new();
    let secret = disk.path("secret");
    nix::unistd::mkfifo(&secret, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let env = [("ANTHROPIC_API_KEY_FILE", secret.to_str().unwrap())];
    let mut container = Container::start(&disk, &disk.path("store"), &env, &["run"]);
    // A writer finds a reader there, and no end to what it reads as long as the writer stays.
    let _writer = eventually("the reading of the configuration", PATIENCE, || {
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::open(&secret, flags, nix::sys::stat::Mode::empty()).ok()
    });
    container.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(container.wait(PATIENCE).code(), Some(0), "{}", container.log());
}

#[test]
fn commands_say_what_is_missing() {
    let disk = Disk::new();
    let missing = disk.path("missing");
    let missing = missing.to_str().unwrap();
    let file = disk.path("file");
    fs::write(&file, "in the way").unwrap();
    for store in [missing, file.to_str().unwrap()] {
        for command in [
            &["snapshot", "list"][..],
            &["snapshot", "show"],
            &["restore", "--to", "/nonexistent/x"],
        ] {
            let output = moltinit(&disk, &[], &[command, &["--store", store]].concat());
            assert_eq!(output.status.code(), Some(69), "{command:?}: {}", said(&output));
            assert!(said(&output).contains(store), "{}", said(&output));
        }
    }
    assert!(!Path::new(missing).exists());
    let output = moltinit(&disk, &[], &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no moltinit is running"), "{}", said(&output));
    fs::create_dir_all(disk.path("store")).unwrap();
    let output = moltinit(&disk, &[], &["restore", "nonsense", "--to", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("not a commit id"), "{}", said(&output));
}

#[test]
fn a_file_in_the_stores_place_holds_the_gateway_until_it_is_gone() {
    let disk = Disk::new();
    let store = disk.path("store");
    fs::write(&store, "in the way").unwrap();
    let container = stand_in(&disk, &store);
    let why = event(&container, "store.unavailable")["why"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        why.contains(store.to_str().unwrap()) && why.contains("not a directory"),
        "{why}"
    );
    let ready = container.get("/readyz").unwrap();
    assert_eq!(ready.status, 503);
    let failing = ready.json()["failing"].clone();
    for part in ["store", "gateway"] {
        assert!(failing.as_array().unwrap().iter().any(|name| name == part), "{failing}");
    }
    assert_eq!(
        container.status()["services"]["gateway"]["pid"],
        Value::Null,
        "never on empty state"
    );
    assert_eq!(fs::read(&store).unwrap(), b"in the way");

    fs::remove_file(&store).unwrap();
    container.wait_for("/readyz", PATIENCE);
    event(&container, "store.recovered");
}

/// A file system of its own.
struct Volume(std::path::PathBuf);

impl Volume {
    fn mount(path: &Path, flags: MsFlags, options: &str) -> Volume {
        fs::create_dir_all(path).unwrap();
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).unwrap();
        Volume(path.to_owned())
    }
}

/// Runs a command in the mount namespace of `container`, which has a copy of every mount here.
fn inside(container: &Container, command: &[&str], path: &Path) {
    let target = container.init.to_string();
    let done = Command::new("nsenter")
        .args(["--mount", "--target", &target])
        .args(command)
        .arg(path)
        .status();
    assert!(done.expect("nsenter (util-linux)").success(), "{command:?}");
}

fn random(len: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_store_that_cannot_be_written_is_reported_and_nothing_is_claimed() {
    let disk = Disk::new();
    let volume = Volume::mount(&disk.path("volume"), MsFlags::MS_RDONLY, "");
    let container = stand_in(&disk, &volume.0);
    container.wait_for("/healthz", PATIENCE);
    eventually("the gateway", PATIENCE, || {
        container.status()["services"]["gateway"]["pid"].as_i64()
    });
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "precious").unwrap();
    let why = event(&container, "snapshot.failed")["why"].as_str().unwrap().to_owned();
    assert!(why.contains("Read-only") || why.contains("permission"), "{why}");
    assert_eq!(container.status()["snapshots"]["last"], Value::Null);

    inside(&container, &["mount", "-o", "remount,rw"], &volume.0);
    eventually("a commit", PATIENCE, || {
        container.status()["snapshots"]["last"]["commit"]
            .as_str()
            .map(str::to_owned)
    });
    container.kill();
    let second = stand_in(&disk, &volume.0);
    // It has a copy of the mount as it is here, and may have something to commit too.
    inside(&second, &["mount", "-o", "remount,rw"], &volume.0);
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read_to_string(disk.state().join("note")).unwrap(), "precious");
}

#[test]
fn a_full_store_is_named_and_loses_nothing() {
    let disk = Disk::new();
    let volume = Volume::mount(&disk.path("volume"), MsFlags::empty(), "size=1m");
    let container = stand_in(&disk, &volume.0);
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "small").unwrap();
    let before = commit(&container);
    let large = random(3 << 20);
    fs::write(disk.state().join("large"), &large).unwrap();
    let why = event(&container, "snapshot.failed")["why"].as_str().unwrap().to_owned();
    assert!(why.contains("full"), "{why}");
    assert_eq!(container.status()["snapshots"]["last"]["commit"], before.as_str());

    inside(&container, &["mount", "-o", "remount,size=32m"], &volume.0);
    eventually("a commit", PATIENCE, || {
        let last = container.status()["snapshots"]["last"]["commit"].clone();
        (last != before.as_str()).then_some(())
    });
    container.kill();
    let fresh = Disk::new();
    let second = stand_in(&fresh, &volume.0);
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read(fresh.state().join("large")).unwrap(), large);
}

fn a_disk_of_its_own_stops_no_commit(spoil: impl FnOnce(&Container, &Volume)) {
    let disk = Disk::new();
    let volume = Volume::mount(&disk.path("volume"), MsFlags::empty(), "size=1m");
    let data = volume.0.join("data");
    let (sleep, data) = (r#"["sleep", "100000"]"#, data.to_str().unwrap());
    let container = with_gateway_and(&disk, &disk.path("store"), sleep, &[("MOLTINIT_DATA_DIR", data)]);
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    spoil(&container, &volume);
    let note = random(3 << 20);
    fs::write(disk.state().join("note"), &note).unwrap();
    commit(&container);
    container.kill();
    fs::remove_dir_all(disk.path("home")).unwrap();
    let second = stand_in(&disk, &disk.path("store"));
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read(disk.state().join("note")).unwrap(), note);
}

#[test]
fn a_full_disk_of_its_own_stops_no_commit() {
    a_disk_of_its_own_stops_no_commit(|_, volume| {
        let full = fs::write(volume.0.join("filler"), random(2 << 20)).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    });
}

#[test]
fn a_write_protected_disk_of_its_own_stops_no_commit() {
    a_disk_of_its_own_stops_no_commit(|container, volume| {
        let point = volume.0.to_str().unwrap();
        inside(container, &["mount", "--bind", point], &volume.0);
        inside(container, &["mount", "-o", "remount,bind,ro"], &volume.0);
    });
}

#[test]
fn what_does_not_fit_beside_what_the_agent_needs_holds_up_nothing_else() {
    let disk = Disk::new();
    let volume = Volume::mount(&disk.path("home"), MsFlags::empty(), "size=400m");
    let data = volume.0.join("data");
    let (sleep, data) = (r#"["sleep", "100000"]"#, data.to_str().unwrap());
    let container = with_gateway_and(&disk, &disk.path("store"), sleep, &[("MOLTINIT_DATA_DIR", data)]);
    container.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    // It never fits, and is there all at once; the other two fit, one at a time.
    fs::write(volume.0.join("large"), random(140 << 20)).unwrap();
    fs::rename(volume.0.join("large"), disk.state().join("large")).unwrap();
    let middle = ["a", "b"].map(|name| (name, random(40 << 20)));
    for (name, bytes) in &middle {
        fs::write(disk.state().join(name), bytes).unwrap();
    }
    fs::write(disk.state().join("memory"), "precious").unwrap();
    let lowest = std::thread::scope(|scope| {
        let asked = scope.spawn(|| commit(&container));
        let mut lowest = u64::MAX;
        while !asked.is_finished() {
            let disk = statvfs(&volume.0).unwrap();
            lowest = lowest.min(disk.blocks_available() * disk.fragment_size());
            std::thread::sleep(Duration::from_millis(5));
        }
        asked.join().unwrap();
        lowest
    });
    assert!(lowest > 90 << 20, "{} MiB were left to the agent", lowest >> 20);
    let warnings = container.status()["snapshots"]["warnings"].clone();
    let named = warnings.as_array().unwrap();
    assert!(
        named.len() == 1 && named[0].as_str().unwrap().starts_with("state/large: there is no room"),
        "{warnings}"
    );
    container.kill();
    drop(volume);
    let second = stand_in(&disk, &disk.path("store"));
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read_to_string(disk.state().join("memory")).unwrap(), "precious");
    for (name, bytes) in &middle {
        assert!(fs::read(disk.state().join(name)).unwrap() == *bytes, "{name}");
    }
    assert!(!disk.state().join("large").exists());
}

#[test]
fn what_appears_in_the_place_of_the_store_gets_nothing() {
    let disk = Disk::new();
    let volume = Volume::mount(&disk.path("volume"), MsFlags::empty(), "");
    for (store, reason) in [
        (disk.path("plain"), "mounted at"),
        (volume.0.clone(), "not the store that was there"),
    ] {
        fs::create_dir_all(disk.state()).unwrap();
        let container = stand_in(&disk, &store);
        container.wait_for("/readyz", PATIENCE);
        fs::write(disk.state().join("note"), "one").unwrap();
        let before = commit(&container);
        inside(&container, &["mount", "-t", "tmpfs", "other"], &store);
        fs::write(disk.state().join("note"), "two").unwrap();
        let why = event(&container, "snapshot.failed")["why"].as_str().unwrap().to_owned();
        assert!(why.contains(reason), "{why}");
        assert_eq!(container.status()["snapshots"]["last"]["commit"], before.as_str());
        inside(&container, &["sh", "-c", r#"test -z "$(ls "$0")""#], &store);

        inside(&container, &["umount"], &store);
        eventually(format_args!("a commit; log: {container}"), PATIENCE, || {
            let last = container.status()["snapshots"]["last"]["commit"].clone();
            (last != before.as_str()).then_some(())
        });
        container.kill();
        fs::remove_dir_all(disk.path("home")).unwrap();
    }
}

#[test]
fn a_disk_without_room_for_the_state_holds_the_gateway_until_it_has() {
    let disk = Disk::new();
    let store = disk.path("store");
    let first = stand_in(&disk, &store);
    first.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    let large = random(6 << 20);
    fs::write(disk.state().join("large"), &large).unwrap();
    commit(&first);
    first.kill();

    let small = Disk::new();
    let home = Volume::mount(&small.path("home"), MsFlags::empty(), "size=4m");
    let second = stand_in(&small, &store);
    let why = event(&second, "store.unavailable")["why"].as_str().unwrap().to_owned();
    assert!(why.contains("has room for"), "{why}");
    assert_eq!(second.status()["services"]["gateway"]["pid"], Value::Null);
    inside(&second, &["mount", "-o", "remount,size=32m"], &home.0);
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read(small.state().join("large")).unwrap(), large);
}

#[test]
fn foreign_cut_and_empty_objects_are_passed_over_and_named() {
    let disk = Disk::new();
    let store = disk.path("store");
    let first = stand_in(&disk, &store);
    first.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "one").unwrap();
    let good = commit(&first);
    fs::write(disk.state().join("note"), "two").unwrap();
    let cut = commit(&first);
    first.kill();

    let generation = cut.split('-').next().unwrap();
    let mut objects = Vec::new();
    find(&store, &mut objects);
    let number = |id: &str| id.rsplit('-').next().unwrap().trim_start_matches('0').to_owned();
    let newest = objects
        .iter()
        .find(|path| {
            path.to_str().unwrap().contains(generation)
                && path.file_stem().unwrap().to_str().unwrap().ends_with(&number(&cut))
        })
        .expect("the object of the newest commit");
    let bytes = fs::read(newest).unwrap();
    fs::write(newest, &bytes[..bytes.len() / 2]).unwrap();
    let dir = newest.parent().unwrap();
    fs::write(dir.join("00000098.seg"), "").unwrap();
    fs::write(
        dir.join("00000099.seg"),
        "a foreign thing, quite long enough to hold a trailer, but none is there",
    )
    .unwrap();
    fs::write(dir.join("README.txt"), "not a segment").unwrap();

    let fresh = Disk::new();
    let second = stand_in(&fresh, &store);
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(fs::read_to_string(fresh.state().join("note")).unwrap(), "one");
    assert_eq!(second.status()["restore"]["commit"], good.as_str());
    let degraded = event(&second, "state.restore_degraded");
    assert_eq!(degraded["used"], good.as_str());
    assert!(!degraded["why"].as_str().unwrap().is_empty());
    let output = moltinit(&fresh, &[], &["snapshot", "list", "--store", store.to_str().unwrap()]);
    assert!(output.status.success());
    assert!(
        said(&output).contains("00000099.seg is no snapshot"),
        "{}",
        said(&output)
    );
    second.kill();
    // Beside what is found, it is said what was not.
    forget_later_generations(&store, &cut);
    let (store, to) = (store.to_str().unwrap(), fresh.path("to"));
    let output = moltinit(&fresh, &[], &["snapshot", "verify", "--store", store]);
    assert!(
        output.status.success(),
        "none of these was ever finished: {}",
        said(&output)
    );
    for passed in ["00000098 is passed over", "00000099 is passed over"] {
        assert!(said(&output).contains(passed), "{}", said(&output));
    }
    let output = moltinit(
        &fresh,
        &[],
        &["restore", "--store", store, "--to", to.to_str().unwrap()],
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("is passed over"), "{}", said(&output));
    assert_eq!(fs::read_to_string(to.join("state/note")).unwrap(), "one");
}

fn find(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Removes what a container has committed after the commit `id`.
fn forget_later_generations(store: &Path, id: &str) {
    for entry in fs::read_dir(store.join("default/v1")).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir()
            && !entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with(id.split('-').next().unwrap())
        {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

#[test]
fn state_that_is_there_already_is_moved_aside() {
    let disk = Disk::new();
    let store = disk.path("store");
    let first = stand_in(&disk, &store);
    first.wait_for("/readyz", PATIENCE);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "from the store").unwrap();
    commit(&first);
    first.kill();

    let other = Disk::new();
    fs::create_dir_all(other.state()).unwrap();
    fs::write(other.state().join("note"), "somebody else's").unwrap();
    let second = stand_in(&other, &store);
    second.wait_for("/readyz", PATIENCE);
    assert_eq!(
        fs::read_to_string(other.state().join("note")).unwrap(),
        "from the store"
    );
    let aside = fs::read_dir(other.path("home")).unwrap().flatten().find(|entry| {
        entry
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".openclaw.before-restore-")
    });
    let aside = aside.expect("the state that was there").path();
    assert_eq!(fs::read_to_string(aside.join("note")).unwrap(), "somebody else's");
}

#[test]
fn a_command_that_is_not_found_is_named_and_everything_else_goes_on() {
    let disk = Disk::new();
    let container = with_gateway(&disk, &disk.path("store"), r#"["no-such-gateway", "run"]"#);
    container.wait_for("/healthz", PATIENCE);
    let why = eventually("a reason", PATIENCE, || {
        let why = container.status()["services"]["gateway"]["why"].as_str()?.to_owned();
        why.contains("no-such-gateway").then_some(why)
    });
    assert!(why.contains("PATH"), "{why}");
    assert_eq!(container.get("/readyz").unwrap().status, 503);
    fs::create_dir_all(disk.state()).unwrap();
    fs::write(disk.state().join("note"), "kept all the same").unwrap();
    commit(&container);
}

#[test]
fn a_stop_while_the_store_is_awaited_is_orderly() {
    let disk = Disk::new();
    let store = disk.path("store");
    fs::write(&store, "in the way").unwrap();
    let mut container = stand_in(&disk, &store);
    container.wait_for("/healthz", PATIENCE);
    container.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(
        container.wait(Duration::from_secs(60)).code(),
        Some(0),
        "{}",
        container.log()
    );
}
