//! `moltinit snapshot`: the state's history.

use std::path::Path;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{
    failure::Failure,
    history::{Passed, Where, Which},
    show,
    talk::talk,
};
use crate::state::{
    diff::{Change, diff},
    history::Problem,
    model::{CommitId, Entry, Kind, Meta},
    prune::Pruner,
    restore::Progress,
    verify::verify,
};

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Commit what has changed, now; needs a running supervisor
    Now {
        #[arg(long)]
        json: bool,
    },
    /// Every snapshot there is, oldest first
    List {
        #[command(flatten)]
        place: Where,
        #[arg(long)]
        json: bool,
    },
    /// The files of a snapshot
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        place: Where,
        #[arg(long)]
        json: bool,
    },
    /// Read everything, and say what could not be restored
    Verify {
        #[command(flatten)]
        which: Which,
        /// Every snapshot there is, branches too
        #[arg(long, conflicts_with_all = ["id", "at"])]
        all: bool,
        #[command(flatten)]
        place: Where,
        #[arg(long)]
        json: bool,
    },
    /// Remove what retention does not keep; a running supervisor does it by itself
    Prune {
        #[command(flatten)]
        place: Where,
        #[arg(long)]
        json: bool,
    },
    /// What changed from one snapshot to another
    Diff {
        /// The older one's id
        old: String,
        /// The newer one's id
        #[arg(default_value = "latest")]
        new: String,
        #[command(flatten)]
        place: Where,
        #[arg(long)]
        json: bool,
    },
}

impl Snapshot {
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        match self {
            Snapshot::Now { json } => now(json, file),
            Snapshot::List { place, json } => list(place, json, file),
            Snapshot::Show { which, place, json } => files(&which, place, json, file),
            Snapshot::Verify {
                which,
                all,
                place,
                json,
            } => check(&which, all, place, json, file),
            Snapshot::Prune { place, json } => prune(place, json, file),
            Snapshot::Diff { old, new, place, json } => changes(&old, &new, place, json, file),
        }
    }
}

fn now(json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let meta: Meta = talk(file, async |client| {
        Ok(client.post("/snapshots", None::<&serde_json::Value>).await?)
    })?;
    if json {
        return Ok(show::json(&meta)?);
    }
    let (files, bytes) = (meta.files, show::bytes(meta.bytes));
    Ok(show::line(format_args!("{}: {files} files, {bytes}", meta.id))?)
}

fn list(place: Where, json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let history = place.open(file)?;
    let (commits, problems) = history.list()?;
    if json {
        return Ok(show::json(&json!({ "snapshots": commits, "problems": problems }))?);
    }
    let titles = ["SNAPSHOT", "TIME", "WHY", "FILES", "STATE", "STORED", ""].map(str::to_owned);
    let rows = commits.iter().filter(|commit| !commit.remnant).map(|commit| {
        let meta = &commit.meta;
        let mut remarks = Vec::new();
        if !commit.on_line {
            remarks.push("branch".to_owned());
        }
        if let Some(why) = &meta.suspicious {
            remarks.push(format!("suspicious: {why}"));
        }
        if !meta.warnings.is_empty() {
            remarks.push(format!("{} warning(s)", meta.warnings.len()));
        }
        [
            meta.id.to_string(),
            meta.time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            format!("{:?}", meta.reason).to_lowercase(),
            meta.files.to_string(),
            show::bytes(meta.bytes),
            show::bytes(commit.size),
            remarks.join("; "),
        ]
    });
    show::table(&[titles].into_iter().chain(rows).collect::<Vec<_>>())?;
    for problem in problems {
        show::remark(&no_snapshot(&problem));
    }
    let remnants = commits.iter().filter(|commit| commit.remnant).count();
    if remnants > 0 {
        show::remark(&format!(
            "{remnants} older ones are there only for what these need of them"
        ));
    }
    Ok(())
}

fn files(which: &Which, place: Where, json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let history = place.open(file)?;
    let id = which.find(&history)?;
    let (info, _) = history.info(id)?;
    let head = history.load(id)?;
    if json {
        let files = head.tree().iter().map(|(path, entry)| described(path, entry));
        return Ok(show::json(
            &json!({ "snapshot": info.meta, "files": files.collect::<Vec<_>>() }),
        )?);
    }
    let rows = head.tree().iter().map(|(path, entry)| {
        let (kind, len) = summed(&entry.kind);
        [
            format!("{kind}{:04o}", entry.mode),
            len.map(show::bytes).unwrap_or_default(),
            show::path(path),
        ]
    });
    show::table(&rows.collect::<Vec<_>>())?;
    for warning in &info.meta.warnings {
        show::remark(warning);
    }
    Ok(())
}

