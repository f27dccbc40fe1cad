//! The sequence, top to bottom.

mod commands;
mod keeper;
mod late;
pub mod layout;
mod live;
mod place;
mod signals;
mod skill;
mod state;
pub mod store;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::runtime;
use ulid::Ulid;

pub use self::signals::Early;
use self::{
    commands::Commands,
    keeper::{Keeper, Lost},
    late::Late,
    place::Place,
    signals::Stops,
};
use crate::{
    browser::{self, upstream::Upstream},
    config::{Config, Problems, service::Service},
    event::{Event, Events},
    gateway::Gateway,
    log,
    pid1::{Role, Spawner, code, heap, take_role},
    report::{self, BindError, Report, Settings},
    store::s3fs::{self, Mounter},
    supervise::{Care, Handle, Supervisor},
};

/// Of the deadline for stopping, beyond the services' own: what the kill of a whole tree may take.
const KILLING: Duration = Duration::from_secs(5);
/// For the last commit, with all that belongs to it. A store that hangs for longer has lost us the last seconds.
const LAST_COMMIT: Duration = Duration::from_secs(60);
/// For what needed the store's mount, and the mount itself.
const MOUNTS: Duration = Duration::from_secs(10);
/// For the last callbacks.
const FAREWELL: Duration = Duration::from_secs(5);
/// For what follows on the gateway's readiness: the first commit, the first callbacks.
const SETTLING: Duration = Duration::from_secs(10);
/// For processes that nobody supervises.
const STRAYS: Duration = Duration::from_secs(2);

/// Why nothing could be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the machine refuses {0}: {1}; it is out of threads, memory or file descriptors")]
    Machine(&'static str, io::Error),
}

/// Everything of a configuration that only its users can check, checked.
pub struct Checked {
    config: Config,
    settings: Settings,
    upstream: Option<Upstream>,
}

impl Checked {
    /// # Errors
    /// Every problem at once.
    pub fn of(config: Config) -> Result<Checked, Problems> {
        let mut problems = Vec::new();
        let settings = Settings::of(&config).map_err(|problem| problems.push(problem)).ok();
        let upstream = Upstream::of(&config)
            .map_err(|Problems(more)| problems.extend(more))
            .ok();
        if let Err(Problems(more)) = Gateway::check(&config) {
            problems.extend(more);
        }
        match (settings, upstream) {
            (Some(settings), Some(upstream)) if problems.is_empty() => Ok(Checked {
                config,
                settings,
                upstream,
            }),
            _ => Err(Problems(problems).masked(&config.mask)),
        }
    }
}

/// Runs until it is told to stop; returns the exit code.
///
/// # Errors
/// Nothing was started.
pub fn run(checked: Checked, early: &Early) -> Result<i32, BootError> {
    heap::give_back();
    let role = take_role();
    // Before any other thread: all of them must leave SIGCHLD to the reaper.
    let spawner = Spawner::start().map_err(|error| BootError::Machine("a reaper", error))?;
    let _flush = log::start(&checked.config.log, checked.config.mask.clone())
        .map_err(|error| BootError::Machine("a thread for the log", error))?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| BootError::Machine("an event loop", error))?;
    let code = runtime.block_on(supervise(checked, role, spawner, early));
    // Threads that hang in the store end with the process.
    runtime.shutdown_background();
    code
}

