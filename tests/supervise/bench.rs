//! A supervisor to try things on, which leaves nothing behind.

#[path = "../it/support/ports.rs"]
pub mod ports;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use moltinit::{
    config::{
        secret::Mask,
        service::{Check, Probe, Service},
    },
    event::{Event, Events, ServiceState},
    pid1::{Spawner, take_role},
    supervise::{Care, Environment, Handle, Supervisor, View},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// Generous: only a hang comes near it.
pub const PATIENCE: Duration = Duration::from_secs(90);

const MARK: &str = "SUPERVISE_TEST";

pub struct Bench {
    pub handle: Handle,
    pub dir: TempDir,
    events: mpsc::UnboundedReceiver<Event>,
    /// The value of `SUPERVISE_TEST` in the environment of all that comes from this bench.
    pub mark: String,
    /// A process is one supervisor's: two in one process take each other's children of the same name for their own.
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    pub fn start(services: Vec<Service>) -> Bench {
        Bench::with_cares(services, HashMap::new())
    }

    /// In the services' environment `D` is a directory of their own.
    pub fn with_cares(services: Vec<Service>, cares: HashMap<String, Arc<dyn Care>>) -> Bench {
        static ALONE: Mutex<()> = Mutex::new(());
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        take_role();
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = TempDir::new().unwrap();
        let mut env: Environment = std::env::vars_os().collect();
        env.insert(MARK.into(), mark.clone().into());
        env.insert("D".into(), dir.path().into());
        let (sender, events) = Events::channel();
        let supervisor = Supervisor {
            services,
            cares,
            env,
            spawner: Spawner::start().unwrap(),
            events: sender,
            mask: Mask::new(["hunter22".to_owned()]),
        };
        Bench {
            handle: supervisor.start(),
            dir,
            events,
            mark,
            _alone: alone,
        }
    }

    pub fn view(&self, name: &str) -> View {
        let mut views = self.handle.services().into_iter();
        views.find(|view| view.name == name).unwrap()
    }

    pub fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.view(name).pid.unwrap())
    }

    /// The next event that is the one looked for; those before it are gone.
    pub async fn event<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let next = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        match timeout(PATIENCE, next).await {
            Ok(found) => found,
            Err(_) => panic!("it did not happen; {:#?}", self.handle.services()),
        }
    }

    /// Waits until a service comes into a state.
    pub async fn state(&mut self, name: &str, wanted: ServiceState) {
        self.event(|event| match event {
            Event::ServiceChanged { service, state, .. } if service == name && *state == wanted => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until a service is started; its pid.
    pub async fn started(&mut self, name: &str) -> Pid {
        self.event(|event| match event {
            Event::ServiceStarted { service, pid } if service == name => Some(Pid::from_raw(*pid)),
            _ => None,
        })
        .await
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until a service has written a file with something in it, and gives that.
    pub async fn written(&self, name: &str) -> String {
        let path = self.file(name);
        until(|| fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).await
    }

    /// Every process that comes from this bench.
    pub fn left(&self) -> Vec<Pid> {
        with_mark(&self.mark)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for _ in 0..100 {
            let left = self.left();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

fn with_mark(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    let has_mark = |path: &Path| {
        let environ = fs::read(path.join("environ")).unwrap_or_default();
        environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| has_mark(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .collect()
}

/// Waits for what no event tells.
pub async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("it did not come to pass")
}

pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A service that is a shell script.
pub fn shell(name: &str, script: &str) -> Service {
    command(name, &["sh", "-c", script])
}

pub fn command(name: &str, command: &[&str]) -> Service {
    let mut service = Service::named(name);
    service.command = command.iter().map(|word| (*word).to_owned()).collect();
    service
}

pub fn after(mut service: Service, names: &[&str]) -> Service {
    service.after = names.iter().map(|name| (*name).to_owned()).collect();
    service
}

/// A web server on that port, all of whose answers are `{"ok":true,"ready":true}`. At SIGUSR1 it closes its
/// listener and lives on; at SIGUSR2 it takes connections and never answers.
pub fn server(name: &str, port: u16) -> Service {
    let script = r#"
import signal, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
mute = False
kept = []
def close(*_):
    listener.close()
def hush(*_):
    global mute
    mute = True
signal.signal(signal.SIGUSR1, close)
signal.signal(signal.SIGUSR2, hush)
while True:
    try:
        peer, _ = listener.accept()
    except OSError:
        time.sleep(1000)
    if mute:
        kept.append(peer)
        continue
    peer.recv(65536)
    body = b'{"ok":true,"ready":true}'
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
    peer.close()
"#;
    let mut service = command(name, &["python3", "-c", script, &port.to_string()]);
    let http = |path: &str, key: &str| Check::Http {
        url: format!("http://127.0.0.1:{port}{path}"),
        json: Some(key.to_owned()),
    };
    service.ready = Some(Probe {
        every: Duration::from_millis(50),
        ..Probe::ready(http("/readyz", "ready"))
    });
    service.live = Some(Probe {
        every: Duration::from_millis(100),
        timeout: Duration::from_millis(500),
        ..Probe::live(http("/healthz", "ok"))
    });
    service.stop.timeout = Duration::from_secs(2);
    service
}
