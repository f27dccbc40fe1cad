//! A year of a busy agent against a store in memory, with the real writer, retention, compaction and pruning: how
//! large the store becomes, in how many objects, and what the bucket charges for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ulid::Ulid;

use super::kit::meta;
use crate::{
    state::{
        chunk,
        compact::{SLACK, compact, due},
        head::Head,
        history::{Generation, History, Infos},
        lineage::Stretch,
        model::{CommitId, Delta, Entry, Extent, Kind, Meta, Reason},
        prune::{Own, Pruned, Pruner, Writing},
        retain::{self, Record, Records},
        segment::{Segment, SegmentWriter, line::extents_of},
    },
    store::memory::{self, Bucket},
};

/// US dollars for an operation of class A on R2, as published.
const CLASS_A: f64 = 4.50 / 1e6;
const DAYS: i64 = 365;
const MONTH: i64 = 30;
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
/// As the engine's upkeep does it: who else writes is looked at so long after a commit, and the store is pruned as often.
const LOOK: i64 = 10 * MINUTE;
const PRUNE: i64 = 10 * MINUTE;
/// As the engine does it: the store is tidied when there was no commit for longer than this, or so much is scattered.
const IDLE: i64 = 5;
const MOST_OBJECTS: usize = 256;

const DATABASE: &[u8] = b"state/db.sqlite";
const PAGE: usize = 4096;
const PAGES: u64 = 600;
/// Pages that take four of five writes.
const HOT: u64 = 40;
/// Where logs are cut into chunks.
const CUT: usize = 16 << 10;
/// Conversations that are kept.
const SESSIONS: u64 = 100;

struct Agent {
    history: History,
    bucket: Arc<Mutex<Bucket>>,
    spool: tempfile::TempDir,
    generation: Generation,
    head: Head,
    pruner: Pruner,
    now: Timestamp,
    random: StdRng,
    /// Bytes of the present conversation's log since its last cut.
    tail: Vec<u8>,
    session: u64,
    commits: u64,
    pruned: Timestamp,
    look_at: Option<Timestamp>,
}

impl Agent {
    fn new() -> Agent {
        let (store, bucket) = memory::store();
        let history = History::open(store, "default", None).unwrap();
        let now: Timestamp = "2026-01-01T08:00:00Z".parse().unwrap();
        let mut agent = Agent {
            generation: history.begin(ulid(now), None),
            pruner: Pruner::new(history.clone()),
            history,
            bucket,
            spool: tempfile::tempdir().unwrap(),
            head: Head::default(),
            now,
            random: StdRng::seed_from_u64(1),
            tail: Vec::new(),
            session: 0,
            commits: 0,
            pruned: now,
            look_at: None,
        };
        let pages = agent.bytes(PAGES as usize * PAGE);
        agent.commit(|writer| {
            let mut extents = Vec::new();
            for block in pages.chunks(16 * PAGE) {
                chunk::push(&mut extents, put(writer, block));
            }
            vec![
                (b"state".to_vec(), entry(Kind::Dir)),
                (b"state/sessions".to_vec(), entry(Kind::Dir)),
                (DATABASE.to_vec(), database(extents)),
            ]
        });
        agent
    }

    /// Nothing happens for a while, but what the engine does by itself.
    fn pass(&mut self, seconds: i64) {
        if seconds > IDLE {
            self.tidy();
        }
        self.now += SignedDuration::from_secs(seconds);
        if self.look_at.take_if(|at| *at <= self.now).is_some() {
            self.history.refresh().unwrap();
            if let Some(base) = self.generation.base() {
                self.history.newest(base.generation).unwrap();
            }
        }
        if self.now.duration_since(self.pruned).as_secs() >= PRUNE {
            assert_eq!(self.prune().fenced_by, None);
        }
    }

    fn tidy(&mut self) {
        let meta = self.next_meta();
        let segment = compact(&self.history, &self.head, self.spool.path(), meta.id, meta).unwrap();
        if let Some(segment) = segment {
            self.put(segment);
        }
    }

