//! Connections: how many, for how long, and how much they may send. Slow or silent clients cost a probe nothing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{StatusCode, header::CONTENT_LENGTH},
    middleware::Next,
    response::{IntoResponse, Response},
    serve::Listener,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::UnixListener, task::AbortHandle};

use super::{
    problem::Problem,
    wire::{Activity, Streamed, Wire},
};

/// From the connection, or the answer before, to the end of a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// For a client that takes nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's body.
const LARGEST_BODY: usize = 1 << 20;
/// Bytes of a request's header, and of what is buffered for a connection.
const LARGEST_HEADER: usize = 16 << 10;
/// At most so many connections; for one more the idle one that has been quiet for the longest is closed, and where none
/// is idle, the poll or stream that has.
const MOST_CONNECTIONS: usize = 512;

/// The control socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another moltinit answers on {}; stop it, or set MOLTINIT_RUN_DIR", .0.display())]
    Taken(PathBuf),
    #[error("cannot make the control socket {}: {source}", path.display())]
    Make { path: PathBuf, source: io::Error },
}

/// A socket that only its owner can open, in place of one that a dead moltinit left.
///
/// # Errors
/// Another moltinit is alive on it, or the directory cannot be written.
pub fn socket(path: &Path) -> Result<UnixListener, SocketError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken(path.to_owned()));
    }
    let make = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Under its name only when it has its mode: nobody else gets in between.
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, path)?;
        Ok(socket)
    };
    make().map_err(|source| SocketError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Answers on `listener` for as long as the runtime lives.
pub async fn serve<L: Listener>(mut listener: L, router: Router) {
    let connections = Arc::new(Connections::default());
    let mut next = 0;
    loop {
        let (io, _) = listener.accept().await;
        connections.make_room();
        let number = next;
        next += 1;
        let activity = Activity::new();
        let place = connections.enter(number, activity.clone());
        let served = one(io, router.clone(), activity);
        let task = tokio::spawn(async move {
            let _place = place;
            served.await;
        });
        connections.runs_as(number, task.abort_handle());
    }
}

pub async fn one<I>(io: I, router: Router, activity: Arc<Activity>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let wire = Wire::new(io, activity.clone(), WRITE_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let _busy = activity.begin();
        let answer = hyper::service::Service::call(&service, request);
        async move {
            let answer: Result<Response, Infallible> = answer.await;
            answer.map(|answer| answer.map(|body| Streamed { body, _busy }))
        }
    });
    // What ends a connection early is the client's business.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(LARGEST_HEADER)
        .serve_connection(TokioIo::new(wire), service)
        .await;
}

/// Who is connected, in the order they came.
#[derive(Default)]
struct Connections(Mutex<BTreeMap<u64, Connection>>);

/// What it is doing, and the task once it runs.
type Connection = (Arc<Activity>, Option<AbortHandle>);

impl Connections {
    /// Closes the one that is worth least if there are as many as there may be: whoever comes may be a probe.
    fn make_room(&self) {
        let mut open = self.open();
        if open.len() < MOST_CONNECTIONS {
            return;
        }
        let least = open.iter().min_by_key(|(_, (activity, _))| activity.worth());
        let least = least.map(|(number, _)| *number);
        if let Some((_, Some(task))) = least.and_then(|number| open.remove(&number)) {
            task.abort();
        }
    }

    fn enter(self: &Arc<Self>, number: u64, activity: Arc<Activity>) -> Place {
        self.open().insert(number, (activity, None));
        Place {
            connections: self.clone(),
            number,
        }
    }

    fn runs_as(&self, number: u64, handle: AbortHandle) {
        // It may have ended already.
        if let Some((_, task)) = self.open().get_mut(&number) {
            *task = Some(handle);
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place, free again when this is gone.
struct Place {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
    }
}

/// Hands a request on once its whole body is here, within bounds of size and time.
pub async fn whole_body(request: Request, next: Next) -> Response {
    let declared = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {LARGEST_BODY} bytes"),
        )
        .into_response()
    };
    if declared.is_some_and(|length| length > LARGEST_BODY) {
        return too_large();
    }
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, LARGEST_BODY)).await {
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
        )
        .into_response(),
        Ok(Err(error)) if is_length(&error) => too_large(),
        Ok(Err(error)) => Problem::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")).into_response(),
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
    }
}

fn is_length(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}
