//! From what a service writes to lines, at whatever speed and however long.

use std::{
    mem,
    time::{Duration, Instant},
};

/// A longer line is cut.
pub const LINE_MAX: usize = 16 * 1024;
/// Kept beyond [`LINE_MAX`] until secrets are struck out, so that no secret is cut in two and shows its first half.
pub const SLACK: usize = 4 * 1024;
/// What is taken of a stream in each [`WINDOW`]; the rest is counted and dropped, but for the last of it.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;
pub const WINDOW: Duration = Duration::from_millis(100);

/// A line, or the beginning of one.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Line {
        bytes: &'a [u8],
        /// Bytes that were cut off its end.
        cut: usize,
    },
    /// So many lines were dropped here.
    Dropped(u64),
}

/// One stream being taken apart.
#[derive(Debug)]
pub struct Lines {
    partial: Vec<u8>,
    cut: usize,
    /// Some of the line that has begun was dropped, so nothing that follows of it belongs to what there is.
    broken: bool,
    /// The last that was read beyond what the window takes: the end of a flood is worth more than its middle.
    held: Vec<u8>,
    dropped: u64,
    window: Instant,
    taken: usize,
}

impl Lines {
    pub fn new(now: Instant) -> Self {
        Lines {
            partial: Vec::new(),
            cut: 0,
            broken: false,
            held: Vec::new(),
            dropped: 0,
            window: now,
            taken: 0,
        }
    }

