//! `moltinit logs`: what the services wrote.

use std::{io, path::Path};

use clap::Args;
use futures_util::{StreamExt, stream};

use super::{failure::Failure, show, talk::talk};
use crate::report::{
    client::{Client, Lines, escaped},
    control::Piece,
    status::Status,
};

#[derive(Debug, Args)]
pub struct Logs {
    /// The service; all of them without one
    service: Option<String>,
    /// Go on with every new line
    #[arg(short, long)]
    follow: bool,
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,
}

impl Logs {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        talk(file, async |client| self.show(&client).await)
    }

    async fn show(&self, client: &Client) -> Result<(), Failure> {
        let services = match &self.service {
            Some(service) => vec![service.clone()],
            None => client.get::<Status>("/status").await?.services.into_keys().collect(),
        };
        // With one service its name on every line would say nothing.
        let named = services.len() > 1;
        if !self.follow {
            let mut all = Vec::new();
            for service in services {
                let found: Lines = client.get(&self.path(&service, "")).await?;
                all.extend(found.lines.into_iter().map(|line| (service.clone(), line)));
            }
            all.sort_by_key(|(_, line)| line.time);
            for (service, line) in all {
                print(named.then_some(&service), &Piece::Line(line))?;
            }
            return Ok(());
        }
        let mut all = stream::SelectAll::new();
        for service in services {
            let pieces = client.follow::<Piece>(&self.path(&service, "&follow=1")).await?;
            all.push(pieces.map(move |piece| (service.clone(), piece)));
        }
        while let Some((service, piece)) = all.next().await {
            print(named.then_some(&service), &piece?)?;
        }
        Ok(())
    }

    fn path(&self, service: &str, more: &str) -> String {
        format!("/services/{}/logs?n={}{more}", escaped(service), self.lines)
    }
}

fn print(service: Option<&String>, piece: &Piece) -> io::Result<()> {
    let name = service.map_or_else(String::new, |service| format!("{service:>10} | "));
    match piece {
        Piece::Line(line) => show::line(format_args!(
            "{} {name}{}",
            line.time.strftime("%H:%M:%S%.3f"),
            line.text
        )),
        Piece::Missed { missed } => show::line(format_args!("{name}[{missed} lines missed]")),
    }
}
