//! `moltinit exec`: PID 1's duties for one command.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use clap::{Args, CommandFactory, error::ErrorKind};

use super::Cli;
use crate::pid1::{exec, signals};

#[derive(Debug, Args)]
pub struct Exec {
    /// Send signals to the command only, not to its process group
    #[arg(short = 'c', long)]
    single_child: bool,
    /// Forward signal TO where FROM comes; a TO of 0 drops it
    #[arg(short, long, value_name = "FROM:TO", value_parser = signals::parse_rewrite)]
    rewrite: Vec<(i32, Option<i32>)>,
    /// Exit 0 where the command exits with CODE
    #[arg(short = 'e', long, value_name = "CODE", value_parser = clap::value_parser!(u8))]
    remap_exit: Vec<u8>,
    /// Ask for SIGNAL when the parent of this process dies
    #[arg(short, long, value_name = "SIGNAL", value_parser = signals::parse)]
    pdeathsig: Option<i32>,
    /// Reap orphans although this is not PID 1
    #[arg(short, long)]
    subreaper: bool,
    /// Say which orphans were reaped
    #[arg(short, long)]
    warn_on_reap: bool,
    /// Say what happens
    #[arg(short, long)]
    verbose: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    pub fn run(self) -> i32 {
        // The parser takes an option that it does not know for the command.
        if let Some(option) = self.command.first().filter(|first| first.as_bytes().starts_with(b"-")) {
            Cli::command()
                .error(
                    ErrorKind::UnknownArgument,
                    format!("unexpected argument '{}' found", option.display()),
                )
                .exit();
        }
        let options = exec::Options {
            single_child: self.single_child,
            rewrite: self.rewrite,
            remap: self.remap_exit.into_iter().map(i32::from).collect(),
            pdeathsig: self.pdeathsig,
            subreaper: self.subreaper,
            warn_on_reap: self.warn_on_reap,
            verbose: self.verbose,
        };
        exec::exec(&options, self.command)
    }
}
