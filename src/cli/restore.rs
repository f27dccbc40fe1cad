//! `moltinit restore`: a snapshot into an empty directory, or in the place of the live state.

use std::{
    io::IsTerminal,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    failure::Failure,
    history::{Chosen, Where, Which},
    show,
    talk::{done, talk},
};
use crate::state::{
    history::History,
    model::CommitId,
    restore::{Placed, Progress, RestoreError, restore_into_empty_dir},
};

#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// A directory that is empty or does not exist; each root of the snapshot becomes a directory in it
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Stop the gateway, move the present state aside, start on the snapshot; back again if the gateway does not come up
    #[arg(long)]
    live: bool,
}

impl Restore {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let history = self.place.open(file)?;
        match self.target.to {
            Some(dir) => {
                let Chosen { id, made: placed, .. } = self.which.first(&history, |id| write(&history, id, &dir))?;
                let (files, bytes) = (placed.files, show::bytes(placed.bytes));
                Ok(show::line(format_args!(
                    "{id}: {files} files, {bytes} in {}",
                    dir.display()
                ))?)
            }
            None => {
                let path = format!("/snapshots/{}/restore", self.which.find(&history)?);
                talk(file, async |client| done(&client.post_and_wait(&path).await?))
            }
        }
    }
}

fn write(history: &History, id: CommitId, dir: &Path) -> Result<Placed, RestoreError> {
    let head = history.load(id)?;
    let progress = Progress::default();
    thread::scope(|scope| {
        let work = scope.spawn(|| restore_into_empty_dir(history, &head, dir, &progress));
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
            let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            while !work.is_finished() {
                bar.set_length(progress.total.load(Ordering::Relaxed));
                bar.set_position(progress.done.load(Ordering::Relaxed));
                thread::sleep(Duration::from_millis(50));
            }
            bar.finish_and_clear();
        }
        work.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