    /// Half noise, half not, as conversations are when compressed.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|n| if n % 2 == 0 { self.random.random() } else { b'x' })
            .collect()
    }

    /// A new container: everything that is known comes from the store.
    fn boot(&mut self) {
        self.history = History::open(self.history.store().clone(), "default", None).unwrap();
        let tip = self.history.line().unwrap()[0].generation;
        let newest = *self.history.commits(tip).unwrap().last().unwrap();
        assert_eq!(Some(newest), self.head.id());
        let head = self.history.load(newest).unwrap();
        assert_eq!(head.tree(), self.head.tree());
        self.generation = self.history.begin(ulid(self.now), Some(newest));
        self.pruner = Pruner::new(self.history.clone());
        self.head = head;
    }

    fn next_meta(&mut self) -> Meta {
        let id = self.generation.next_id();
        Meta {
            time: self.now,
            ..meta(id, self.generation.base(), Reason::Change)
        }
    }

    fn commit(&mut self, change: impl FnOnce(&mut SegmentWriter) -> Vec<(Vec<u8>, Entry)>) {
        let meta = self.next_meta();
        let spool: PathBuf = self.spool.path().to_owned();
        let mut writer = SegmentWriter::new(&self.head, &spool, meta.id, None).unwrap();
        let upsert = change(&mut writer);
        // Conversations of long ago are deleted.
        let old = self.session.checked_sub(SESSIONS).map(log_path);
        let remove = old
            .filter(|path| self.head.tree().contains_key(path))
            .into_iter()
            .collect();
        let segment = writer.finish(meta, Delta { upsert, remove }).unwrap();
        self.put(segment);
        self.commits += 1;
        self.look_at.get_or_insert(self.now + SignedDuration::from_secs(LOOK));
        if due(self.head.objects()).len() >= MOST_OBJECTS {
            self.tidy();
        }
    }

    fn put(&mut self, segment: Segment) {
        self.history.commit(&segment).unwrap();
        self.pruner.committed(segment.id(), Record::of(&segment));
        self.head.advance(segment);
    }

    fn prune(&mut self) -> Pruned {
        let own = Writing::new(Own {
            generation: self.generation.id(),
            needs: self.head.needs(),
        });
        self.pruned = self.now;
        self.pruner.prune(Some(&own), self.now).unwrap()
    }

    /// A step of a conversation: its log grows, and a few pages of the database change.
    fn step(&mut self) {
        let path = log_path(self.session);
        let mut log = content(&self.head, &path);
        let at = log.iter().map(chunk::len).sum::<u64>() / CUT as u64 * CUT as u64;
        // What follows the last cut is stored again with what was appended.
        let line = self.bytes(1200);
        self.tail.extend(line);
        let tail = self.tail.clone();
        if self.tail.len() > CUT {
            self.tail.drain(..CUT);
        }
        let page_of = |random: &mut StdRng| {
            let all = if random.random_ratio(4, 5) { HOT } else { PAGES };
            // Hot pages are all over the database.
            random.random_range(0..all) * 13 % PAGES
        };
        let pages: Vec<(u64, Vec<u8>)> = (0..self.random.random_range(1..4u8))
            .map(|_| (page_of(&mut self.random), self.bytes(PAGE)))
            .collect();
        let mut stored = content(&self.head, DATABASE);
        self.commit(|writer| {
            for (part, at) in tail.chunks(CUT).zip((at..).step_by(CUT)) {
                chunk::splice(&mut log, at, CUT as u64, put(writer, part));
            }
            for (page, bytes) in pages {
                chunk::splice(&mut stored, page * PAGE as u64, PAGE as u64, put(writer, &bytes));
            }
            let len = log.iter().map(chunk::len).sum();
            vec![
                (path, entry(Kind::File { len, extents: log })),
                (DATABASE.to_vec(), database(stored)),
            ]
        });
    }

    /// What is in the store, what of it the present tree uses, and all kept commits (each chunk once). Every one
    /// that retention keeps has to be there, with all it needs.
    fn figures(&self) -> Figures {
        let mut ids = Vec::new();
        for generation in self.history.generations().into_keys() {
            ids.extend(self.history.commits(generation).unwrap());
        }
        let Infos { read, problems } = self.history.infos(&ids).unwrap();
        assert!(problems.is_empty());
        let checkpoints: BTreeMap<CommitId, CommitId> = read
            .iter()
            .filter_map(|(info, _)| Some((info.meta.id, info.checkpoint?)))
            .collect();
        let records: Records = read
            .into_iter()
            .map(|(info, size)| (info.meta.id, Record::new(&info.meta, info.needs().collect(), size)))
            .collect();
        let kept = retain::kept(&records, &self.history.line().unwrap(), self.pruned);
        let heads: Vec<Head> = kept.iter().map(|id| self.history.load(*id).unwrap()).collect();
        let trees: BTreeSet<CommitId> = kept
            .iter()
            .flat_map(|id| [Some(id), checkpoints.get(id)])
            .flatten()
            .copied()
            .collect();
        let described = trees
            .iter()
            .map(|id| self.history.opened(*id).unwrap().tree_len())
            .sum();
        let bucket = self.bucket.lock().unwrap();
        let mut chunks = HashMap::new();
        for chunk in heads.iter().flat_map(Head::chunks) {
            let object = self.history.object(chunk.at.commit).unwrap();
            let object = bucket.objects.get(&object).expect("an object that a kept commit needs");
            assert!(chunk.at.offset + u64::from(chunk.at.len) <= object.len() as u64);
            chunks.insert(chunk.hash, u64::from(chunk.at.len));
        }
        Figures {
            objects: bucket.objects.len(),
            stored: bucket.objects.values().map(|object| object.len() as u64).sum(),
            live: self.head.objects().values().map(|holding| holding.live).sum(),
            of_head: self.head.objects().values().map(|holding| holding.size).sum(),
            used: chunks.values().sum(),
            described,
        }
    }

    /// A turn of a conversation.
    fn turn(&mut self, steps: u32) {
        if self.random.random_ratio(1, 8) {
            self.session += 1;
            self.tail.clear();
        }
        for _ in 0..steps {
            self.step();
            self.pass(5);
        }
    }
}

