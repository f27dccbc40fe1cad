//! Who holds a service's port. A process that daemonised under an earlier run, or was left by an earlier supervisor,
//! would let the new one fail to bind, for ever.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};
use tracing::warn;
use url::{Host, Url};

use crate::config::service::{Check, Service};

use super::procfs::{self, Process, Table};

/// How long a holder may take to end before it is killed, and the port to become free.
const ASKED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// The port of this machine that a service's probes say it listens on.
pub fn of(service: &Service) -> Option<u16> {
    [&service.ready, &service.live]
        .into_iter()
        .flatten()
        .find_map(|probe| match &probe.check {
            Check::Http { url, .. } => {
                let url = Url::parse(url).ok()?;
                let local = match url.host()? {
                    Host::Domain(name) => name == "localhost",
                    Host::Ipv4(ip) => is_local(ip.into()),
                    Host::Ipv6(ip) => is_local(ip.into()),
                };
                url.port_or_known_default().filter(|_| local)
            }
            Check::Tcp { addr } => match addr.parse::<SocketAddr>() {
                Ok(addr) => Some(addr.port()).filter(|_| is_local(addr.ip())),
                Err(_) => addr.strip_prefix("localhost:")?.parse().ok(),
            },
            Check::Command { .. } | Check::Notify { .. } | Check::Keeper => None,
        })
}

fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Makes sure that nobody holds the port of a service that is about to start: names who does, and ends it.
///
/// What belongs to another service, or is not below us, is left alone and only named: then the service itself has to
/// fail.
pub async fn free(port: u16, service: &str) {
    let began = Instant::now();
    let mut told: HashSet<Pid> = HashSet::new();
    loop {
        let sockets = listening(port);
        if sockets.is_empty() {
            return;
        }
        let Ok(table) = Table::read().await else { return };
        let holders = holders(table.clone(), sockets).await;
        let (ours, others): (Vec<Process>, Vec<Process>) = holders
            .into_iter()
            .partition(|holder| may_be_ended(holder, service, &table));
        for holder in others.iter().filter(|holder| told.insert(holder.pid)) {
            let whose = table.mark_of(holder).map_or_else(String::new, |of| format!(" of {of}"));
            warn!(
                service,
                "port {port} is held by {} ({}){whose}, which is not this service's to end", holder.name, holder.pid
            );
        }
        if ours.is_empty() {
            return;
        }
        for holder in &ours {
            if told.insert(holder.pid) {
                warn!(
                    service,
                    "port {port} is held by {} ({}), left from before; ending it", holder.name, holder.pid
                );
                let _ = kill(holder.pid, Signal::SIGTERM);
                let _ = kill(holder.pid, Signal::SIGCONT);
            } else if began.elapsed() > ASKED {
                let _ = kill(holder.pid, Signal::SIGKILL);
            }
        }
        if began.elapsed() > PATIENCE {
            return warn!(service, "port {port} does not become free; starting all the same");
        }
        sleep(LOOK).await;
    }
}

/// As PID 1 everything in the namespace is ours to end but ourselves and what belongs to another service.
fn may_be_ended(holder: &Process, service: &str, table: &Table) -> bool {
    let below = table.me == Pid::from_raw(1) || table.is_ours(holder);
    holder.pid != table.me && below && table.mark_of(holder).is_none_or(|mark| mark == service)
}

/// The inodes of the sockets that listen on a port.
fn listening(port: u16) -> Vec<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| parse(&table, port))
        .collect()
}

/// Of lines like `0: 0100007F:1F90 00000000:0000 0A … inode`, the inodes of those that listen.
fn parse(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            let matches = u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
            fields.get(9)?.parse().ok().filter(|_| matches)
        })
        .collect()
}

/// Who has one of these sockets open.
async fn holders(table: Table, sockets: Vec<u64>) -> Vec<Process> {
    let names: HashSet<PathBuf> = sockets
        .iter()
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let look = move || {
        let holds = |process: &Process| procfs::open_files(process.pid).iter().any(|file| names.contains(file));
        table.processes.into_iter().filter(holds).collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service::Probe;

    #[test]
    fn the_port_is_the_probes_if_it_is_on_this_machine() {
        let port = |check| {
            let mut service = Service::named("a");
            service.live = Some(Probe::live(check));
            of(&service)
        };
        let http = |url: &str| Check::Http {
            url: url.into(),
            json: None,
        };
        let tcp = |addr: &str| Check::Tcp { addr: addr.into() };
        assert_eq!(port(http("http://127.0.0.1:18789/readyz")), Some(18789));
        assert_eq!(port(http("http://[::1]/")), Some(80));
        assert_eq!(port(http("http://example.com:81/")), None);
        assert_eq!(port(tcp("localhost:5")), Some(5));
        assert_eq!(port(tcp("[::]:5")), Some(5));
        assert_eq!(port(tcp("10.0.0.1:5")), None);
    }

    /// The mark is read of our own children alone; what they have started is theirs.
    #[test]
    fn what_another_service_has_started_is_not_to_be_ended() {
        let process = |pid, parent, mark: Option<&str>| Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(pid),
            session: Pid::from_raw(pid),
            started: 1,
            resident: 1,
            name: "p".into(),
            mark: mark.map(str::to_owned),
            score: None,
        };
        let table = Table {
            me: Pid::from_raw(1),
            processes: vec![
                process(1, 0, None),
                process(2, 1, Some("a")),
                process(3, 2, None),
                process(4, 1, Some("b")),
                process(5, 4, None),
                process(6, 5, None),
                process(7, 1, None),
            ],
        };
        let ended = |pid| may_be_ended(table.get(Pid::from_raw(pid)).unwrap(), "a", &table);
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7].map(ended),
            [false, true, true, false, false, false, true]
        );
    }

    #[tokio::test]
    async fn who_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = listening(port);
        assert_eq!(sockets.len(), 1);
        let found = holders(Table::read().await.unwrap(), sockets).await;
        assert!(found.iter().any(|process| process.pid == nix::unistd::getpid()));
        free(port, "a").await;
        drop(listener);
        assert_eq!(listening(port), [0; 0]);
    }
}
