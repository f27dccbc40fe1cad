//! Starts services, keeps them alive, and ends them whole.
//!
//! Each service is a task around a pure state machine ([`machine`]): what happens goes in (an exit, a probe's answer,
//! a command, time), what is to be done comes out. Only intent makes an exit final. A module that knows a program
//! better than its description does has its say through [`Care`].
//!
//! * [`backoff`], [`machine`], [`order`]: what to do, as functions of (state, input, now).
//! * [`launch`], [`tree`], [`ports`], [`procfs`]: starting a process, and ending everything it has become.
//! * [`probe`], [`pulse`]: is it ready, is it well, and were we even awake to ask.
//! * [`lines`], [`logs`]: what services write.
//! * [`memory`], [`census`], [`scores`]: who uses how much, and whom the kernel shall kill.
//! * [`board`], [`service`], [`run`], [`handle`]: where all stand, who does it, and who may ask for it.

mod backoff;
mod board;
mod care;
mod census;
mod handle;
mod launch;
mod lines;
mod logs;
mod machine;
pub mod memory;
pub mod order;
mod ports;
pub mod probe;
mod procfs;
mod pulse;
mod run;
mod scores;
mod service;
mod tree;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    board::{LastExit, View},
    care::{Care, Ended, Environment, Start, Verdict},
    handle::{CommandError, Handle},
    launch::Launch,
    logs::{Followed, Line, Stream},
};

use crate::{
    config::{secret::Mask, service::Service},
    event::Events,
    pid1::Spawner,
};

use self::{
    board::Board,
    care::NoCare,
    handle::{Entry, Inner},
    launch::Launcher,
    logs::Log,
    machine::Input,
    memory::Accounts,
    order::Order,
    pulse::Pulse,
    scores::Scores,
    service::{Common, Message, Task},
};

/// What the supervisor is made of.
pub struct Supervisor {
    /// Their order must have been [checked](order::check).
    pub services: Vec<Service>,
    /// Who knows a service better, by its name.
    pub cares: HashMap<String, Arc<dyn Care>>,
    /// What every service inherits.
    pub env: Environment,
    pub spawner: Spawner,
    pub events: Events,
    /// Struck out of what services write.
    pub mask: Mask,
}

impl Supervisor {
    /// Starts to supervise: every service is started as soon as what it comes after is ready.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(mut self) -> Handle {
        let accounts = Accounts::find("/");
        let least = self.services.iter().filter_map(|service| service.memory_max).min();
        let census = census::start(accounts.clone(), least, self.events.clone());
        let common = Arc::new(Common {
            board: watch::Sender::new(Board::default()),
            order: Order::new(&self.services),
            events: self.events,
            pulse: Pulse::start(),
            accounts,
            mask: self.mask.clone(),
            gave_up: watch::Sender::new(false),
        });
        let env = Arc::new(self.env);
        let mut services = std::collections::BTreeMap::new();
        let score = scores::settle();
        for (index, service) in self.services.into_iter().enumerate() {
            let service = Arc::new(service);
            let log = Log::new(&service.name, self.mask.clone());
            let care = self.cares.remove(&service.name).unwrap_or_else(|| Arc::new(NoCare));
            let launcher = Arc::new(Launcher {
                service: Arc::clone(&service),
                care,
                spawner: self.spawner.clone(),
                env: Arc::clone(&env),
                scores: Scores::of(index, score),
            });
            let name = service.name.clone();
            let task = Task::new(service, launcher, Arc::clone(&log), Arc::clone(&common));
            let inbox = task.outbox.clone();
            let task = AbortOnDropHandle::new(tokio::spawn(task.run(census.clone())));
            let _ = inbox.send(Message::Do(Input::Start, oneshot::channel().0));
            services.insert(
                name,
                Entry {
                    inbox,
                    log,
                    _task: task,
                },
            );
        }
        Handle(Arc::new(Inner {
            services,
            common,
            closing: AtomicBool::new(false),
            hurried: watch::Sender::new(false),
        }))
    }
}
