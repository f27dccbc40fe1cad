//! Where a stream of frames is, and what of it goes on.

use super::{
    frame::{self, BadFrame, Header},
    pulse::OURS,
};

/// A place in a stream of frames.
#[derive(Debug, Default)]
pub struct Position {
    /// A header of which there is more to come.
    header: Vec<u8>,
    /// Bytes of the present frame's payload still to come.
    payload: u64,
    /// A frame that is the answer to a ping of ours, or may be: its header's length and what there is of it.
    pong: Option<(Header, Vec<u8>)>,
    closed: bool,
}

impl Position {
    /// What has been passed on ends with a whole frame.
    pub fn is_between(&self) -> bool {
        self.payload == 0 || self.pong.is_some()
    }

    /// A whole close frame has been passed on. Nothing may follow it.
    pub fn has_closed(&self) -> bool {
        self.closed && self.payload == 0
    }

    /// Takes `bytes` in and puts out what is to be passed on: all but the answers to our pings.
    ///
    /// # Errors
    /// What comes is no frame. What came before it is in `out`.
    pub fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), BadFrame> {
        while !bytes.is_empty() && !self.has_closed() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= here as u64;
                match &mut self.pong {
                    None => out.extend(&bytes[..here]),
                    Some((_, held)) => held.extend(&bytes[..here]),
                }
                if self.payload == 0 {
                    self.end_pong(out);
                }
                bytes = &bytes[here..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(header) = frame::header(&self.header)? {
                self.begin(header, out);
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: Header, out: &mut Vec<u8>) {
        let bytes = std::mem::take(&mut self.header);
        self.closed |= header.opcode == frame::CLOSE;
        self.payload = header.payload;
        if header.opcode == frame::PONG && header.payload == OURS.len() as u64 {
            self.pong = Some((header, bytes));
        } else {
            out.extend(bytes);
        }
    }

    fn end_pong(&mut self, out: &mut Vec<u8>) {
        let Some((header, held)) = self.pong.take() else {
            return;
        };
        let mut payload = held[header.len..].to_vec();
        if let Some(mask) = header.mask {
            frame::apply_mask(&mut payload, mask, 0);
        }
        if payload != OURS {
            out.extend(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::browser::frame::{CLOSE, PING, PONG, TEXT};

    /// A frame as a client or a server writes it.
    fn frame(opcode: u8, fin: bool, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = frame::encode(opcode, payload, mask.is_some());
        if !fin {
            frame[0] &= 0x7f;
        }
        if let Some(mask) = mask {
            let at = frame.len() - payload.len();
            frame[at - 4..at].copy_from_slice(&mask);
            frame::apply_mask(&mut frame[at..], mask, 0);
        }
        frame
    }

    /// Frames between which messages are split up and others stand, and whether each is an answer to a ping of ours.
    fn frames() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
        let payload = || prop::collection::vec(any::<u8>(), 0..300);
        let control = || prop::collection::vec(any::<u8>(), 0..=125);
        let one = prop_oneof![
            3 => (prop::sample::select(vec![TEXT, 2, 0]), any::<bool>(), payload()),
            1 => (prop::sample::select(vec![PING, PONG]), Just(true), control()),
            1 => (prop::sample::select(vec![PING, PONG]), Just(true), Just(OURS.to_vec())),
        ];
        prop::collection::vec((one, any::<Option<[u8; 4]>>()), 0..12).prop_map(|frames| {
            let made = frames.into_iter().map(|((opcode, fin, payload), mask)| {
                let ours = opcode == PONG && payload == OURS;
                (frame(opcode, fin, &payload, mask), ours)
            });
            made.collect()
        })
    }

    proptest! {
        /// In whatever pieces it comes, everything but our own pongs goes on as it is, and where a frame of ours may go
        /// in between, it does not land in another.
        #[test]
        fn all_goes_on_but_the_answers_to_our_pings(frames in frames(), cuts in prop::collection::vec(1usize..40, 1..20)) {
            let stream: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame).copied().collect();
            let expected: Vec<u8> = frames.iter().filter(|(_, ours)| !ours).flat_map(|(frame, _)| frame).copied().collect();
            let mut ends = vec![0];
            for (frame, _) in frames.iter().filter(|(_, ours)| !ours) {
                ends.push(ends[ends.len() - 1] + frame.len());
            }
            let (mut position, mut out, mut rest) = (Position::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                prop_assert_eq!(position.is_between(), ends.contains(&out.len()));
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                prop_assert_eq!(position.pass(piece, &mut out), Ok(()));
                rest = after;
            }
            prop_assert_eq!(out, expected);
        }

        #[test]
        fn what_came_before_garbage_goes_on(frames in frames()) {
            let stream: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame).copied().collect();
            let expected: Vec<u8> = frames.iter().filter(|(_, ours)| !ours).flat_map(|(frame, _)| frame).copied().collect();
            let garbage = [&stream[..], &[0xf0, 0x00]].concat();
            let (mut position, mut out) = (Position::default(), Vec::new());
            prop_assert_eq!(position.pass(&garbage, &mut out), Err(BadFrame::Reserved));
            prop_assert!(position.is_between());
            prop_assert_eq!(&out, &expected);
        }
    }

    #[test]
    fn nothing_follows_a_close() {
        let stream = [frame::close(1000, "bye", false), frame(TEXT, true, b"more", None)].concat();
        let (mut position, mut out) = (Position::default(), Vec::new());
        assert_eq!(position.pass(&stream[..3], &mut out), Ok(()));
        assert!(!position.has_closed());
        assert_eq!(position.pass(&stream[3..], &mut out), Ok(()));
        assert!(position.has_closed());
        assert_eq!(out, frame(CLOSE, true, &stream[2..7], None));
    }
}
