//! The services that there are without a file (contract section 3).

use std::time::Duration;

use nix::libc;

use super::{
    super::service::{Check, Probe, Service, Stop},
    machine::{Machine, SANDBOX_SERVER},
};

/// The gateway, and the Sandbox SDK's server where it exists.
pub(super) fn default_services(machine: &Machine) -> Vec<Service> {
    let http = |path: &str, json: &str| Check::Http {
        url: format!("http://127.0.0.1:18789/{path}"),
        json: Some(json.to_owned()),
    };
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut after = vec!["store".to_owned()];
    let mut services = Vec::new();
    if machine.has_sandbox_server {
        after.push("sandbox".to_owned());
        services.push(Service {
            command: text(&[SANDBOX_SERVER]),
            ready: Some(Probe::ready(Check::Tcp {
                addr: "127.0.0.1:3000".to_owned(),
            })),
            ..Service::named("sandbox")
        });
    }
    services.push(Service {
        command: text(&["openclaw", "gateway", "--port", "18789", "--bind", "lan"]),
        after,
        ready: Some(Probe::ready(http("readyz", "ready"))),
        live: Some(Probe::live(http("healthz", "ok"))),
        stop: Stop {
            signal: libc::SIGTERM,
            timeout: Duration::from_secs(330),
        },
        env: [("NODE_OPTIONS".to_owned(), "--max-old-space-size=1536".to_owned())].into(),
        memory_max: Some(2 << 30),
        ..Service::named("gateway")
    });
    services
}
