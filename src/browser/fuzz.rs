//! Entry points for what a client or a browser may send.

use serde_json::Value;

use super::{
    bridge::Bridge,
    discovery,
    frame::{self, BadFrame},
};

/// Frames, one after the other. A header that is understood is the one that would be written.
pub fn frames(mut data: &[u8]) {
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

/// Lines, by turns a client's and a shim's; each is also taken for an answer of the discovery.
pub fn messages(data: &[u8]) {
    let mut bridge = Bridge::default();
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
        if let Ok(mut value) = serde_json::from_str::<Value>(text) {
            discovery::localise(&mut value, "localhost:9222");
        }
    }
}
