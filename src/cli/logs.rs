//! `moltinit logs`: what the services wrote.

use std::path::Path;

use clap::Args;
use futures_util::{StreamExt, stream};

use super::{failure::Failure, talk::talk};
use crate::report::{
    client::{Client, Lines, escaped},
    control::LogLine,
    status::Status,
};

/// The last lines of a service, or of each
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
            for service in services {
                let lines: Lines = client.get(&self.path(&service, "")).await?;
                lines
                    .lines
                    .iter()
                    .for_each(|line| print(named.then_some(&service), line));
            }
            return Ok(());
        }
        let mut all = stream::SelectAll::new();
        for service in services {
            let lines = client.follow::<LogLine>(&self.path(&service, "&follow=1")).await?;
            all.push(lines.map(move |line| (service.clone(), line)));
        }
        while let Some((service, line)) = all.next().await {
            print(named.then_some(&service), &line?);
        }
        Ok(())
    }

    fn path(&self, service: &str, more: &str) -> String {
        format!("/services/{}/logs?n={}{more}", escaped(service), self.lines)
    }
}

fn print(service: Option<&String>, line: &LogLine) {
    let time = line.time.strftime("%H:%M:%S%.3f");
    match service {
        Some(service) => println!("{time} {service:>10} | {}", line.text),
        None => println!("{time} {}", line.text),
    }
}
