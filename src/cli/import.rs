//! `moltinit import`: a plain backup as the first snapshot.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{failure::Failure, history::Where, show};
use crate::{
    boot::{layout::Layout, store},
    state::{
        legacy::{self, LegacyError},
        restore::Progress,
    },
    store::{Expect, Patience, Store},
};

#[derive(Debug, Args)]
pub struct Import {
    /// The directory that holds `openclaw/` (or an older name of it), and `workspace/` and `skills/` if there are any
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    place: Where,
}

impl Import {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let config = self.place.config(file)?;
        let history = store::open(&config.store)?;
        let none = || Failure::new(1, LegacyError::None(self.from.clone()));
        if !self.from.is_dir() {
            return Err(none());
        }
        let from = Store::open(&std::path::absolute(&self.from)?, Expect::Existing, Patience::default());
        let backup = legacy::find(&from, &config.store.instance)?.ok_or_else(none)?;
        let layout = Layout::new(&config);
        let is_apart = |text: Option<&[u8]>| layout.has_workspace(text);
        let id = legacy::import(
            &history,
            &from,
            &backup,
            &config.work_dir(),
            &is_apart,
            &Progress::default(),
        )?;
        let (info, _) = history.info(id)?;
        let (files, bytes) = (info.meta.files, show::bytes(info.meta.bytes));
        show::line(format_args!("{id}: {files} files, {bytes}"))?;
        for warning in info.meta.warnings {
            show::remark(&warning);
        }
        Ok(())
    }
}
