//! From a service's description to a running process.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{net::unix::pipe::Receiver, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    config::service::{Check, Probe, Service},
    pid1::{Child, Spawn, SpawnError, Spawner, Stdio, pipe},
};

use super::{
    care::{Care, Environment, Start},
    ports,
    probe::Notice,
    procfs::MARK,
    scores::Scores,
};

/// How long a keeper may take over anything.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What a keeper wants different from the service's description for one start.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// Another command.
    pub argv: Option<Vec<String>>,
    /// Further environment.
    pub env: Environment,
    /// Variables that are taken out of the environment.
    pub unset: Vec<OsString>,
    pub cwd: Option<PathBuf>,
}

/// A process that has just been started.
pub struct Started {
    pub child: Child,
    pub at: Instant,
    pub stdout: Receiver,
    pub stderr: Receiver,
    pub notice: Option<Notice>,
    pub env: Arc<Environment>,
}

/// What came of a launch.
pub enum Outcome {
    Started(Box<Started>),
    Held(String),
    /// Given up before there was a process, as asked.
    Abandoned,
    Failed {
        code: i32,
        why: String,
    },
}

impl From<SpawnError> for Outcome {
    fn from(error: SpawnError) -> Self {
        Outcome::Failed {
            code: error.exit_code(),
            why: error.to_string(),
        }
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        SpawnError::Fork(error).into()
    }
}

/// Everything needed to launch a service.
pub struct Launcher {
    pub service: Arc<Service>,
    pub care: Arc<dyn Care>,
    pub spawner: Spawner,
    /// Of all services; the service's own is added to it.
    pub env: Arc<Environment>,
    pub scores: Scores,
}

impl Launcher {
    /// Asks the keeper, frees the port, starts the process. Given up as long as there is no process when `abandoned`
    /// says so.
    ///
    /// `attached` is the environment that somebody handed over for this service.
    pub async fn launch(&self, attached: Environment, attempt: u32, abandoned: CancellationToken) -> Outcome {
        let prepared = async {
            let start = within_patience(self.care.before_start(attempt)).await?;
            if let (Start::Go(_), Some(port)) = (&start, ports::of(&self.service)) {
                ports::free(port, &self.service.name).await;
            }
            Ok(start)
        };
        let prepared: Result<Start, String> = tokio::select! {
            prepared = prepared => prepared,
            () = abandoned.cancelled() => return Outcome::Abandoned,
        };
        match prepared {
            Ok(Start::Go(launch)) => self.spawn(attached, launch).await.unwrap_or_else(|outcome| outcome),
            Ok(Start::Hold(why)) => Outcome::Held(why),
            Ok(Start::Fail(why)) | Err(why) => Outcome::Failed { code: 1, why },
        }
    }

    async fn spawn(&self, attached: Environment, launch: Launch) -> Result<Outcome, Outcome> {
        let env = Arc::new(self.environment(attached, launch.env, &launch.unset));
        let mut spawn = Spawn::new(launch.argv.as_ref().unwrap_or(&self.service.command));
        spawn.env = env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        // Ours may be gone: a restore puts another directory in the workspace's place, and that is where some images start.
        spawn.cwd = launch
            .cwd
            .or_else(|| std::env::current_dir().is_err().then(|| "/".into()));
        spawn.oom_score_adj = Some(self.scores.main);
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        (spawn.stdout, spawn.stderr) = (Stdio::Fd(out), Stdio::Fd(err));
        let notice = match &self.service.ready {
            Some(Probe {
                check: Check::Notify { fd },
                ..
            }) => {
                let (notice, end) = Notice::pipe()?;
                spawn.extra_fds.push((end, *fd));
                Some(notice)
            }
            _ => None,
        };
        let spawner = self.spawner.clone();
        // It waits for the program to be read from disk.
        let child = tokio::task::spawn_blocking(move || spawner.spawn(spawn))
            .await
            .map_err(io::Error::from)??;
        Ok(Outcome::Started(Box::new(Started {
            child,
            at: Instant::now(),
            stdout,
            stderr,
            notice,
            env,
        })))
    }

    fn environment(&self, attached: Environment, from_keeper: Environment, unset: &[OsString]) -> Environment {
        let mut env = BTreeMap::clone(&self.env);
        let own = self.service.env.iter();
        env.extend(own.map(|(name, value)| (name.into(), value.into())));
        env.extend(attached);
        env.extend(from_keeper);
        for name in unset {
            env.remove(name);
        }
        env.insert(MARK.into(), self.service.name.clone().into());
        env
    }
}

/// Waits for a keeper, but not for ever, and outlives its panic.
///
/// # Errors
/// It took too long or panicked.
pub async fn within_patience<T>(keeper: BoxFuture<'_, T>) -> Result<T, String> {
    match timeout(PATIENCE, AssertUnwindSafe(keeper).catch_unwind()).await {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(_)) => Err("its keeper panicked".into()),
        Err(_) => Err(format!("its keeper gave no answer within {} s", PATIENCE.as_secs())),
    }
}
