//! The command line: parse and dispatch; one file a subcommand.
//!
//! Exit codes are the contract's (section 2): 0 done, 1 failed, 2 wrong usage, 69 no store, 70 a crash loop, 78 a bad
//! configuration, 127/126 as a shell has them.

mod exec;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// PID 1 for a personal AI agent in a container that may vanish: restores its state, keeps its gateway alive,
/// snapshots every change.
#[derive(Debug, Parser)]
#[command(name = "moltinit", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Exec(exec::Exec),
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Exec(exec) => exec.run(),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