    /// Takes the next bytes apart; `bytes` comes back empty, its memory to be used again.
    pub fn feed(&mut self, bytes: &mut Vec<u8>, now: Instant, each: &mut impl FnMut(Piece<'_>)) {
        if now.saturating_duration_since(self.window) >= WINDOW {
            (self.window, self.taken) = (now, 0);
        }
        self.taken += bytes.len();
        if self.taken > WINDOW_BYTES {
            self.drop_held();
            mem::swap(&mut self.held, bytes);
        } else {
            self.take_up(each);
            self.split(bytes, each);
        }
        bytes.clear();
    }

    /// Whether there is something that waits for the window to pass. Then [`pause`](Self::pause) is wanted if nothing
    /// more comes meanwhile.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Nothing has come for a whole window: the flood is over.
    pub fn pause(&mut self, each: &mut impl FnMut(Piece<'_>)) {
        self.take_up(each);
    }

    /// The stream has ended: what there is of a last line is one.
    pub fn end(mut self, each: &mut impl FnMut(Piece<'_>)) {
        self.take_up(each);
        if !self.partial.is_empty() || self.broken {
            self.emit(each);
        }
    }

    fn drop_held(&mut self) {
        let lines = newlines(&self.held);
        if lines == 0 && self.dropped == 0 && !self.held.is_empty() {
            // All of it was of the line that has begun.
            self.cut += self.held.len();
            self.broken = true;
        }
        self.dropped += lines;
        self.held.clear();
    }

    /// Goes on after a flood, from the first line in what was held that is whole.
    fn take_up(&mut self, each: &mut impl FnMut(Piece<'_>)) {
        if self.held.is_empty() {
            return;
        }
        let held = mem::take(&mut self.held);
        if self.dropped == 0 {
            // No line was lost in between.
            return self.split(&held, each);
        }
        self.dropped += 1;
        self.partial.clear();
        (self.cut, self.broken) = (0, false);
        each(Piece::Dropped(mem::take(&mut self.dropped)));
        if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            self.split(&held[end + 1..], each);
        }
    }

    fn split(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Piece<'_>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.partial.is_empty() && !self.broken && end <= LINE_MAX + SLACK {
                each(line(&bytes[..end], 0));
            } else {
                self.append(&bytes[..end]);
                self.emit(each);
            }
            bytes = &bytes[end + 1..];
        }
        self.append(bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = match self.broken {
            true => 0,
            false => (LINE_MAX + SLACK).saturating_sub(self.partial.len()),
        };
        let (fits, cut) = bytes.split_at(bytes.len().min(room));
        self.partial.extend_from_slice(fits);
        self.cut += cut.len();
    }

    fn emit(&mut self, each: &mut impl FnMut(Piece<'_>)) {
        each(line(&self.partial, mem::take(&mut self.cut)));
        self.partial.clear();
        self.broken = false;
    }
}

fn line(bytes: &[u8], cut: usize) -> Piece<'_> {
    let bytes = if cut == 0 {
        bytes.strip_suffix(b"\r").unwrap_or(bytes)
    } else {
        bytes
    };
    Piece::Line { bytes, cut }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(chunks: &[Vec<u8>], now: Instant) -> (Vec<String>, u64, usize) {
        let (mut lines, mut dropped, mut cut_off) = (Vec::new(), 0, 0);
        let mut each = |piece: Piece<'_>| match piece {
            Piece::Line { bytes, cut } => {
                lines.push(String::from_utf8(bytes.to_vec()).unwrap());
                cut_off += cut;
            }
            Piece::Dropped(count) => dropped += count,
        };
        let mut splitter = Lines::new(now);
        for chunk in chunks {
            splitter.feed(&mut chunk.clone(), now, &mut each);
        }
        splitter.end(&mut each);
        (lines, dropped, cut_off)
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_is_whole() {
        let mut chunks = vec![vec![b'x'; 1 << 16]; 16];
        chunks.push(b"y\nnext\n".to_vec());
        let (lines, dropped, cut) = collect(&chunks, Instant::now());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len() + cut, (1 << 20) + 1);
        assert_eq!((lines[1].as_str(), dropped), ("next", 0));
    }

    #[test]
    fn of_a_flood_the_beginning_and_the_end_are_kept_and_the_rest_is_counted() {
        let total = 1_000_000_u64;
        let all: Vec<u8> = (0..total).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let chunks: Vec<Vec<u8>> = all.chunks(50_000).map(<[u8]>::to_vec).collect();
        let (lines, dropped, _) = collect(&chunks, Instant::now());
        assert_eq!((lines[0].as_str(), lines.last().unwrap().as_str()), ("0", "999999"));
        assert!(lines.len() < 400_000);
        // A line cut in two at each end of the gap may be counted on either side of it.
        assert!((lines.len() as u64 + dropped).abs_diff(total) <= 1);
    }

    #[test]
    fn the_end_of_a_flood_does_not_wait_for_what_never_comes() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let mut last = String::new();
        let mut each = |piece: Piece<'_>| {
            if let Piece::Line { bytes, .. } = piece {
                last = String::from_utf8(bytes.to_vec()).unwrap();
            }
        };
        lines.feed(&mut vec![b'\n'; WINDOW_BYTES], now, &mut each);
        assert!(!lines.is_holding());
        lines.feed(&mut b"the last\n".to_vec(), now, &mut each);
        assert!(lines.is_holding());
        lines.pause(&mut each);
        assert!(!lines.is_holding());
        assert_eq!(last, "the last");
    }

    #[test]
    fn what_lies_on_either_side_of_a_gap_is_not_joined() {
        let mut flood = vec![b'\n'; WINDOW_BYTES - 5];
        flood.extend_from_slice(b"begun");
        let chunks = [flood, b"dropped".to_vec(), b" not its end\nnext\n".to_vec()];
        let (lines, dropped, cut) = collect(&chunks, Instant::now());
        let lines = &lines[lines.len() - 2..];
        assert_eq!((lines, dropped), (&["begun".to_owned(), "next".to_owned()][..], 0));
        assert_eq!(cut, "dropped not its end".len());
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_added(
            text in "[a-z\n]{0,200}",
            cuts in prop::collection::vec(0..200usize, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<Vec<u8>> = cuts.windows(2).map(|w| text.as_bytes()[w[0]..w[1]].to_vec()).collect();
            let (lines, dropped, cut) = collect(&chunks, Instant::now());
            prop_assert_eq!(lines, text.lines().map(str::to_owned).collect::<Vec<_>>());
            prop_assert_eq!((dropped, cut), (0, 0));
        }
    }
}
