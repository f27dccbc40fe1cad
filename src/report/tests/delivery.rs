//! Callbacks, against a receiver that verifies them with the published library.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{
    tools::{Got, Receiver, again, callback, python, role, verify_in_node},
    *,
};
use crate::{
    neighbour::{Neighbour, run, with_env},
    pid1::Exit,
    report::status::CallbackState,
};

fn posted_to(callback: Callback) -> Settings {
    Settings {
        callback: Some(callback),
        ..guarded()
    }
}

fn exited(pid: i32) -> Event {
    Event::ServiceExited {
        service: "gateway".into(),
        pid,
        code: Some(0),
        signal: None,
        oom: false,
        intended: false,
    }
}

impl World {
    /// Waits until the status is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(120) {
            let status = self.report.status();
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("waited in vain until {what}: {:#?}", self.report.status());
    }

    async fn all_delivered(&self, count: u64) {
        self.until("all is delivered", |status| {
            status.events.last_seq >= count && status.events.undelivered == 0
        })
        .await;
    }
}

fn seqs(got: &[Got]) -> Vec<u64> {
    got.iter().map(|got| got.seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_verify_and_come_in_order_whatever_is_answered() {
    let receiver = Receiver::start(json!({ "answers": [
        { "status": 500 },
        { "status": 204 },
        { "status": 429, "headers": { "retry-after": "3" } },
        { "status": 200 },
        { "status": 302, "headers": { "location": "/elsewhere" } },
        { "status": 204 },
    ] }));
    let world = world(posted_to(receiver.callback())).await;
    for pid in 1..=4 {
        world.events.emit(exited(pid));
    }
    world.all_delivered(4).await;
    let got = receiver.got();
    assert_eq!(seqs(&got), [1, 1, 2, 2, 3, 3, 4]);
    assert_eq!(
        got.iter().map(|got| got.status).collect::<Vec<_>>(),
        [500, 204, 429, 200, 302, 204, 204]
    );
    assert!(
        got.iter().all(|got| got.target == "/hook"),
        "a redirect was followed: {got:?}"
    );
    // Far later than the first retry would come by itself.
    assert!(got[3].at - got[2].at >= 3.0, "{got:?}");
    verify_in_node(&receiver.lines());
    let status = world.report.status().callbacks;
    assert_eq!(
        (status.state, status.delivered, status.failures),
        (CallbackState::On, 4, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_410_ends_delivery_until_a_restart() {
    let receiver = Receiver::start(json!({ "answers": [{ "status": 410 }] }));
    let world = world(posted_to(receiver.callback())).await;
    world.events.emit(exited(1));
    world
        .until("it is gone", |status| status.callbacks.state == CallbackState::Gone)
        .await;
    world.events.emit(exited(2));
    world
        .until("both are kept", |status| status.events.undelivered == 2)
        .await;
    let begun = Instant::now();
    let World { dir, report, .. } = world;
    assert_eq!(report.close(Duration::from_secs(20)).await, 2);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "it waited for what cannot come"
    );
    assert_eq!(receiver.got().len(), 1);

    // The restart, in the same container; the socket is still served in this process.
    std::fs::remove_file(dir.path().join("run").join(SOCKET)).unwrap();
    let again = world_in(dir, posted_to(receiver.callback())).await;
    again.events.emit(exited(3));
    again.all_delivered(1).await;
    assert_eq!(seqs(&receiver.got()), [1, 1, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_shutdown_could_not_deliver_the_next_container_does() {
    let hung = Receiver::start(json!({ "answers": [{ "status": 204, "delay": 600 }] }));
    let first = world(posted_to(hung.callback())).await;
    first.events.emit(Event::BootPhase { phase: Phase::Prepare });
    first.events.emit(exited(1));
    first.events.emit(finished());
    let begun = Instant::now();
    let World { dir: old, report, .. } = first;
    assert_eq!(report.close(Duration::from_secs(2)).await, 2);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());

    // All that another container gets is the data directory.
    let new = tempfile::tempdir().unwrap();
    std::fs::create_dir(new.path().join("data")).unwrap();
    std::fs::copy(
        old.path().join("data/outbox.sqlite"),
        new.path().join("data/outbox.sqlite"),
    )
    .unwrap();
    let receiver = Receiver::start(json!({}));
    let second = world_in(new, posted_to(receiver.callback())).await;
    second.events.emit(Event::BootPhase { phase: Phase::Prepare });
    second.report.carry().await;
    second
        .until("both are there", |status| status.callbacks.delivered == 2)
        .await;
    second.events.emit(exited(2));
    second.all_delivered(1).await;
    let got = receiver.got();
    let kinds: Vec<&str> = got.iter().map(|got| got.kind.as_str()).collect();
    assert_eq!(kinds, ["service.exited", "shutdown.finished", "service.exited"]);
    assert!(got[0].boot == got[1].boot && got[1].boot < got[2].boot);
}

/// A receiver that is away costs nobody an event, and the wait for it is cut short by a change of settings.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_receiver_loses_nothing() {
    let nobody = callback("http://user:hunter2@127.0.0.1:9/hook?key=hunter2");
    let world = world(posted_to(nobody)).await;
    for pid in 1..=3 {
        world.events.emit(exited(pid));
    }
    let status = world
        .until("it retries", |status| status.callbacks.state == CallbackState::Retrying)
        .await;
    assert!(!format!("{status:?}").contains("hunter2"), "{status:?}");
    let receiver = Receiver::start(json!({}));
    world.report.settings().send_replace(posted_to(receiver.callback()));
    world.all_delivered(3).await;
    assert_eq!(seqs(&receiver.got()), [1, 2, 3]);
}

/// In a process of its own, since proxies and roots come from the environment.
#[tokio::test(flavor = "multi_thread")]
async fn proxies_and_the_systems_roots_are_honoured() {
    const NAME: &str = "delivery::proxies_and_the_systems_roots_are_honoured";
    if let Some(url) = role() {
        let world = world(posted_to(callback(&url))).await;
        world.events.emit(exited(1));
        // Once may be for want of time on a busy machine.
        let status = world
            .until("it is delivered or has failed", |status| {
                status.callbacks.delivered > 0 || status.callbacks.failures > 2
            })
            .await;
        assert!(status.callbacks.delivered > 0, "{status:#?}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let make = "
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
def key(): return ec.generate_private_key(ec.SECP256R1())
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
def sign(subject, public, issuer, by, *extensions):
    named = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    made = (x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer)).public_key(public)
        .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day))
    for extension in extensions: made = made.add_extension(extension, critical=False)
    return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
ca, own = key(), key()
out = sys.argv[1]
open(out + '/ca.pem', 'wb').write(sign('ca', ca.public_key(), 'ca', ca, x509.BasicConstraints(ca=True, path_length=None)))
open(out + '/own.pem', 'wb').write(sign('own', own.public_key(), 'ca', ca,
    x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]),
    x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])))
open(out + '/key.pem', 'wb').write(own.private_bytes(serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
";
    let made = run(python(&["-c", make, dir.path().to_str().unwrap()]));
    assert_eq!(made.exit, Exit::Code(0), "{}", String::from_utf8_lossy(&made.stderr));
    let tls = Receiver::start(json!({ "certificate": file("own.pem"), "key": file("key.pem") }));
    let url = format!("https://127.0.0.1:{}/hook", tls.port);
    let run = |url: &str, name: &str, value: &str| {
        let mut spawn = with_env(again(NAME, url), name, value);
        spawn.env.retain(|(name, _)| name != "NO_PROXY" && name != "no_proxy");
        let output = run(spawn);
        (
            output.exit == Exit::Code(0),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (fine, said) = run(&url, "SSL_CERT_FILE", &file("ca.pem"));
    let before = tls.got().len();
    assert!(fine && before > 0, "{said}");
    // A root that is not the system's.
    let (fine, said) = run(&url, "SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt");
    assert!(!fine && tls.got().len() == before, "{said}");

    let proxy = Receiver::start(json!({}));
    let (fine, said) = run(
        "http://worker.example/hook",
        "HTTP_PROXY",
        &format!("http://127.0.0.1:{}", proxy.port),
    );
    assert!(fine, "{said}");
    assert_eq!(proxy.got()[0].target, "http://worker.example/hook");
}

/// SIGKILL at any moment: whatever a boot has said it stored is delivered, in order and without a gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_sigkill_leaves_no_gap() {
    const NAME: &str = "delivery::a_sigkill_leaves_no_gap";
    if let Some(role) = role() {
        let (dir, url) = role.split_once(' ').unwrap();
        return victim(Path::new(dir), url).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(json!({}));
    let role = format!("{} http://127.0.0.1:{}/hook", dir.path().display(), receiver.port);
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..6u64 {
        let mut process = Neighbour::start(again(NAME, &role));
        // Lines that say what is on disk; after a few the process is killed in the midst of the next.
        let said = process.lines.by_ref().map_while(Result::ok).filter_map(|line| {
            let (boot, seq) = line.strip_prefix("stored ")?.split_once(' ')?;
            Some((boot.to_owned(), seq.parse::<u64>().ok()?))
        });
        for (boot, seq) in said.take(5 + 7 * round as usize) {
            stored.insert(boot, seq);
        }
        drop(process);
    }
    assert_eq!(stored.len(), 6);

    let last = world_in(dir, posted_to(receiver.callback())).await;
    last.events.emit(exited(0));
    last.all_delivered(1).await;
    let mut first_seen: Vec<(String, u64)> = Vec::new();
    for got in receiver.got() {
        let key = (got.boot, got.seq);
        if !first_seen.contains(&key) {
            first_seen.push(key);
        }
    }
    assert!(first_seen.is_sorted(), "out of order: {first_seen:?}");
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (boot, seq) in first_seen {
        seen.entry(boot).or_default().push(seq);
    }
    for (boot, last) in stored {
        let seen = &seen[&boot];
        assert!(seen.len() as u64 >= last, "{boot}: {seen:?}, but {last} were stored");
        assert_eq!(*seen, (1..=seen.len() as u64).collect::<Vec<_>>(), "{boot}");
    }
}

/// Emits events until it is killed, and says what is stored.
async fn victim(dir: &Path, url: &str) {
    let (events, receiver) = event::Events::channel();
    let place = place(dir, Ulid::generate());
    let boot = place.boot;
    let report = Report::start(place, posted_to(callback(url)), receiver).unwrap();
    for pid in 0.. {
        events.emit(exited(pid));
        if pid % 3 == 0 {
            report.settle().await;
            println!("stored {boot} {}", report.status().events.last_seq);
        }
    }
}
