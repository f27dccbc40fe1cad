//! Checks of this machine: mount, store, gateway, ports.

use std::{
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};
use ulid::Ulid;

use super::Finding;
use crate::{
    config::{self, Config},
    gateway::{settings::port_of, version},
    store::{Expect, Patience, Store, mounts},
};

/// Bytes that are written to the store and read back.
const SAMPLE: usize = 64 << 10;
/// A call that takes longer makes every commit late.
const SLOW: Duration = Duration::from_secs(5);

pub fn mount(config: &config::Store) -> Finding {
    const CHECK: &str = "mount";
    let dir = config.dir.display();
    let Some(mount) = config.dir.ancestors().find_map(|above| mounts::covering(above).ok()) else {
        return Finding::bad(CHECK, format!("{dir} cannot be looked at; see that its mount is alive"));
    };
    let on = format!("{dir} is on {} ({})", mount.point.display(), mount.fstype);
    match config.mount_point() {
        Some(point) if mount.point.starts_with(point) => Finding::fine(CHECK, on),
        Some(point) => Finding::bad(
            CHECK,
            format!(
                "{on}, and no mount is at {}: nothing is written there; mount the bucket there, or set MOLTINIT_MOUNT=s3fs",
                point.display()
            ),
        ),
        None if mount.point == Path::new("/") && !config.durable => Finding::doubtful(
            CHECK,
            format!("{dir} is inside the container and vanishes with it; mount a bucket and set MOLTINIT_STORE"),
        ),
        None => Finding::fine(CHECK, on),
    }
}

/// Writes an object, reads it back and deletes it.
pub fn store(config: &config::Store) -> Finding {
    const CHECK: &str = "store";
    let dir = config.dir.display();
    if !config.must_be_mount && !config.dir.exists() {
        return Finding::doubtful(CHECK, format!("{dir} does not exist yet; the first boot makes it"));
    }
    let expect = config
        .mount_point()
        .map_or(Expect::Existing, |point| Expect::MountAt(point.to_owned()));
    let store = Store::open(&config.dir, expect, Patience::default());
    let begun = Instant::now();
    match round_trip(&store) {
        Ok(()) if begun.elapsed() > SLOW => Finding::doubtful(
            CHECK,
            format!(
                "writing, reading and deleting took {:.1} s: commits will be as late; see to the bucket's region and the network",
                begun.elapsed().as_secs_f64()
            ),
        ),
        Ok(()) => Finding::fine(
            CHECK,
            format!("writes, reads and deletes in {} ms", begun.elapsed().as_millis()),
        ),
        Err(why) => Finding::bad(CHECK, why),
    }
}

fn round_trip(store: &Store) -> Result<(), String> {
    let name = format!("doctor-{}", Ulid::generate());
    let sample: [u8; SAMPLE] = std::array::from_fn(|at| (at % 251) as u8);
    let local = |error: std::io::Error| format!("{}: {error}; make room there", std::env::temp_dir().display());
    let spool = spool(&name, &sample).map_err(local)?;
    let failed = |error: crate::store::StoreError| error.to_string();
    store.check().map_err(failed)?;
    store.put(&name, &spool, SAMPLE as u64).map_err(failed)?;
    let read = store
        .get(&name)
        .and_then(|object| object.read(0..SAMPLE as u64))
        .map_err(failed);
    let deleted = store.delete(&name).map_err(failed);
    if read? != sample {
        return Err("what is read back is not what was written; do not trust this store".to_owned());
    }
    deleted
}

/// A file without a name.
fn spool(name: &str, bytes: &[u8]) -> std::io::Result<File> {
    let path = std::env::temp_dir().join(name);
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(bytes)?;
    Ok(file)
}

pub fn gateway(config: &Config) -> Finding {
    const CHECK: &str = "gateway";
    let Some(service) = config.services.iter().find(|service| service.name == "gateway") else {
        return Finding::doubtful(CHECK, "no service of that name is configured");
    };
    let program = service.command.first().map_or("", String::as_str);
    let path = config.env.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    match version::installed(&service.command, path) {
        Some(version) => Finding::fine(CHECK, format!("`{program}` is {version}")),
        None if found(program, path) => Finding::doubtful(
            CHECK,
            format!("`{program}` is no package that is known; it is treated as the newest"),
        ),
        None => Finding::bad(
            CHECK,
            format!("`{program}` is not in PATH; `npm install -g openclaw`, or name another command"),
        ),
    }
}

fn found(program: &str, path: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    std::env::split_paths(path).any(|dir| dir.join(program).is_file())
}

/// Each port is free, or served by the supervisor that runs.
pub async fn ports(config: &Config, runs: bool) -> Vec<Finding> {
    let mut wanted = vec![("port of probes", config.http_addr)];
    if let Some(gateway) = config.services.iter().find(|service| service.name == "gateway") {
        wanted.push((
            "port of gateway",
            (Ipv4Addr::LOCALHOST, port_of(&gateway.command)).into(),
        ));
    }
    if config.cdp.upstream.is_some() {
        wanted.push(("port of browser", config.cdp.addr));
    }
    let mut findings = Vec::new();
    for (check, addr) in wanted {
        findings.push(if runs {
            served(check, addr).await
        } else {
            free(check, addr).await
        });
    }
    findings
}

async fn free(check: &'static str, addr: SocketAddr) -> Finding {
    match TcpListener::bind(addr).await {
        Ok(_) => Finding::fine(check, format!("{addr} is free")),
        Err(error) => Finding::bad(
            check,
            format!("{addr}: {error}; `ss -ltnp` names who listens there, end it or configure another port"),
        ),
    }
}

async fn served(check: &'static str, addr: SocketAddr) -> Finding {
    let mut to = addr;
    if to.ip().is_unspecified() {
        to.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    match tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(to)).await {
        Ok(Ok(_)) => Finding::fine(check, format!("{addr} is served")),
        _ => Finding::bad(
            check,
            format!("nobody answers on {addr} though the supervisor runs; `moltinit status` says why"),
        ),
    }
}

pub fn token(config: &Config) -> Finding {
    const CHECK: &str = "admin token";
    if config.admin_token.is_some() {
        Finding::fine(CHECK, "is set")
    } else {
        Finding::doubtful(
            CHECK,
            "none: everything but the probes answers 403; set OPENCLAW_GATEWAY_TOKEN or MOLTINIT_ADMIN_TOKEN",
        )
    }
}
