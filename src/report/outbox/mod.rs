//! The outbox: every event numbered and kept on disk before anybody is told of it.
//!
//! SQLite blocks, so it lives on a thread of its own. Whoever appends never waits; what cannot be written (a full
//! disk) waits in memory, in order and bounded, and is tried again.
//!
//! The log itself is in the run directory: it outlives a crash of moltinit, not its container. What is undelivered
//! is [carried](carry) over to the next container by a copy in the data directory, a root of every snapshot.

mod carry;
mod queue;
mod table;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use ulid::Ulid;

pub use self::table::{New, Span};
use self::{
    carry::Carrier,
    queue::Queue,
    table::{BOUND, Counts, Table},
};
use super::{cost::Costs, record::Record, status};

const FILE: &str = "outbox.sqlite";

/// How long until a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// So many events are stored in one transaction at most.
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("cannot open the outbox {}: {source}; see that the directory is on a local disk with room", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("cannot make the directory {} of the outbox: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("outbox: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot write the outbox's copy {}: {source}", path.display())]
    Carry { path: PathBuf, source: io::Error },
    #[error("the outbox has ended")]
    Ended,
}

enum Command {
    /// Something is in the queue.
    Wake,
    Post(bool),
    Next(oneshot::Sender<Result<Option<Record>, OutboxError>>),
    Delivered(Ulid, u64, oneshot::Sender<Result<(), OutboxError>>),
    Read(Ulid, u64, u32, oneshot::Sender<Result<Page, OutboxError>>),
    Adopt(PathBuf, oneshot::Sender<Result<Option<Costs>, OutboxError>>),
    Carry(oneshot::Sender<Result<(), OutboxError>>),
    Flush(oneshot::Sender<()>),
}

/// Events that came with a state, at `copy`, are taken over and read as far as they can be.
#[cfg(any(test, fuzzing))]
pub fn fuzz(copy: &Path) {
    let mut table = Table::open(Path::new(":memory:"), Ulid::nil(), "default", BOUND).expect("an empty log");
    if carry::absorb(&mut table, copy).is_err() {
        return;
    }
    if table.next().is_err_and(|error| table::is_unreadable(&error)) {
        table.set_aside().expect("a log that can be written");
        table.next().expect("rows that can be read");
    }
}

/// A part of the log.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<Record>,
    pub spans: Vec<Span>,
}

/// The way to the outbox's thread, which ends when the last clone of this is gone.
#[derive(Clone)]
pub struct Outbox {
    commands: mpsc::Sender<Command>,
    progress: watch::Receiver<status::Events>,
    queue: Arc<Queue>,
}

impl Outbox {
    /// Starts the thread, which opens the log in `dir`. Where that cannot be done the log is kept in memory and
    /// the status says why: no boot fails for its events.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(dir: &Path, boot: Ulid, instance: &str) -> io::Result<Outbox> {
        let (commands, receiver) = mpsc::channel();
        let (publish, progress) = watch::channel(status::Events::default());
        let queue = Arc::new(Queue::default());
        let begin = {
            let (dir, instance, queue) = (dir.to_owned(), instance.to_owned(), Arc::clone(&queue));
            move || match Worker::open(&dir, boot, &instance, publish, queue) {
                Ok(worker) => worker.run(&receiver),
                Err(error) => tracing::error!(%error, "SQLite does not work at all: no event is kept"),
            }
        };
        std::thread::Builder::new()
            .name("outbox".into())
            .stack_size(256 * 1024)
            .spawn(begin)?;
        Ok(Outbox {
            commands,
            progress,
            queue,
        })
    }

    /// Numbers and stores an event, some time soon; the order is that of the calls.
    pub fn append(&self, event: New) {
        if self.queue.push(event) {
            let _ = self.commands.send(Command::Wake);
        }
    }

    /// Whether somebody wants the events posted. While nobody does, what this boot logs is owed to nobody, and not
    /// carried over to the next container.
    pub fn post(&self, posted: bool) {
        let _ = self.commands.send(Command::Post(posted));
    }

    /// What the log holds, as of the last write.
    pub fn progress(&self) -> watch::Receiver<status::Events> {
        self.progress.clone()
    }

    /// The event to deliver next.
    pub async fn next(&self) -> Result<Option<Record>, OutboxError> {
        self.ask(Command::Next).await?
    }

    pub async fn delivered(&self, boot: Ulid, seq: u64) -> Result<(), OutboxError> {
        self.ask(|reply| Command::Delivered(boot, seq, reply)).await?
    }

    /// At most `limit` events of `boot` after `seq`.
    pub async fn read(&self, boot: Ulid, seq: u64, limit: u32) -> Result<Page, OutboxError> {
        self.ask(|reply| Command::Read(boot, seq, limit, reply)).await?
    }

    /// Takes over what an earlier container left undelivered in `dir`, and carries on there what this one leaves.
    /// Ends with the most recent costs that were kept.
    pub async fn adopt(&self, dir: &Path) -> Result<Option<Costs>, OutboxError> {
        self.ask(|reply| Command::Adopt(dir.to_owned(), reply)).await?
    }

    /// Brings the copy for the next container up to date, now. Nothing to do before [`Outbox::adopt`].
    pub async fn carry(&self) -> Result<(), OutboxError> {
        self.ask(Command::Carry).await?
    }

    /// Ends when everything appended so far is stored, or was tried once more.
    pub async fn flush(&self) {
        let _ = self.ask(Command::Flush).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, OutboxError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| OutboxError::Ended)?;
        answer.await.map_err(|_| OutboxError::Ended)
    }
}

