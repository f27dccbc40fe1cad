//! Logs to stderr, from a thread of their own: a full pipe behind stderr loses lines, counted, and blocks nobody.

use std::{
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, secret::Mask};

/// Lines that may wait for stderr before further ones are dropped.
const QUEUE: usize = 1024;
/// How long the end of the process waits for the last lines to be written.
const FLUSH: Duration = Duration::from_millis(500);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where formatted lines go. Secrets are struck out on the way.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    mask: Mask,
}

/// Writes out what is queued when it is dropped, at the end of the process.
pub struct Flush(SyncSender<Message>);

impl Drop for Flush {
    fn drop(&mut self) {
        let (done, written) = mpsc::sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// No thread can be started.
pub fn start(log: &Log, mask: Mask) -> io::Result<Flush> {
    let (sender, receiver) = mpsc::sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let queue = Queue {
        sender: sender.clone(),
        dropped: Arc::clone(&dropped),
        mask,
    };
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&receiver, &dropped, io::stderr()))?;
    let on_terminal = io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(log.filter.clone());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(queue)
        .with_ansi(on_terminal);
    let started = if log.json.unwrap_or(!on_terminal) {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry.with(layer.with_target(false)).try_init()
    };
    debug_assert!(started.is_ok(), "logging was started twice");
    std::panic::set_hook(Box::new(say_panic));
    Ok(Flush(sender))
}

/// A panic is a line like any other: without secrets, in the format of the log, and waiting for no reader of stderr.
fn say_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let place = panic.location().map(ToString::to_string);
    tracing::error!(
        thread = thread.name(),
        place,
        "panicked: {}",
        panic.payload_as_str().unwrap_or("no reason is given")
    );
}

fn write_lines(receiver: &Receiver<Message>, dropped: &AtomicU64, mut out: impl Write) {
    for message in receiver {
        match message {
            Message::Line(line) => {
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(
                        out,
                        r#"{{"level":"WARN","message":"{lost} log lines were dropped: stderr was full"}}"#
                    );
                }
                // A closed stderr is no reason to stop supervising.
                let _ = out.write_all(&line);
            }
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            queue: self,
            bytes: Vec::with_capacity(256),
        }
    }
}

/// One formatted line, queued whole when the formatter is done with it.
struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.bytes);
        let line = self.queue.mask.apply(&text).into_owned().into_bytes();
        if self.queue.sender.try_send(Message::Line(line)).is_err() {
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_masked_and_a_full_queue_drops_them() {
        let (sender, receiver) = mpsc::sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let queue = Queue {
            sender,
            dropped: Arc::clone(&dropped),
            mask: Mask::new(["hunter22".to_owned()]),
        };
        for _ in 0..3 {
            queue.make_writer().write_all(b"password hunter22\n").unwrap();
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        drop(queue);
        let mut out = Vec::new();
        write_lines(&receiver, &dropped, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("2 log lines were dropped") && out.ends_with("password [secret]\n"),
            "{out}"
        );
    }
}
