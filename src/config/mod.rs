//! Environment and file into one checked configuration.
//!
//! Defaults, then the TOML file, then the environment (contract section 3). Loading is a pure function of what
//! was found on the machine, and reports every problem at once. A setting has one name: `store_wait` in the
//! file is `MOLTINIT_STORE_WAIT` in the environment, read by the same parser.

pub mod env;
mod file;
mod load;
mod names;
pub mod secret;
pub mod service;
mod settings;
pub mod value;
mod written;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::filter::Targets;

pub use self::{
    load::{MOUNTED_STORE, Machine, SANDBOX_SERVER, load},
    names::SECRETS,
};

use self::{
    env::{Env, Problem},
    secret::{Mask, Secret},
    service::Service,
};

/// Whose snapshots those are that nobody named.
pub const DEFAULT_INSTANCE: &str = "default";

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub store: Store,
    /// The gateway's state; a root of every snapshot.
    pub state_dir: PathBuf,
    /// The agent's workspace, as far as it is not left to the gateway's own configuration.
    pub workspace: Option<Workspace>,
    pub snapshot: Snapshot,
    pub http_addr: SocketAddr,
    pub admin_token: Option<Secret>,
    pub cdp: Cdp,
    /// Models the gateway falls back to, comma-separated; checked with its other settings.
    pub model_fallbacks: Option<String>,
    pub callback: Callback,
    pub services: Vec<Service>,
    /// Supervisor's own data that must outlive the container; a root of every snapshot.
    pub data_dir: PathBuf,
    /// The control socket and whatever else is only of this container.
    pub run_dir: PathBuf,
    pub log: Log,
    /// The environment all this was read from: the gateway's settings are read from it, and children inherit it.
    pub env: Env,
    /// Every secret value in the above.
    pub mask: Mask,
    /// What is no mistake, but should be known.
    pub warnings: Vec<Problem>,
    /// The file that was named, if one was.
    pub file: Option<PathBuf>,
}

/// Where the agent works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workspace {
    /// Whatever the gateway's configuration says.
    Named(PathBuf),
    /// For a configuration that names none: one that names another has the agent's files there.
    Default(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Store {
    pub dir: PathBuf,
    /// A mount must be there at every commit.
    pub must_be_mount: bool,
    /// False for the fallback inside the container, which vanishes with it.
    pub durable: bool,
    pub wait: Duration,
    pub required: bool,
    /// moltinit mounts the bucket itself.
    pub mount: Option<Bucket>,
    /// Sub-directory of the store.
    pub instance: String,
    /// Encrypts snapshots at rest.
    pub key: Option<Secret>,
}

impl Store {
    /// Where a mount has to be for the store to be on it, if it has to be on one: there or below.
    pub fn mount_point(&self) -> Option<&Path> {
        let mounted = Path::new(MOUNTED_STORE);
        // The platform may mount the whole bucket or a part of it.
        let point = if self.dir.starts_with(mounted) {
            mounted
        } else {
            &self.dir
        };
        self.must_be_mount.then_some(point)
    }
}

/// What s3fs needs to mount the bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: String,
    /// The S3 API's address: R2's for the account, unless `R2_ENDPOINT` names another.
    pub endpoint: String,
    pub access_key_id: Secret,
    pub secret_access_key: Secret,
}

/// When a change is committed.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    pub quiet: Duration,
    pub max_delay: Duration,
    pub min_gap: Duration,
}

#[derive(Debug, Clone)]
pub struct Cdp {
    pub addr: SocketAddr,
    /// Asked of everybody who comes to the local port, if set; of characters that an address may hold as they are.
    pub token: Option<Secret>,
    /// `worker`, `cloudflare`, or a URL; `None` without a browser.
    pub upstream: Option<String>,
    /// For how long a browser that is launched for all clients outlives the last of them.
    pub idle: Duration,
}

