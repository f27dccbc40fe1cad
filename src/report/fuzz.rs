//! An entry point for what a client may send.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::Router;
use futures_util::{FutureExt, stream::BoxStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    sync::watch,
};
use ulid::Ulid;

use super::{
    board::Board,
    control::{Action, Answer, Control, Devices, LogLine, Piece, Refusal},
    http::{self, Activity, Shared, Way},
    outbox::Outbox,
    settings::Settings,
    status::Status,
};
use crate::{
    config::secret::Secret,
    state::model::{CommitId, Meta},
};

/// In no answer to somebody without the token.
const CANARY: &str = "instance-of-a-canary";

/// A request may want to be kept waiting.
const LONGEST: Duration = Duration::from_millis(50);

/// A supervisor that does nothing for anybody.
struct Nobody;

fn no<T: Send + 'static>() -> Answer<T> {
    std::future::ready(Err(Refusal::Unavailable("not now".to_owned()))).boxed()
}

impl Control for Nobody {
    fn alive(&self) -> bool {
        true
    }

    fn service(&self, name: &str, _: Action) -> Result<Answer<()>, Refusal> {
        Err(Refusal::NotFound(name.to_owned()))
    }

    fn attach(&self, name: &str, _: BTreeMap<String, String>) -> Result<Answer<i32>, Refusal> {
        Err(Refusal::NotFound(name.to_owned()))
    }

    fn logs(&self, _: &str, _: usize) -> Answer<Vec<LogLine>> {
        no()
    }

    fn follow(&self, _: &str, _: usize) -> Answer<BoxStream<'static, Piece>> {
        no()
    }

    fn snapshots(&self) -> Answer<Vec<Meta>> {
        no()
    }

    fn snapshot_now(&self) -> Answer<Meta> {
        no()
    }

    fn restore(&self, id: CommitId) -> Result<Answer<()>, Refusal> {
        Err(Refusal::NotFound(id.to_string()))
    }

    fn devices(&self) -> Answer<Devices> {
        no()
    }

    fn approve(&self, _: &str) -> Answer<()> {
        no()
    }
}

struct Server {
    runtime: Runtime,
    network: Router,
    socket: Router,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    // No directory can be made there, so the log is in memory.
    let outbox = Outbox::start(Path::new("/proc/none"), Ulid::nil(), CANARY).expect("a thread");
    let status = Status::new(CANARY, Ulid::nil(), false, jiff::Timestamp::UNIX_EPOCH);
    let board = Arc::new(Board::new(status, outbox.progress()));
    let settings = Settings {
        admin_token: Some(Secret::new("nobody-guesses-this-token".to_owned())),
        ..Settings::default()
    };
    // The receiver keeps what was sent last.
    let (_, settings) = watch::channel(settings);
    let shared = Arc::new(Shared::new(board, outbox, settings, Arc::new(Nobody), Ulid::nil()));
    Server {
        runtime,
        network: http::router(shared.clone(), Way::Network),
        socket: http::router(shared, Way::Socket),
    }
});

/// All that a connection brings, on both ways in. Nothing that wants the token is shown without it, and no answer is a
/// failure of ours.
pub fn http(data: &[u8]) {
    for (router, shows) in [(&SERVER.network, false), (&SERVER.socket, true)] {
        let said = SERVER.runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let served = http::serve_one(near, router.clone(), Activity::new());
            let asked = async {
                let _ = far.write_all(data).await;
                let _ = far.shutdown().await;
                let mut said = Vec::new();
                let _ = far.read_to_end(&mut said).await;
                said
            };
            let both = async { tokio::join!(served, asked).1 };
            tokio::time::timeout(LONGEST, both).await.unwrap_or_default()
        });
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.starts_with("HTTP/1."), "{said}");
        assert!(!said.contains(" 500 "), "{said}");
        assert!(shows || !said.contains(CANARY), "{said}");
    }
}
