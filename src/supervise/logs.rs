//! What services write: the last lines of each in memory, whoever follows along, and the supervisor's own log.
//!
//! A service is read as fast as it writes, so that none ever waits for its log. What is more than can be kept is
//! dropped and counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_util::{Stream as Sequence, StreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, sync::broadcast, time::timeout};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tracing::{info, warn};

use crate::config::secret::Mask;

use super::lines::{LINE_MAX, Lines, Piece, SLACK, WINDOW};

/// Lines and bytes that are kept of each service.
const KEEP_LINES: usize = 2_000;
const KEEP_BYTES: usize = 1024 * 1024;
/// Lines that somebody who follows may be behind before some are missed.
const FOLLOW_BEHIND: usize = 512;
/// Lines a second of one service that are passed on to the supervisor's log for long, and in one go.
const PASS_RATE: f64 = 500.0;
const PASS_BURST: f64 = 1_000.0;
const READ: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One line of a service, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Counts up from 0, over all runs of the service; a gap is a line that was not kept.
    pub seq: u64,
    pub time: Timestamp,
    pub stream: Stream,
    pub text: String,
}

/// What somebody who follows sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Line(Arc<Line>),
    /// So many lines were written faster than they were followed.
    Missed(u64),
}

/// The log of one service.
pub struct Log {
    service: String,
    mask: Mask,
    kept: Mutex<Kept>,
    followers: broadcast::Sender<Arc<Line>>,
}

struct Kept {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    next: u64,
    pass: Allowance,
}

impl Log {
    pub fn new(service: &str, mask: Mask) -> Arc<Self> {
        Arc::new(Log {
            service: service.to_owned(),
            mask,
            kept: Mutex::new(Kept {
                lines: VecDeque::new(),
                bytes: 0,
                next: 0,
                pass: Allowance::new(Instant::now()),
            }),
            followers: broadcast::channel(FOLLOW_BEHIND).0,
        })
    }

    /// The number that the next line will have.
    pub fn next(&self) -> u64 {
        self.lock().next
    }

    /// The last `n` lines from number `from` on.
    pub fn last(&self, n: usize, from: u64) -> Vec<Arc<Line>> {
        let kept = self.lock();
        let skip = kept.lines.len().saturating_sub(n);
        kept.lines
            .iter()
            .skip(skip)
            .filter(|line| line.seq >= from)
            .cloned()
            .collect()
    }

    /// The last `n` lines and then every one that comes.
    pub fn follow(&self, n: usize) -> impl Sequence<Item = Followed> + Send + Unpin + use<> {
        // Both under the lock that lines are added under: none is missed and none seen twice.
        let kept = self.lock();
        let skip = kept.lines.len().saturating_sub(n);
        let past: Vec<_> = kept.lines.iter().skip(skip).cloned().map(Followed::Line).collect();
        let coming = BroadcastStream::new(self.followers.subscribe()).map(|line| match line {
            Ok(line) => Followed::Line(line),
            Err(BroadcastStreamRecvError::Lagged(missed)) => Followed::Missed(missed),
        });
        stream::iter(past).chain(coming)
    }

    /// Takes in a stream until whoever writes it has closed it.
    pub async fn take_in(self: Arc<Self>, mut from: Receiver, stream: Stream) {
        let mut lines = Lines::new(Instant::now());
        let mut bytes = Vec::new();
        let mut each = |piece: Piece<'_>| self.add(stream, &piece);
        loop {
            bytes.reserve(READ);
            let more = from.read_buf(&mut bytes);
            let more = if lines.is_holding() {
                match timeout(WINDOW, more).await {
                    Ok(more) => more,
                    Err(_) => {
                        lines.pause(&mut each);
                        continue;
                    }
                }
            } else {
                more.await
            };
            match more {
                Ok(0) | Err(_) => break,
                Ok(_) => lines.feed(&mut bytes, Instant::now(), &mut each),
            }
        }
        lines.end(&mut each);
    }

    fn add(&self, stream: Stream, piece: &Piece<'_>) {
        let text = match *piece {
            Piece::Line { bytes, cut } => self.text(bytes, cut),
            Piece::Dropped(lines) => format!("[{lines} lines dropped: they were written faster than they can be kept]"),
        };
        let mut kept = self.lock();
        if let Some(suppressed) = kept.pass.take(Instant::now()) {
            if suppressed > 0 {
                warn!(
                    target: "service",
                    service = self.service,
                    "{suppressed} lines were not passed on here: they came too fast"
                );
            }
            info!(target: "service", service = self.service, stream = stream.name(), "{text}");
        }
        let line = Arc::new(Line {
            seq: kept.next,
            time: Timestamp::now(),
            stream,
            text,
        });
        kept.push(Arc::clone(&line));
        // Nobody may be following.
        let _ = self.followers.send(line);
    }

    fn text(&self, bytes: &[u8], cut: usize) -> String {
        let lossy = String::from_utf8_lossy(bytes);
        let mut text = self.mask.apply(&lossy).into_owned();
        if text.len() > LINE_MAX || cut > 0 {
            // At the end of what was cut a secret's first half may stand, however little is left of the rest.
            let whole = if cut > 0 {
                text.len().saturating_sub(SLACK)
            } else {
                text.len()
            };
            let end = text.floor_char_boundary(whole.min(LINE_MAX));
            let cut = cut + (text.len() - end);
            text.truncate(end);
            text.push_str(&format!("[{cut} bytes cut]"));
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, line: Arc<Line>) {
        self.next += 1;
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > KEEP_LINES || self.bytes > KEEP_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
    }
}

/// How many lines may still be passed on: a token bucket.
struct Allowance {
    left: f64,
    at: Instant,
    suppressed: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Allowance {
            left: PASS_BURST,
            at: now,
            suppressed: 0,
        }
    }

