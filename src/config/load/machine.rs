//! What there is on the machine that defaults depend on.

use std::path::{Path, PathBuf};

/// Where the Sandbox SDK mounts the bucket in moltworker's deployments.
pub const MOUNTED_STORE: &str = "/data/moltbot";
/// The Sandbox SDK's own server, a service of ours where it exists.
pub const SANDBOX_SERVER: &str = "/container-server/sandbox";
pub(super) const LEGACY_WORKSPACE: &str = "/root/clawd";

/// As it was found.
#[derive(Debug, Clone)]
pub struct Machine {
    pub home: PathBuf,
    pub store_is_mounted: bool,
    pub has_sandbox_server: bool,
    pub has_legacy_workspace: bool,
}

impl Machine {
    /// Looks at this machine. Reads no mounted file system: a hung one must not hold up the start.
    pub fn look() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Machine {
            home: std::env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map_or("/root".into(), PathBuf::from),
            store_is_mounted: mounts.lines().any(|line| line.split(' ').nth(4) == Some(MOUNTED_STORE)),
            has_sandbox_server: Path::new(SANDBOX_SERVER).exists(),
            has_legacy_workspace: Path::new(LEGACY_WORKSPACE).is_dir(),
        }
    }
}