struct Worker {
    table: Table,
    file: PathBuf,
    carrier: Option<Carrier>,
    queue: Arc<Queue>,
    /// Taken from the queue, and not stored yet.
    batch: Vec<New>,
    /// Why nothing can be written at present.
    failing: Option<String>,
    /// Why the log is in memory only, for as long as this process lives.
    unkept: Option<String>,
    publish: watch::Sender<status::Events>,
}

impl Worker {
    fn open(
        dir: &Path,
        boot: Ulid,
        instance: &str,
        publish: watch::Sender<status::Events>,
        queue: Arc<Queue>,
    ) -> rusqlite::Result<Worker> {
        let (table, unkept) = match open(dir, boot, instance) {
            Ok(table) => (table, None),
            Err(error) => {
                tracing::error!(%error, "events are kept in memory only");
                let table = Table::open(Path::new(":memory:"), boot, instance, BOUND)?;
                (table, Some(error.to_string()))
            }
        };
        Ok(Worker {
            table,
            file: dir.join(FILE),
            carrier: None,
            queue,
            batch: Vec::new(),
            failing: None,
            unkept,
            publish,
        })
    }

    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        loop {
            self.publish();
            let command = match self.wait() {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => commands.recv_timeout(wait),
            };
            let mut asked = Vec::new();
            match command {
                Ok(command) => self.sort(command, &mut asked),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Whatever has come meanwhile shares one transaction.
            while let Ok(command) = commands.try_recv() {
                self.sort(command, &mut asked);
            }
            self.store();
            for command in asked {
                self.answer(command);
            }
            if let Some(carrier) = &mut self.carrier
                && let Err(error) = carrier.keep_up(&self.table, Instant::now())
            {
                tracing::warn!(%error, "undelivered events cannot be carried over to the next container; trying again");
            }
        }
        self.store();
    }

    /// How long to wait for a command before there is something else to do; `None`: for ever.
    fn wait(&self) -> Option<Duration> {
        let retry = (!self.batch.is_empty() || !self.queue.is_empty()).then_some(RETRY);
        let carry = self.carrier.as_ref().and_then(|carrier| carrier.due_in(Instant::now()));
        retry.into_iter().chain(carry).min()
    }

    fn sort(&mut self, command: Command, asked: &mut Vec<Command>) {
        match command {
            Command::Wake => {}
            Command::Post(posted) => self.table.post(posted),
            other => asked.push(other),
        }
    }

    /// Writes what waits; on failure it goes on waiting.
    fn store(&mut self) {
        loop {
            if self.batch.is_empty() {
                self.batch = self.queue.take(BATCH, Timestamp::now());
            }
            if self.batch.is_empty() {
                return;
            }
            let batch = std::mem::take(&mut self.batch);
            if let Err(error) = self.read_past_damage(|table| table.append(&batch)) {
                self.batch = batch;
                if self.failing.is_none() {
                    tracing::error!(%error, outbox = %self.file.display(), "events cannot be stored; trying again every second");
                }
                self.failing = Some(error.to_string());
                return;
            }
            if self.failing.take().is_some() {
                tracing::info!("events are stored again");
            }
        }
    }

