//! An event as the world sees it: numbered, dated, and the same bytes every time it is sent.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// One event of the log (contract section 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `BOOT-SEQ`; the same in every delivery, so a receiver can tell a repetition.
    pub id: String,
    pub boot: Ulid,
    /// Gapless within a boot, from 1.
    pub seq: u64,
    #[serde(rename = "type")]
    pub kind: String,
    pub time: Timestamp,
    pub instance: String,
    pub data: serde_json::Value,
}

/// The id of the `seq`th event of a boot.
pub fn id(boot: Ulid, seq: u64) -> String {
    format!("{boot}-{seq:08}")
}