#[derive(Debug)]
struct Figures {
    objects: usize,
    stored: u64,
    live: u64,
    of_head: u64,
    used: u64,
    /// What the kept commits say of their trees, with the checkpoints that they say it by.
    described: u64,
}

impl Figures {
    /// What is stored is at most twice what it is stored for, and what is not worth a thought.
    fn check(&self) {
        assert!(self.objects < 3000, "{self:?}");
        assert!(self.of_head <= 2 * self.live + SLACK, "{self:?}");
        assert!(self.stored <= 2 * (self.used + self.described) + SLACK, "{self:?}");
    }
}

fn ulid(now: Timestamp) -> Ulid {
    Ulid::from_parts(now.as_millisecond() as u64, 0)
}

fn entry(kind: Kind) -> Entry {
    Entry {
        mode: 0o700,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        kind,
    }
}

fn database(extents: Vec<Extent>) -> Entry {
    entry(Kind::Sqlite {
        len: PAGES * PAGE as u64,
        page_size: PAGE as u32,
        extents,
    })
}

fn log_path(session: u64) -> Vec<u8> {
    format!("state/sessions/{session:06}.jsonl").into_bytes()
}

fn put(writer: &mut SegmentWriter, bytes: &[u8]) -> Extent {
    Extent::Data {
        chunk: writer.put(bytes).unwrap(),
        from: 0,
        len: bytes.len() as u32,
    }
}

fn content(head: &Head, path: &[u8]) -> Vec<Extent> {
    head.tree()
        .get(path)
        .map_or(Vec::new(), |entry| extents_of(&entry.kind).to_vec())
}

#[test]
fn a_year_of_a_busy_agent_stays_small_and_cheap() {
    let mut agent = Agent::new();
    let (mut charged, mut counted) = (0, 0);
    for day in 0..DAYS {
        agent.boot();
        let begun = agent.now;
        for _hour in 0..if day % 7 < 5 { 8 } else { 2 } {
            for _turn in 0..2 {
                agent.turn(6);
                agent.pass(HOUR / 2 - 30);
            }
        }
        if day % MONTH == MONTH - 1 {
            let class_a = agent.bucket.lock().unwrap().class_a;
            let (operations, commits) = (class_a - charged, agent.commits - counted);
            (charged, counted) = (class_a, agent.commits);
            let dollars = operations as f64 * CLASS_A;
            let figures = agent.figures();
            println!(
                "day {}: {commits} commits, {operations} operations, {dollars:.3} USD this month; {} generations, {figures:?}",
                day + 1,
                agent.history.generations().len()
            );
            assert!(dollars < 0.25, "{dollars} USD");
            figures.check();
        }
        agent.pass(24 * HOUR - agent.now.duration_since(begun).as_secs());
    }
    let line: Vec<Stretch> = agent.history.line().unwrap();
    assert_eq!(line[0].generation, agent.generation.id());
}

#[test]
fn days_of_thousands_of_commits_stay_small_and_can_all_be_restored() {
    let mut agent = Agent::new();
    for _day in 0..2 {
        agent.boot();
        let begun = agent.now;
        let (charged, counted) = (agent.bucket.lock().unwrap().class_a, agent.commits);
        for _hour in 0..8 {
            for _turn in 0..8 {
                agent.turn(50);
                agent.pass(HOUR / 8 - 250);
            }
        }
        let operations = agent.bucket.lock().unwrap().class_a - charged;
        let commits = agent.commits - counted;
        // At that rate for a month.
        let dollars = operations as f64 * MONTH as f64 * CLASS_A;
        assert!(
            commits > 3000 && dollars < 1.0,
            "{commits} commits, {operations} operations: {dollars} USD"
        );
        let figures = agent.figures();
        println!("{commits} commits a day, {operations} operations, {dollars:.3} USD a month, {figures:?}");
        figures.check();
        agent.pass(24 * HOUR - agent.now.duration_since(begun).as_secs());
    }
}
