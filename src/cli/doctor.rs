//! `moltinit doctor`: one line a check.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use clap::Args;

use super::{failure::Failure, show};
use crate::{
    config::Config,
    doctor::{Finding, Verdict, examine},
};

#[derive(Debug, Args)]
pub struct Doctor {
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let config = Config::from_process(file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let findings = runtime.block_on(examine(config));
        if self.json {
            show::json(&findings)?;
        } else {
            let colour = std::io::stdout().is_terminal();
            for finding in &findings {
                print(finding, colour)?;
            }
        }
        match findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Bad)
            .count()
        {
            0 => Ok(()),
            bad => Err(anyhow::anyhow!("{bad} of {} checks failed", findings.len()).into()),
        }
    }
}

fn print(finding: &Finding, colour: bool) -> io::Result<()> {
    let (word, number) = match finding.verdict {
        Verdict::Fine => ("ok", 32),
        Verdict::Doubtful => ("warning", 33),
        Verdict::Bad => ("FAILED", 31),
    };
    let word = format!("{word:<7}");
    let word = if colour {
        format!("\x1b[{number}m{word}\x1b[0m")
    } else {
        word
    };
    show::line(format_args!("{word} {:<15} {}", finding.check, finding.said))
}
