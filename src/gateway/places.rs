//! Where everything of the gateway's is. Decided by what PID 1 was given; nobody's `attach` moves it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{Config, env::Env};

use super::{
    migrate,
    version::{self, Generation},
};

#[derive(Debug, Clone)]
pub struct Places {
    pub home: PathBuf,
    pub state_dir: PathBuf,
    /// Its configuration; in the state unless the environment says otherwise.
    pub config: PathBuf,
    /// Where the early generation keeps its locks.
    pub temp_dir: PathBuf,
    /// Where the agent works if its configuration does not say.
    default_workspace: PathBuf,
    /// Where Node keeps what it has compiled, unless an image brings that: on the disk, not in the snapshots.
    pub compile_cache: PathBuf,
}

impl Places {
    pub fn of(config: &Config) -> Places {
        let service = config.services.iter().find(|service| service.name == "gateway");
        let command = service.map(|service| service.command.as_slice()).unwrap_or_default();
        Places {
            compile_cache: config.work_dir().join("compile-cache"),
            ..Places::new(&config.env, &config.state_dir, command)
        }
    }

    /// The places of the gateway that `command` starts, in that environment.
    pub fn new(env: &Env, state_dir: &Path, command: &[String]) -> Places {
        let home = PathBuf::from(env.get("HOME").unwrap_or("/root"));
        let version = version::installed(command, env.get("PATH").unwrap_or_default());
        // The early generation knows of no other state when it looks for it.
        let state_of_default = match version.map(version::Version::generation) {
            Some(Generation::Early) => home.join(".openclaw"),
            _ => state_dir.to_owned(),
        };
        let temp_dir = PathBuf::from(env.get("TMPDIR").unwrap_or("/tmp"));
        Places {
            state_dir: state_dir.to_owned(),
            compile_cache: temp_dir.join("node-compile-cache"),
            config: env
                .get("OPENCLAW_CONFIG_PATH")
                .map_or_else(|| state_dir.join(migrate::CONFIG_FILE), PathBuf::from),
            temp_dir,
            default_workspace: state_of_default.join("workspace"),
            home,
        }
    }

    /// Where the agent works if its configuration does not say.
    pub fn default_workspace(&self) -> PathBuf {
        self.default_workspace.clone()
    }

    /// Where the agent works by such a configuration, if it says.
    pub fn named_in(&self, config: &Value) -> Option<PathBuf> {
        let path = config["agents"]["defaults"]["workspace"].as_str()?;
        Some(self.home.join(path.strip_prefix("~/").unwrap_or(path)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_default_workspace_is_where_that_generation_looks() {
        let dir = tempfile::tempdir().unwrap();
        let of = |version: &str| {
            let manifest = json!({ "name": "openclaw", "version": version });
            fs::write(dir.path().join("package.json"), manifest.to_string()).unwrap();
            let script = dir.path().join("openclaw.mjs");
            fs::write(&script, "").unwrap();
            let command = ["node", script.to_str().unwrap(), "gateway"];
            let env: Env = [("HOME", "/home/a")].into_iter().collect();
            Places::new(&env, Path::new("/state"), &command.map(str::to_owned)).default_workspace()
        };
        assert_eq!(of("2026.2.3"), Path::new("/home/a/.openclaw/workspace"));
        assert_eq!(of("2026.9.6"), Path::new("/state/workspace"));
    }
}
