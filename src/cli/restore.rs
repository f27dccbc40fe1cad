//! `moltinit restore`: a snapshot into an empty directory.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    failure::Failure,
    history::{Where, Which},
    show,
};
use crate::state::restore::{Progress, restore_into_empty_dir};

/// Write a snapshot into an empty directory; live state is not touched
#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    which: Which,
    /// A directory that is empty or does not exist; each root of the snapshot becomes a directory in it
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    place: Where,
}

impl Restore {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let history = self.place.open(file)?;
        let id = self.which.find(&history)?;
        let head = history.load(id)?;
        let progress = Progress::default();
        let done = thread::scope(|scope| {
            let work = scope.spawn(|| restore_into_empty_dir(&history, &head, &self.to, &progress));
            if std::io::stderr().is_terminal() {
                let style =
                    ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
                let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                while !work.is_finished() {
                    bar.set_length(progress.total.load(Ordering::Relaxed));
                    bar.set_position(progress.done.load(Ordering::Relaxed));
                    thread::sleep(Duration::from_millis(50));
                }
                bar.finish_and_clear();
            }
            work.join()
        });
        let placed = done.map_err(|_| anyhow::anyhow!("the restore ended in a panic; this is a bug"))??;
        println!(
            "{id}: {} files, {} in {}",
            placed.files,
            show::bytes(placed.bytes),
            self.to.display()
        );
        Ok(())
    }
}