#[derive(Debug, Clone)]
pub struct Callback {
    pub url: Option<String>,
    /// What the URL was given as, or could have been.
    pub named: String,
    pub secret: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub filter: Targets,
    /// `None`: pretty on a terminal, JSON off it.
    pub json: Option<bool>,
}

/// Every problem found, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the configuration has {} problem(s); nothing was started",
            self.0.len()
        )?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// The same, but for the secrets that they quote.
    pub fn masked(mut self, mask: &Mask) -> Problems {
        for Problem { name, what } in &mut self.0 {
            *name = mask.apply(name).into_owned();
            *what = mask.apply(what).into_owned();
        }
        self
    }
}

/// Where a configuration is read from.
struct Sources {
    env: Env,
    /// The file that was named, if one was.
    named: Option<PathBuf>,
    file: Option<String>,
    problems: Vec<Problem>,
}

impl Sources {
    fn of_process(file: Option<&Path>) -> Sources {
        let env = Env::of_process();
        let named = file
            .map(Path::to_owned)
            .or_else(|| env.get("MOLTINIT_CONFIG").map(PathBuf::from));
        Sources::read(env, named)
    }

    fn read(mut env: Env, named: Option<PathBuf>) -> Sources {
        const DEFAULT_FILE: &str = "/etc/moltinit/moltinit.toml";
        let mut problems = env.read_files(names::known());
        let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => None,
            Err(error) => {
                problems.push(Problem::new(
                    path.display().to_string(),
                    format!("cannot read this file: {error}"),
                ));
                None
            }
        };
        Sources {
            env,
            named,
            file,
            problems,
        }
    }
}

/// Every secret that this process was given, however wrong the rest of its configuration is.
pub fn mask(file: Option<&Path>) -> Mask {
    let sources = Sources::of_process(file);
    Mask::new(load::secrets(sources.file.as_deref(), &sources.env))
}

impl Config {
    /// A local directory, the same at every boot of a disk, for what is half-way: a restore's journal, a commit's spool.
    /// Beside the data, since a restore puts another in the data's place.
    pub fn work_dir(&self) -> PathBuf {
        let name = self.data_dir.file_name().unwrap_or_default().to_string_lossy();
        self.data_dir.with_file_name(format!("{name}-work"))
    }

    /// Reads the file and the environment of this process.
    ///
    /// `file` is the command line's; without it `MOLTINIT_CONFIG`, then `/etc/moltinit/moltinit.toml` if it is there.
    ///
    /// # Errors
    /// Every problem at once; exit code 78.
    pub fn from_process(file: Option<&Path>) -> Result<Config, Problems> {
        Config::of(Sources::of_process(file))
    }

    /// This configuration with what another environment says over its own, as far as it may be said late: keys, the
    /// Worker's address, the browser, and the store if none was named. Its secrets are masked from here on.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn late(&self, mut over: Env) -> Result<Config, Problems> {
        let problems = over.read_files(names::known());
        self.mask.add(names::secrets_of(&over));
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let env = self.env.clone().overlaid(&over);
        let env = match self.store.durable {
            true => env,
            false => load::bringing_a_bucket(env, &Machine::look()),
        };
        let late = Config::of(Sources::read(env, self.file.clone()))?;
        let store = match self.store.durable {
            true => self.store.clone(),
            false => late.store,
        };
        Ok(Config {
            store,
            admin_token: late.admin_token,
            cdp: late.cdp,
            model_fallbacks: late.model_fallbacks,
            callback: late.callback,
            env: late.env,
            ..self.clone()
        })
    }

    fn of(sources: Sources) -> Result<Config, Problems> {
        let mut problems = sources.problems;
        match load(sources.file.as_deref(), sources.env, &Machine::look()) {
            Ok(config) if problems.is_empty() => Ok(Config {
                file: sources.named,
                ..config
            }),
            Ok(_) => Err(Problems(problems)),
            Err(Problems(more)) => {
                problems.extend(more);
                Err(Problems(problems))
            }
        }
    }
}