fn check(which: &Which, all: bool, place: Where, json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let history = place.open(file)?;
    let (ids, passed): (Vec<CommitId>, Vec<Passed>) = if all {
        let (commits, problems) = history.list()?;
        let whole = commits.into_iter().filter(|commit| !commit.remnant);
        let passed = problems.iter().map(|problem| Passed {
            why: no_snapshot(problem),
            torn: problem.torn,
        });
        (whole.map(|commit| commit.meta.id).collect(), passed.collect())
    } else {
        let chosen = which.readable(&history)?;
        (vec![chosen.id], chosen.passed)
    };
    // What a kill cut off, or is being written right now, was never reported committed.
    let (unfinished, passed): (Vec<Passed>, Vec<Passed>) = passed.into_iter().partition(|passed| passed.torn);
    let whys = |passed: Vec<Passed>| passed.into_iter().map(|passed| passed.why).collect::<Vec<String>>();
    let (unfinished, mut flaws) = (whys(unfinished), whys(passed));
    let found = verify(&history, &ids, &Progress::default())?;
    flaws.extend(found.into_iter().map(|flaw| format!("{}: {}", flaw.id, flaw.why)));
    if json {
        show::json(&json!({ "checked": ids, "flaws": flaws, "unfinished": unfinished }))?;
    } else {
        if all {
            // Beside a single one they have been said.
            unfinished.iter().for_each(|why| show::remark(why));
        }
        for flaw in &flaws {
            show::line(format_args!("{flaw}"))?;
        }
        show::line(format_args!(
            "{} snapshot(s) checked, {} flaw(s)",
            ids.len(),
            flaws.len()
        ))?;
    }
    if flaws.is_empty() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("not everything could be restored").into())
    }
}

fn no_snapshot(problem: &Problem) -> String {
    format!("{} is no snapshot: {}", problem.object, problem.why)
}

fn prune(place: Where, json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let history = place.open(file)?;
    let pruned = Pruner::new(history).prune(None, Timestamp::now())?;
    if json {
        return Ok(show::json(&pruned)?);
    }
    Ok(show::line(format_args!(
        "{} snapshots kept, {} objects removed, {} freed",
        pruned.kept,
        pruned.removed,
        show::bytes(pruned.freed)
    ))?)
}

fn changes(old: &str, new: &str, place: Where, json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let history = place.open(file)?;
    let load = |id| Ok::<_, Failure>(history.load(Which::named(id).find(&history)?)?);
    let (old, new) = (load(old)?, load(new)?);
    let changes = diff(old.tree(), new.tree());
    if json {
        let changes = changes
            .iter()
            .map(|(path, change)| json!({ "path": show::path(path), "change": change }));
        return Ok(show::json(&changes.collect::<Vec<_>>())?);
    }
    let rows = changes.iter().map(|(path, change)| {
        let sign = match change {
            Change::Added => "+",
            Change::Removed => "-",
            Change::Changed => "M",
        };
        [sign.to_owned(), show::path(path)]
    });
    Ok(show::table(&rows.collect::<Vec<_>>())?)
}

/// A letter as `ls` has it (`q` for a database), and the length of what has one.
fn summed(kind: &Kind) -> (char, Option<u64>) {
    match kind {
        Kind::Dir => ('d', None),
        Kind::File { len, .. } => ('-', Some(*len)),
        Kind::Sqlite { len, .. } => ('q', Some(*len)),
        Kind::Symlink { .. } => ('l', None),
        Kind::HardLink { .. } => ('h', None),
    }
}

fn described(path: &[u8], entry: &Entry) -> serde_json::Value {
    let kind = match &entry.kind {
        Kind::Dir => "dir",
        Kind::File { .. } => "file",
        Kind::Sqlite { .. } => "sqlite",
        Kind::Symlink { .. } => "symlink",
        Kind::HardLink { .. } => "hard_link",
    };
    let target = match &entry.kind {
        Kind::Symlink { target } => Some(show::path(target)),
        Kind::HardLink { to } => Some(show::path(to)),
        _ => None,
    };
    json!({
        "path": show::path(path),
        "kind": kind,
        "len": summed(&entry.kind).1,
        "target": target,
        "mode": format!("{:04o}", entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    })
}
