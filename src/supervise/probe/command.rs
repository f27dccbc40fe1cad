//! `command`: it exits 0.

use std::time::Duration;

use crate::{
    pid1::{Exit, Spawn, Spawner},
    supervise::care::Environment,
};

/// Runs a command in the service's environment.
///
/// # Errors
/// It does not start, does not end in time, or ends with anything but 0; with the last line it wrote to stderr.
pub async fn check(spawner: &Spawner, argv: &[String], env: &Environment, within: Duration) -> Result<(), String> {
    let mut spawn = Spawn::new(argv);
    spawn.env = env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let output = spawner.run(spawn, within).await.map_err(|error| error.to_string())?;
    if output.exit == Exit::Code(0) {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    Err(format!("`{}`: {}: {last}", argv.join(" "), output.exit))
}