async fn supervise(checked: Checked, role: Role, spawner: Spawner, early: &Early) -> Result<i32, BootError> {
    let Checked {
        config,
        settings,
        upstream,
    } = checked;
    let mut stops = Stops::listen(early).map_err(|error| BootError::Machine("signal handlers", error))?;
    let doors = report::bind(config.http_addr, &config.run_dir).await?;

    let boot = Ulid::generate();
    let (events, said) = Events::channel();
    let report = Report::start(report::Place::of(&config, boot), settings, said)
        .map_err(|error| BootError::Machine("a thread for the event log", error))?;
    introduce(role, &config, &events);

    let gateway = Arc::new(Gateway::new(&config, spawner.clone(), events.clone(), skill::put)?);
    gateway.read_ahead();
    let mut descriptions = config.services.clone();
    let mut cares = HashMap::from([("gateway".to_owned(), Arc::clone(&gateway) as Arc<dyn Care>)]);
    let place = Place::of(&config, gateway.waits_to_be_told());
    let mounter = Arc::new(Mounter::default());
    if config.store.mount.is_some() || !place.is_known() {
        descriptions.push(s3fs::service());
        cares.insert(s3fs::SERVICE.to_owned(), Arc::clone(&mounter) as Arc<dyn Care>);
    }
    let services = Supervisor {
        services: descriptions,
        cares,
        env: std::env::vars_os().collect(),
        spawner,
        events: events.clone(),
        mask: config.mask.clone(),
    }
    .start();
    let keeper = Keeper::start(
        &config,
        Arc::clone(&place),
        Arc::clone(&gateway),
        services.clone(),
        events.clone(),
    );
    {
        let (place, services, events) = (Arc::clone(&place), services.clone(), events.clone());
        tokio::spawn(async move { place.prepare(&mounter, &services, &events).await });
    }
    let late = Arc::new(Late {
        config: config.clone(),
        place,
        gateway: Arc::clone(&gateway),
        report: report.settings(),
        browser: browser::Port::new(events.clone()),
        opening: tokio::sync::Mutex::default(),
        events: events.clone(),
        brought: Mutex::default(),
    });
    let commands = Commands {
        services: services.clone(),
        keeper: keeper.clone(),
        gateway,
        late: Arc::clone(&late),
    };
    report.serve(doors, Arc::new(commands));
    tokio::spawn(forget_the_boot(services.clone()));
    if let Some(upstream) = upstream {
        late.open(&config.cdp, upstream).await;
    }

    let (why, code) = tokio::select! {
        signal = stops.next() => (signal.to_owned(), 0),
        () = services.gave_up() => ("a service is in a crash loop and is configured to end us".to_owned(), 70),
    };

    events.emit(Event::ShutdownStarted { why });
    let hurried = services.clone();
    tokio::spawn(async move {
        stops.next().await;
        hurried.hurry();
    });
    services.drain(longest_stop(&config.services) + KILLING).await;
    report.carry().await;
    // One for both commits: a store that does not answer is not waited for twice.
    let deadline = Instant::now() + LAST_COMMIT;
    let lost = keeper.commit_stopped(deadline).await.err();
    events.emit(Event::ShutdownFinished {
        code: lost.as_ref().map_or(code, exit_code),
        pending_paths: lost.as_ref().map_or(0, |lost| lost.paths),
        why: lost.map(|lost| lost.why),
    });
    // What cannot be delivered now goes into the last commit, for the container that takes over.
    report.close(FAREWELL).await;
    let lost = keeper.finish(deadline + FAREWELL).await.err();
    services.shut_down(MOUNTS).await;
    services.sweep(STRAYS).await;
    // Whoever reads 0, or that a service crashed, takes it that nothing is lost.
    Ok(lost.map_or(code, |lost| {
        let code = exit_code(&lost);
        tracing::error!(
            code,
            paths = lost.paths,
            why = lost.why,
            "the last commit failed: what changed since the one before is not durable, and is lost with this container"
        );
        code
    }))
}

/// What is resident is from then on what a running supervisor needs.
async fn forget_the_boot(services: Handle) {
    services.until_up("gateway").await;
    tokio::time::sleep(SETTLING).await;
    code::let_go();
}

/// Of an end that has cost changes.
fn exit_code(lost: &Lost) -> i32 {
    if lost.store { 69 } else { 1 }
}

fn introduce(role: Role, config: &Config, events: &Events) {
    match role {
        Role::Init => {}
        Role::Subreaper => tracing::info!("not PID 1: running as a child subreaper"),
        Role::Bystander => {
            tracing::warn!("not PID 1, and the kernel makes no subreaper of us: orphans are not reaped here")
        }
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    events.emit(Event::BootStarted {
        version: env!("CARGO_PKG_VERSION"),
        pid1: role == Role::Init,
    });
}

fn longest_stop(services: &[Service]) -> Duration {
    services
        .iter()
        .map(|service| service.stop.timeout)
        .max()
        .unwrap_or_default()
}