    /// `Some` if a line may be passed on, with how many before it were not.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * PASS_RATE).min(PASS_BURST);
        self.at = now;
        if self.left < 1.0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;
    use crate::pid1::pipe;

    fn log() -> Arc<Log> {
        Log::new("a", Mask::new(["hunter22".to_owned()]))
    }

    async fn take_in(log: &Arc<Log>, write: impl FnOnce(&mut std::fs::File) + Send + 'static) {
        let (read, end) = pipe().unwrap();
        let writer = std::thread::spawn(move || write(&mut end.into()));
        Arc::clone(log).take_in(read, Stream::Stdout).await;
        writer.join().unwrap();
    }

    fn texts(log: &Log) -> Vec<String> {
        log.last(usize::MAX, 0).iter().map(|line| line.text.clone()).collect()
    }

    #[tokio::test]
    async fn lines_are_masked_and_made_valid() {
        let log = log();
        take_in(&log, |to| {
            to.write_all(b"password hunter22\r\n\xff\xfe ok\n\nlast").unwrap()
        })
        .await;
        assert_eq!(texts(&log), ["password [secret]", "\u{fffd}\u{fffd} ok", "", "last"]);
    }

    #[tokio::test]
    async fn a_line_of_50_mb_is_cut_and_slows_nobody() {
        let log = log();
        take_in(&log, |to| {
            for _ in 0..50 {
                to.write_all(&vec![b'x'; 1_000_000]).unwrap();
            }
            // The flood's window has to pass before a line after it is taken whole.
            std::thread::sleep(Duration::from_millis(300));
            to.write_all(b"\nafter\n").unwrap();
        })
        .await;
        let texts = texts(&log);
        assert_eq!(texts.last().unwrap(), "after");
        assert!(texts.iter().all(|text| text.len() < LINE_MAX + 100));
    }

    #[tokio::test]
    async fn a_secret_at_the_cut_does_not_show_its_first_half() {
        let log = log();
        take_in(&log, |to| {
            let mut line = vec![b'x'; LINE_MAX - 4];
            line.extend_from_slice(b"hunter22yyyyyyyyy\n");
            to.write_all(&line).unwrap();
        })
        .await;
        assert!(!texts(&log)[0].contains("hunt"));
        assert!(texts(&log)[0].ends_with("bytes cut]"));
    }

    #[test]
    fn secrets_before_the_cut_do_not_bring_the_half_behind_it_into_sight() {
        let log = log();
        let mut line = b"hunter22".repeat((LINE_MAX + SLACK) / 8 - 1);
        line.extend_from_slice(b"....hunt");
        log.add(Stream::Stdout, &Piece::Line { bytes: &line, cut: 4 });
        assert!(!texts(&log)[0].contains("hunt"), "{:?}", texts(&log));
        let mut long = b"hunter22, which was said ".repeat(LINE_MAX / 25);
        long.resize(LINE_MAX + SLACK - 4, b'.');
        long.extend_from_slice(b"hunt");
        log.add(Stream::Stdout, &Piece::Line { bytes: &long, cut: 4 });
        assert!(!texts(&log)[1].contains("hunt"));
    }

    #[tokio::test]
    async fn a_flood_is_read_at_its_own_speed_and_its_end_is_kept() {
        let log = log();
        take_in(&log, |to| {
            let chunk: Vec<u8> = b"0123456789012345678901234567890123456789012345678\n".repeat(20_000);
            for _ in 0..400 {
                to.write_all(&chunk).unwrap();
            }
            to.write_all(b"the end\n").unwrap();
        })
        .await;
        let kept = log.last(usize::MAX, 0);
        assert_eq!(kept.last().unwrap().text, "the end");
        assert!(kept.len() <= KEEP_LINES);
        assert!(kept.iter().map(|line| line.text.len()).sum::<usize>() <= KEEP_BYTES);
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_between_the_past_and_the_present() {
        let log = log();
        take_in(&log, |to| to.write_all(b"a\nb\nc\n").unwrap()).await;
        let mut follow = log.follow(2);
        take_in(&log, |to| to.write_all(b"d\n").unwrap()).await;
        for wanted in ["b", "c", "d"] {
            match follow.next().await {
                Some(Followed::Line(line)) => assert_eq!(line.text, wanted),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn who_follows_too_slowly_is_told_what_was_missed() {
        let log = log();
        let mut follow = log.follow(0);
        take_in(&log, |to| {
            for n in 0..2 * FOLLOW_BEHIND {
                writeln!(to, "{n}").unwrap();
            }
        })
        .await;
        assert_eq!(follow.next().await, Some(Followed::Missed(FOLLOW_BEHIND as u64)));
    }

    #[test]
    fn what_is_passed_on_is_bounded_and_the_rest_counted() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let passed = (0..5_000).filter(|_| allowance.take(start).is_some()).count();
        assert_eq!(passed, PASS_BURST as usize);
        assert_eq!(allowance.take(start + Duration::from_secs(1)), Some(4_000));
    }
}
