//! The command line: parse and dispatch; one file a subcommand.
//!
//! Exit codes are the contract's (section 2): 0 done, 1 failed, 2 wrong usage, 69 no store, 70 a crash loop, 78 a bad
//! configuration, 127/126 as a shell has them.

mod attach;
mod check;
mod devices;
mod doctor;
mod exec;
mod failure;
mod history;
mod import;
mod logs;
mod restore;
mod run;
mod service;
mod show;
mod skills;
mod snapshot;
mod status;
mod talk;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::failure::Failure;
use crate::config;

/// PID 1 for a personal AI agent in a container that may vanish: restores its state, keeps its gateway alive,
/// snapshots every change.
#[derive(Debug, Parser)]
#[command(name = "moltinit", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file [default: MOLTINIT_CONFIG, or /etc/moltinit/moltinit.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

// The options of each are put together only when it is the one that was called: `exec` starts in a fraction of a
// millisecond.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Restore the state, run the gateway, snapshot every change (what moltinit does without a subcommand)
    Run(run::Run),
    /// Run one command with PID 1's duties only, as tini and dumb-init do
    Exec(exec::Exec),
    /// Hand this environment to the running supervisor, start SERVICE, and stay as long as it does
    Attach(attach::Attach),
    /// What is up, since when, and why not
    Status(status::Status),
    /// The last lines of a service, or of each
    Logs(logs::Logs),
    /// Start a service
    Start(service::Service),
    /// Stop a service
    Stop(service::Service),
    /// Stop a service and start it again
    Restart(service::Service),
    /// The history of the agent's state
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Write a snapshot into an empty directory, or put it in the place of the live state
    Restore(restore::Restore),
    /// Take a plain backup as the first snapshot of an empty store; the backup is only read
    Import(import::Import),
    /// Pairing requests of the gateway
    #[command(subcommand)]
    Devices(devices::Devices),
    /// Skills of the agent
    #[command(subcommand)]
    Skills(skills::Skills),
    /// The configuration
    #[command(subcommand)]
    Config(check::Config),
    /// Check mount, store, gateway, ports, clock, Worker and browser, and say what to do about each failure
    Doctor(doctor::Doctor),
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let file = cli.config.as_deref();
    let done = match cli.command.unwrap_or(Command::Run(run::Run::default())) {
        Command::Run(run) => run.run(file),
        Command::Exec(exec) => Ok(exec.run()),
        Command::Attach(attach) => attach.run(file),
        Command::Status(status) => status.run(file).map(|()| 0),
        Command::Logs(logs) => logs.run(file).map(|()| 0),
        Command::Start(service) => service.run("start", file).map(|()| 0),
        Command::Stop(service) => service.run("stop", file).map(|()| 0),
        Command::Restart(service) => service.run("restart", file).map(|()| 0),
        Command::Snapshot(snapshot) => snapshot.run(file).map(|()| 0),
        Command::Restore(restore) => restore.run(file).map(|()| 0),
        Command::Import(import) => import.run(file).map(|()| 0),
        Command::Devices(devices) => devices.run(file).map(|()| 0),
        Command::Skills(skills) => skills.run(file).map(|()| 0),
        Command::Config(config) => config.run(file).map(|()| 0),
        Command::Doctor(doctor) => doctor.run(file).map(|()| 0),
    };
    let code = done.unwrap_or_else(|Failure { code, error }| {
        if code != 0 {
            let said = failure::whole(&error);
            // PID 1 with a closed stderr ends with its code all the same.
            let _ = writeln!(std::io::stderr(), "moltinit: {}", config::mask(file).apply(&said));
        }
        code
    });
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The options that several commands share have descriptions of their own.
    #[test]
    fn the_help_of_a_command_begins_with_what_it_does() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().unwrap().to_string();
            let help = Cli::try_parse_from(["moltinit", command.get_name(), "--help"]).unwrap_err();
            let help = help.to_string();
            assert!(help.starts_with(&about), "{}: {help}", command.get_name());
        }
    }
}
