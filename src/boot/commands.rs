//! What may be asked of the running supervisor, carried out by those whose business it is.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};

use super::{
    keeper::Keeper,
    late::{Late, Taken},
};
use crate::{
    gateway::{Gateway, rpc::RpcError},
    report::control::{Action, Answer, Control, Devices, LogLine, Piece, Refusal, Stream},
    state::model::{CommitId, Meta},
    supervise::{self, CommandError, Followed, Handle, Line},
};

/// The service that is the agent.
const GATEWAY: &str = "gateway";

pub struct Commands {
    pub services: Handle,
    pub keeper: Keeper,
    pub gateway: Arc<Gateway>,
    pub late: Arc<Late>,
}

impl Commands {
    fn known(&self, service: &str) -> Result<(), Refusal> {
        self.services.logs(service, 0).map(drop).map_err(refusal)
    }
}

impl Control for Commands {
    fn alive(&self) -> bool {
        self.services.is_alive()
    }

    fn service(&self, name: &str, action: Action) -> Result<Answer<()>, Refusal> {
        self.known(name)?;
        let (services, name) = (self.services.clone(), name.to_owned());
        let done = async move {
            match action {
                Action::Start => services.start(&name).await,
                Action::Stop => services.stop(&name).await,
                Action::Restart => services.restart(&name).await,
            }
            .map_err(refusal)
        };
        Ok(done.boxed())
    }

    fn attach(&self, name: &str, env: BTreeMap<String, String>) -> Result<Answer<i32>, Refusal> {
        self.known(name)?;
        let (services, late, name) = (self.services.clone(), Arc::clone(&self.late), name.to_owned());
        let attached = async move {
            let Taken { env, renew } = match name == GATEWAY {
                true => late.take(env).await?,
                false => Taken { env, renew: false },
            };
            let env = env.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            services.attach(&name, env, renew).await.map_err(refusal)
        };
        Ok(attached.boxed())
    }

    fn logs(&self, service: &str, count: usize) -> Answer<Vec<LogLine>> {
        let lines = self.services.logs(service, count).map_err(refusal);
        let shown = lines.map(|lines| lines.iter().map(|line| shown(line)).collect());
        std::future::ready(shown).boxed()
    }

    fn follow(&self, service: &str, count: usize) -> Answer<BoxStream<'static, Piece>> {
        let followed = self.services.follow(service, count).map_err(refusal);
        let pieces = followed.map(|followed| followed.map(|piece| told(&piece)).boxed());
        std::future::ready(pieces).boxed()
    }

    fn snapshots(&self) -> Answer<Vec<Meta>> {
        let keeper = self.keeper.clone();
        async move { keeper.snapshots().await }.boxed()
    }

    fn snapshot_now(&self) -> Answer<Meta> {
        let keeper = self.keeper.clone();
        async move { keeper.commit_now().await }.boxed()
    }

    fn restore(&self, id: CommitId) -> Result<Answer<()>, Refusal> {
        Ok(self.keeper.restore(id)?.boxed())
    }

    fn devices(&self) -> Answer<Devices> {
        let gateway = Arc::clone(&self.gateway);
        async move {
            let found = gateway.devices().await.map_err(unanswered)?;
            Ok(Devices {
                pending: values(&found.pending),
                paired: values(&found.paired),
            })
        }
        .boxed()
    }

    fn approve(&self, request: &str) -> Answer<()> {
        let (gateway, request) = (Arc::clone(&self.gateway), request.to_owned());
        async move { gateway.approve(&request).await.map_err(unanswered) }.boxed()
    }
}

fn values(devices: &[impl serde::Serialize]) -> Vec<serde_json::Value> {
    devices
        .iter()
        .filter_map(|device| serde_json::to_value(device).ok())
        .collect()
}

fn refusal(error: CommandError) -> Refusal {
    let why = error.to_string();
    match error {
        CommandError::Unknown { .. } => Refusal::NotFound(why),
        CommandError::NotUp { .. } => Refusal::Failed(why),
        CommandError::ShuttingDown => Refusal::Unavailable(why),
    }
}

fn unanswered(error: RpcError) -> Refusal {
    let why = error.to_string();
    match error {
        RpcError::NoSuchRequest(_) => Refusal::NotFound(why),
        RpcError::Refused { .. } => Refusal::Conflict(why),
        RpcError::Unknown(_) => Refusal::Failed(why),
        RpcError::Unreachable { .. } | RpcError::Starting | RpcError::Deadline(_) => Refusal::Unavailable(why),
    }
}

fn shown(line: &Line) -> LogLine {
    LogLine {
        time: line.time,
        stream: match line.stream {
            supervise::Stream::Stdout => Stream::Stdout,
            supervise::Stream::Stderr => Stream::Stderr,
        },
        text: line.text.to_string(),
    }
}

fn told(piece: &Followed) -> Piece {
    match piece {
        Followed::Line(line) => Piece::Line(shown(line)),
        Followed::Missed(missed) => Piece::Missed { missed: *missed },
    }
}
