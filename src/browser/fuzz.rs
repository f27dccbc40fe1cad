//! Entry points for what a client or a browser may send.

use super::{
    bridge::Bridge,
    frame::{self, BadFrame},
    hub,
    position::Position,
};

/// Frames, one after the other. A header that is understood is the one that would be written. What is passed on is the
/// same in one piece and byte by byte.
pub fn frames(mut data: &[u8]) {
    let pass = |piece: usize| {
        let (mut position, mut out) = (Position::default(), Vec::new());
        let passed = data.chunks(piece).try_for_each(|bytes| position.pass(bytes, &mut out));
        (passed, out)
    };
    assert_eq!(pass(1), pass(data.len().max(1)));
    loop {
        match frame::header(data) {
            Ok(Some(header)) => {
                let Some(payload) = usize::try_from(header.payload)
                    .ok()
                    .and_then(|len| data.get(header.len..)?.get(..len))
                else {
                    return;
                };
                let mut plain = payload.to_vec();
                if let Some(mask) = header.mask {
                    frame::apply_mask(&mut plain, mask, 0);
                }
                let again = frame::encode(header.opcode, &plain, header.mask.is_some());
                let read = frame::header(&again).expect("a frame").expect("a whole one");
                assert_eq!(
                    (read.opcode, read.payload, read.len),
                    (header.opcode, header.payload, header.len)
                );
                data = &data[header.len + payload.len()..];
            }
            Ok(None) => return,
            Err(BadFrame::Reserved | BadFrame::Opcode(_) | BadFrame::Control | BadFrame::Length) => return,
        }
    }
}

/// Lines, by turns a client's and a browser's or a shim's.
pub fn messages(data: &[u8]) {
    let mut bridge = Bridge::default();
    hub::fuzz(data);
    for (turn, line) in data.split(|&byte| byte == b'\n').enumerate() {
        let Ok(text) = std::str::from_utf8(line) else {
            continue;
        };
        let outs = match turn % 3 {
            0 => bridge.client_says(text),
            1 => bridge.shim_says(text),
            _ => bridge.tick(),
        };
        assert!(outs.len() < 1_000, "{} messages for one", outs.len());
    }
}
