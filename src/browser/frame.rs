//! WebSocket frames on the wire (RFC 6455, section 5.2): headers read as they come, and the few frames of our own.

/// The opcodes that matter here.
pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// The longest header: two bytes, eight of length, four of mask.
const LONGEST_HEADER: usize = 14;
/// A control frame's payload has at most this many bytes (section 5.5).
pub const CONTROL_MAX: usize = 125;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub fin: bool,
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    pub payload: u64,
    /// Bytes of the header itself.
    pub len: usize,
}

impl Header {
    pub fn is_control(&self) -> bool {
        self.opcode >= 0x8
    }
}

/// What is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("a reserved bit is set, and no extension was agreed on")]
    Reserved,
    #[error("the opcode {0:#x} is not one")]
    Opcode(u8),
    #[error("a control frame is fragmented or too long")]
    Control,
    #[error("a length is not in its shortest form or beyond all bounds")]
    Length,
}

/// The header at the start of `bytes`, or `None` if there is more of it to come.
///
/// # Errors
/// What comes is not a frame.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(BadFrame::Reserved);
    }
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    if !matches!(opcode, 0x0..=0x2 | 0x8..=0xa) {
        return Err(BadFrame::Opcode(opcode));
    }
    // How many bytes of length follow, and the least that is worth them: "the minimal number of bytes MUST be used".
    let (extended, least) = match second & 0x7f {
        126 => (2, 126),
        127 => (8, 1 << 16),
        _ => (0, 0),
    };
    let masked = second & 0x80 != 0;
    let len = 2 + extended + if masked { 4 } else { 0 };
    if bytes.len() < len {
        return Ok(None);
    }
    let payload = match extended {
        0 => u64::from(second & 0x7f),
        _ => rest[..extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    if payload < least || payload > i64::MAX as u64 {
        return Err(BadFrame::Length);
    }
    if opcode >= 0x8 && (!fin || extended > 0) {
        return Err(BadFrame::Control);
    }
    let mask = masked.then(|| [bytes[len - 4], bytes[len - 3], bytes[len - 2], bytes[len - 1]]);
    Ok(Some(Header {
        fin,
        opcode,
        mask,
        payload,
        len,
    }))
}

/// Masks or unmasks a payload, of which `at` bytes went before.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4], at: u64) {
    for (byte, index) in payload.iter_mut().zip(at..) {
        *byte ^= mask[(index % 4) as usize];
    }
}

/// One whole frame. A client's frames are masked; ours are not secret, so the key is zero and the payload plain.
pub fn encode(opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LONGEST_HEADER + payload.len());
    frame.push(0x80 | opcode);
    let bit = if masked { 0x80 } else { 0 };
    match payload.len() {
        len @ 0..=125 => frame.push(bit | len as u8),
        len @ 126..=0xffff => {
            frame.push(bit | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(bit | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend([0; 4]);
    }
    frame.extend(payload);
    frame
}

/// A close frame: a code, and as much of the reason as it may carry.
pub fn close(code: u16, text: &str, masked: bool) -> Vec<u8> {
    let payload = [&code.to_be_bytes()[..], reason(text).as_bytes()].concat();
    encode(CLOSE, &payload, masked)
}

/// As much of a text as a close frame may carry.
pub fn reason(text: &str) -> &str {
    let mut cut = text.len().min(CONTROL_MAX - 2);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    &text[..cut]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_example_of_the_standard() {
        // Section 5.7: a masked "Hello".
        let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let found = header(&bytes).unwrap().unwrap();
        assert_eq!((found.opcode, found.fin, found.payload, found.len), (TEXT, true, 5, 6));
        let mut payload = bytes[6..].to_vec();
        apply_mask(&mut payload, found.mask.unwrap(), 0);
        assert_eq!(payload, b"Hello");
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, expected) in [
            (&[0xc1, 0x00][..], BadFrame::Reserved),
            (&[0x83, 0x00], BadFrame::Opcode(3)),
            (&[0x09, 0x00], BadFrame::Control),
            (&[0x89, 126, 0, 126], BadFrame::Control),
            (&[0x81, 126, 0, 5], BadFrame::Length),
            (&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0], BadFrame::Length),
        ] {
            assert_eq!(header(bytes), Err(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = close(1011, &"ä".repeat(100), false);
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(
            opcode in prop::sample::select(vec![TEXT, 2, 0]), len in 0usize..70_000, masked: bool, cut in 0usize..14,
        ) {
            let frame = encode(opcode, &vec![7; len], masked);
            let found = header(&frame).unwrap().unwrap();
            prop_assert_eq!((found.fin, found.opcode, found.payload), (true, opcode, len as u64));
            prop_assert_eq!(found.mask, masked.then_some([0; 4]));
            prop_assert_eq!(frame.len(), found.len + len);
            if cut < found.len {
                prop_assert_eq!(header(&frame[..cut]), Ok(None));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = header(&bytes);
        }
    }
}