    /// Does what reads the log; rows that cannot be read are set aside, and told as dropped, or they would hold up for
    /// ever all that come after them.
    fn read_past_damage<T>(&mut self, mut work: impl FnMut(&mut Table) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        match work(&mut self.table) {
            Err(error) if table::is_unreadable(&error) => {
                tracing::error!(%error, outbox = %self.file.display(), "events that cannot be read are set aside in the table `unreadable`");
                self.queue.lose(self.table.set_aside()?);
                work(&mut self.table)
            }
            done => done,
        }
    }

    fn answer(&mut self, command: Command) {
        // A caller that has gone away needs no answer.
        match command {
            Command::Wake | Command::Post(_) => {}
            Command::Next(reply) => {
                let next = self.read_past_damage(|table| table.next());
                drop(reply.send(next.map_err(Into::into)));
            }
            Command::Delivered(boot, seq, reply) => {
                let done = self.table.delivered(boot, seq).map_err(Into::into);
                // Whoever asks what is left after this must see it done.
                self.publish();
                drop(reply.send(done));
            }
            Command::Read(boot, seq, limit, reply) => {
                let page = self.read_past_damage(|table| {
                    Ok(Page {
                        events: table.after(boot, seq, limit)?,
                        spans: table.spans()?,
                    })
                });
                drop(reply.send(page.map_err(Into::into)));
            }
            Command::Adopt(dir, reply) => {
                let costs = self.adopt(&dir);
                self.publish();
                drop(reply.send(costs));
            }
            Command::Carry(reply) => {
                let done = match &mut self.carrier {
                    Some(carrier) => carrier.carry(&self.table),
                    None => Ok(()),
                };
                drop(reply.send(done));
            }
            Command::Flush(reply) => {
                self.publish();
                let _ = reply.send(());
            }
        }
    }

    fn adopt(&mut self, dir: &Path) -> Result<Option<Costs>, OutboxError> {
        let own = self.table.costs()?;
        let earlier = carry::absorb(&mut self.table, &dir.join(FILE))?;
        self.carrier = Some(Carrier::new(&dir.join(FILE)));
        Ok(own.into_iter().chain(earlier).max_by(Costs::by_recency))
    }

    fn publish(&self) {
        let now = shown(
            self.table.counts(),
            self.queue.given_up(),
            self.failing.clone().or_else(|| self.unkept.clone()),
        );
        self.publish.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn shown(counts: Counts, given_up: u64, failing: Option<String>) -> status::Events {
    status::Events {
        last_seq: counts.last_seq,
        kept: counts.kept,
        undelivered: counts.undelivered,
        dropped: counts.dropped + given_up,
        failing,
    }
}

/// Opens the outbox in `dir`. A damaged one is moved aside and a new one begun: events are worth less than a boot.
fn open(dir: &Path, boot: Ulid, instance: &str) -> Result<Table, OutboxError> {
    std::fs::create_dir_all(dir).map_err(|source| OutboxError::Directory {
        path: dir.to_owned(),
        source,
    })?;
    let file = dir.join(FILE);
    let failed = |source| OutboxError::Open {
        path: file.clone(),
        source,
    };
    match Table::open(&file, boot, instance, BOUND) {
        Err(rusqlite::Error::SqliteFailure(error, why))
            if matches!(
                error.code,
                rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase
            ) =>
        {
            let aside = dir.join(format!("{FILE}.damaged-{boot}"));
            tracing::error!(
                ?why, outbox = %file.display(), kept = %aside.display(),
                "the outbox is damaged; it is moved aside and a new one begun"
            );
            for (from, to) in with_sidecars(&file).into_iter().zip(with_sidecars(&aside)) {
                let _ = std::fs::rename(from, to);
            }
            Table::open(&file, boot, instance, BOUND).map_err(failed)
        }
        opened => opened.map_err(failed),
    }
}

fn with_sidecars(file: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}
