//! The event log in SQLite: numbering, the bound, and what has been delivered. Synchronous; the outbox's thread
//! is its only user.
//!
//! A number is given in the transaction that stores its event, so a crash leaves neither a gap nor a number
//! without an event.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{
    Connection, OptionalExtension, Row, ToSql, params,
    types::{FromSql, FromSqlResult, ToSqlOutput, Value, ValueRef},
};
use serde_json::json;
use ulid::Ulid;

use crate::report::{
    cost::Costs,
    record::{self, Record},
};

/// At most so many events are kept.
pub const BOUND: u64 = 10_000;

/// Beyond the bound so many go at once, or each new event would cost one `events.dropped`.
const SLACK: u64 = 100;

/// The type of the event that says what was given up. Its count takes in those of its like that are given up.
pub const DROPPED: &str = "events.dropped";

/// What goes first when there is no room.
pub fn is_minor(kind: &str) -> bool {
    matches!(kind, "heartbeat" | "snapshot.committed")
}

/// Creates what is not there. `delivered` rows stay for readers of the log until the bound needs their place.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS events (
        boot TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        time TEXT NOT NULL,
        instance TEXT NOT NULL,
        data TEXT NOT NULL,
        delivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (boot, seq)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS undelivered ON events (boot, seq, type) WHERE delivered = 0;
    CREATE TABLE IF NOT EXISTS costs (month TEXT PRIMARY KEY, costs TEXT NOT NULL) WITHOUT ROWID;
";

/// For what cannot be read.
const UNREADABLE: &str = "CREATE TABLE IF NOT EXISTS unreadable AS SELECT * FROM events WHERE false";

/// An event that has no number yet.
#[derive(Debug, Clone)]
pub struct New {
    pub kind: &'static str,
    pub time: jiff::Timestamp,
    pub data: serde_json::Value,
    /// The month's costs as of this event, kept with it.
    pub costs: Option<Costs>,
}

/// The part of the log that one boot wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Span {
    pub boot: Ulid,
    pub first: u64,
    pub last: u64,
}

/// How much the log holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The last number of this boot.
    pub last_seq: u64,
    pub kept: u64,
    pub undelivered: u64,
    /// Undelivered events given up for the bound, in this boot.
    pub dropped: u64,
}

pub struct Table {
    db: Connection,
    boot: Ulid,
    instance: String,
    bound: u64,
    /// Somebody wants what this boot logs.
    posted: bool,
    counts: Counts,
}

impl Table {
    /// Opens or creates the log.
    ///
    /// # Errors
    /// SQLite's, among them that the file is damaged.
    pub fn open(path: &Path, boot: Ulid, instance: &str, bound: u64) -> rusqlite::Result<Table> {
        let db = Connection::open(path)?;
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        // The log is small and read in order: a quarter of a megabyte of cache, and a short WAL.
        db.pragma_update(None, "cache_size", -256)?;
        db.pragma_update(None, "wal_autocheckpoint", 64)?;
        check(&db, "main")?;
        db.execute_batch(SCHEMA)?;
        let mut table = Table {
            db,
            boot,
            instance: instance.to_owned(),
            bound,
            posted: true,
            counts: Counts::default(),
        };
        table.count()?;
        Ok(table)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether somebody wants what this boot logs. What an earlier one carried over is owed in any case.
    pub fn post(&mut self, posted: bool) {
        self.posted = posted;
    }

    /// The boot whose events are owed to nobody; no boot is called so while they are.
    fn exempt(&self) -> String {
        if self.posted {
            String::new()
        } else {
            self.boot.to_string()
        }
    }

    /// Whether the next container would have anything to deliver.
    pub fn owes(&self) -> rusqlite::Result<bool> {
        self.db
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE delivered = 0 AND boot <> ?)")?
            .query_row([self.exempt()], |row| row.get(0))
    }

    fn count(&mut self) -> rusqlite::Result<()> {
        let one = |sql: &str| self.db.query_row(sql, [], |row| row.get::<_, u64>(0));
        let kept = one("SELECT count(*) FROM events")?;
        let undelivered = one("SELECT count(*) FROM events WHERE delivered = 0")?;
        let last_seq = self.db.query_row(
            "SELECT coalesce(max(seq), 0) FROM events WHERE boot = ?",
            [self.boot.to_string()],
            |row| row.get(0),
        )?;
        self.counts = Counts {
            // Given up or not, a number is not given twice.
            last_seq: self.counts.last_seq.max(last_seq),
            kept,
            undelivered,
            ..self.counts
        };
        Ok(())
    }

    /// Numbers and stores the events, all or none of them, making room first.
    pub fn append(&mut self, events: &[New]) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        let mut counts = self.counts;
        for event in events {
            if counts.kept >= self.bound {
                let victims = evict(&tx, counts.kept + 1 - self.bound + SLACK.min(self.bound / 2))?;
                counts.kept -= victims.rows;
                counts.undelivered -= victims.undelivered;
                if victims.lost.count > 0 {
                    counts.dropped += victims.lost.count - victims.lost.known;
                    let data = victims.lost.data();
                    insert(&tx, self.boot, &mut counts, DROPPED, event.time, &self.instance, &data)?;
                }
            }
            let instance = &self.instance;
            insert(
                &tx,
                self.boot,
                &mut counts,
                event.kind,
                event.time,
                instance,
                &event.data,
            )?;
            if let Some(costs) = &event.costs {
                let text = serde_json::to_string(costs).expect("plain data");
                tx.execute("DELETE FROM costs WHERE month <> ?", [&costs.month])?;
                tx.execute("INSERT OR REPLACE INTO costs VALUES (?, ?)", [&costs.month, &text])?;
            }
        }
        tx.commit()?;
        self.counts = counts;
        Ok(())
    }

    /// The event to deliver next: the oldest of the oldest boot.
    pub fn next(&self) -> rusqlite::Result<Option<Record>> {
        self.db
            .prepare_cached("SELECT * FROM events WHERE delivered = 0 ORDER BY boot, seq LIMIT 1")?
            .query_row([], record)
            .optional()
    }

    pub fn delivered(&mut self, boot: Ulid, seq: u64) -> rusqlite::Result<()> {
        let changed = self.db.execute(
            "UPDATE events SET delivered = 1 WHERE boot = ? AND seq = ? AND delivered = 0",
            params![boot.to_string(), seq],
        )?;
        self.counts.undelivered -= changed as u64;
        Ok(())
    }

    /// At most `limit` events of a boot, from the one after `seq`.
    pub fn after(&self, boot: Ulid, seq: u64, limit: u32) -> rusqlite::Result<Vec<Record>> {
        self.db
            .prepare_cached("SELECT * FROM events WHERE boot = ? AND seq > ? ORDER BY seq LIMIT ?")?
            .query_map(
                params![boot.to_string(), i64::try_from(seq).unwrap_or(i64::MAX), limit],
                record,
            )?
            .collect()
    }

    /// What there is of which boot, oldest first.
    pub fn spans(&self) -> rusqlite::Result<Vec<Span>> {
        self.db
            .prepare_cached("SELECT boot, min(seq), max(seq) FROM events GROUP BY boot ORDER BY boot")?
            .query_map([], |row| {
                Ok(Span {
                    boot: ulid(row, 0)?,
                    first: row.get(1)?,
                    last: row.get(2)?,
                })
            })?
            .collect()
    }

    /// What the month had cost when that was last kept.
    pub fn costs(&self) -> rusqlite::Result<Option<Costs>> {
        costs(&self.db, "main")
    }

    /// The newest owed event that is worth a commit; heartbeats and snapshots are not, or every commit
    /// would call for another.
    pub fn newest_worth_carrying(&self) -> rusqlite::Result<Option<(String, u64)>> {
        self.db
            .prepare_cached(
                "SELECT boot, seq FROM events
                 WHERE delivered = 0 AND boot <> ? AND type NOT IN ('heartbeat', 'snapshot.committed')
                 ORDER BY boot DESC, seq DESC LIMIT 1",
            )?
            .query_row([self.exempt()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    /// Writes what is owed, and the costs, into a new database.
    pub fn copy_owed(&self, to: &Path) -> rusqlite::Result<()> {
        self.with_attached(to, |db| {
            // The caller puts the finished file in place, so half of one is never seen.
            db.execute_batch("PRAGMA other.journal_mode = OFF; PRAGMA other.synchronous = OFF")?;
            db.execute_batch(&SCHEMA.replace("EXISTS ", "EXISTS other."))?;
            db.execute(
                "INSERT INTO other.events SELECT * FROM main.events WHERE delivered = 0 AND boot <> ?",
                [self.exempt()],
            )?;
            db.execute_batch("INSERT INTO other.costs SELECT * FROM main.costs")
        })
    }

    /// Takes over every event of the log at `from`, which stays as it is; one that both have counts as delivered if
    /// either says so. Says what the month had cost there.
    ///
    /// # Errors
    /// SQLite's, among them that it is not a sound log.
    pub fn absorb(&mut self, from: &Path) -> rusqlite::Result<Option<Costs>> {
        let costs = self.with_attached(from, |db| {
            check(db, "other")?;
            db.execute_batch(
                "INSERT INTO main.events SELECT * FROM other.events WHERE true
                 ON CONFLICT DO UPDATE SET delivered = max(delivered, excluded.delivered)",
            )?;
            costs(db, "other")
        })?;
        self.count()?;
        Ok(costs)
    }

    /// Moves what cannot be read out of the log; gives how many of it were undelivered, by type.
    pub fn set_aside(&mut self) -> rusqlite::Result<BTreeMap<String, u64>> {
        let tx = self.db.transaction()?;
        tx.execute_batch(UNREADABLE)?;
        let mut lost = BTreeMap::new();
        let bad: Vec<(Raw, Raw, String, bool)> = tx
            .prepare("SELECT * FROM events")?
            .query_map([], |row| {
                let key = || {
                    let kind = row.get_ref(2)?.as_str().unwrap_or("unknown").to_owned();
                    Ok((row.get(0)?, row.get(1)?, kind, row.get(6).unwrap_or(false)))
                };
                record(row).map_or_else(|_| key().map(Some), |_| Ok(None))
            })?
            .filter_map(Result::transpose)
            .collect::<rusqlite::Result<_>>()?;
        for (boot, seq, kind, delivered) in bad {
            tx.execute(
                "INSERT INTO unreadable SELECT * FROM events WHERE boot IS ? AND seq IS ?",
                params![boot, seq],
            )?;
            tx.execute("DELETE FROM events WHERE boot IS ? AND seq IS ?", params![boot, seq])?;
            if !delivered {
                *lost.entry(kind).or_default() += 1;
            }
        }
        tx.commit()?;
        self.count()?;
        Ok(lost)
    }

    fn with_attached<T>(
        &self,
        path: &Path,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.db
            .execute("ATTACH ? AS other", [path.as_os_str().as_encoded_bytes()])?;
        let done = work(&self.db);
        self.db.flush_prepared_statement_cache();
        self.db.execute("DETACH other", [])?;
        done
    }
}

/// A row is not as any version of this would have written it.
pub fn is_unreadable(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    matches!(
        error,
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)
    )
}

/// A value as it is kept, although it may be text that is no UTF-8.
enum Raw {
    Text(Vec<u8>),
    Other(Value),
}

impl FromSql for Raw {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Raw> {
        match value {
            ValueRef::Text(bytes) => Ok(Raw::Text(bytes.to_owned())),
            other => Value::column_result(other).map(Raw::Other),
        }
    }
}

impl ToSql for Raw {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Raw::Text(bytes) => Ok(ToSqlOutput::Borrowed(ValueRef::Text(bytes))),
            Raw::Other(value) => value.to_sql(),
        }
    }
}

/// Whether what is in the schema of that name is a sound log, or nothing yet. Anything else in it, a view in a table's
/// place or a trigger, would run as part of what is asked of it, and a query has no end that it is sure to come to.
fn check(db: &Connection, schema: &str) -> rusqlite::Result<()> {
    let corrupt = |why: String| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(why)))
    };
    let known = Connection::open_in_memory()?;
    known.execute_batch(SCHEMA)?;
    known.execute_batch(UNREADABLE)?;
    let known = described(&known, "main")?;
    if let Some(other) = described(db, schema)?.into_iter().find(|one| !known.contains(one)) {
        let [kind, name, ..] = other.map(|text| text.unwrap_or_default());
        return corrupt(format!("the {kind} {name} in it is not a log's"));
    }
    let verdict: String = db.query_row(&format!("PRAGMA {schema}.quick_check(1)"), [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    corrupt(verdict)
}

/// Type, name, table and text of all that is described in the schema of that name.
fn described(db: &Connection, schema: &str) -> rusqlite::Result<Vec<[Option<String>; 4]>> {
    db.prepare(&format!("SELECT type, name, tbl_name, sql FROM {schema}.sqlite_schema"))?
        .query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?
        .collect()
}

/// What the month had cost when that was last kept in the schema of that name.
fn costs(db: &Connection, schema: &str) -> rusqlite::Result<Option<Costs>> {
    let text: Option<String> = db
        .query_row(
            &format!("SELECT costs FROM {schema}.costs ORDER BY month DESC LIMIT 1"),
            [],
            |row| row.get(0),
        )
        .optional()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

fn insert(
    tx: &Connection,
    boot: Ulid,
    counts: &mut Counts,
    kind: &str,
    time: jiff::Timestamp,
    instance: &str,
    data: &serde_json::Value,
) -> rusqlite::Result<()> {
    let seq = counts.last_seq + 1;
    tx.prepare_cached("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, 0)")?
        .execute(params![
            boot.to_string(),
            seq,
            kind,
            time.to_string(),
            instance,
            data.to_string()
        ])?;
    counts.last_seq = seq;
    counts.kept += 1;
    counts.undelivered += 1;
    Ok(())
}

/// Undelivered events that were given up.
#[derive(Default)]
struct Lost {
    count: u64,
    /// Of `count`, those that an earlier `events.dropped` already told of.
    known: u64,
    types: BTreeMap<String, u64>,
    first: Option<String>,
    last: Option<String>,
}

impl Lost {
    fn add(&mut self, event: &Record) {
        if event.kind == DROPPED {
            let earlier = event.data["count"].as_u64().unwrap_or(0);
            self.count += earlier;
            self.known += earlier;
            for (kind, count) in event.data["types"].as_object().into_iter().flatten() {
                *self.types.entry(kind.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        } else {
            self.count += 1;
            *self.types.entry(event.kind.clone()).or_default() += 1;
        }
        self.first.get_or_insert_with(|| event.id.clone());
        self.last = Some(event.id.clone());
    }

    fn data(&self) -> serde_json::Value {
        json!({ "count": self.count, "types": self.types, "first": self.first, "last": self.last })
    }
}

struct Victims {
    rows: u64,
    undelivered: u64,
    lost: Lost,
}

/// Makes room for `count` events: first what was delivered, then heartbeats and snapshots, then the rest, the
/// oldest of each first.
fn evict(tx: &Connection, count: u64) -> rusqlite::Result<Victims> {
    let mut victims = Victims {
        rows: 0,
        undelivered: 0,
        lost: Lost::default(),
    };
    let rows: Vec<(Record, bool)> = tx
        .prepare_cached(
            "SELECT * FROM events
             ORDER BY delivered DESC, type IN ('heartbeat', 'snapshot.committed') DESC, boot, seq LIMIT ?",
        )?
        .query_map([count], |row| Ok((record(row)?, row.get(6)?)))?
        .collect::<Result<_, _>>()?;
    for (event, delivered) in rows {
        tx.prepare_cached("DELETE FROM events WHERE boot = ? AND seq = ?")?
            .execute(params![event.boot.to_string(), event.seq])?;
        victims.rows += 1;
        if !delivered {
            victims.undelivered += 1;
            victims.lost.add(&event);
        }
    }
    Ok(victims)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let boot = ulid(row, 0)?;
    let seq = row.get(1)?;
    let bad = |column, error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    Ok(Record {
        id: record::id(boot, seq),
        boot,
        seq,
        kind: row.get(2)?,
        time: row
            .get::<_, String>(3)?
            .parse()
            .map_err(|error: jiff::Error| bad(3, error.into()))?,
        instance: row.get(4)?,
        data: serde_json::from_str(&row.get::<_, String>(5)?).map_err(|error| bad(5, error.into()))?,
    })
}

fn ulid(row: &Row<'_>, column: usize) -> rusqlite::Result<Ulid> {
    row.get::<_, String>(column)?
        .parse()
        .map_err(|error: ulid::DecodeError| {
            rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
        })
}
