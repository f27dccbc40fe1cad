"""The state engine: one small change, a whole restore, and writes without a pause, beside rclone, restic, litestream.

MOLTINIT_BENCH_SCALE=0.01 makes everything a hundredth of its size, to try the script itself."""

import sqlite3, threading

from bench import *

SCALE = float(os.environ.get("MOLTINIT_BENCH_SCALE", 1))
FILES, FILE_BYTES, DB_BYTES = int(10_000 * SCALE), 50_000, int(1_000_000_000 * SCALE)
ROUNDS, DB_ROUNDS, SUSTAINED_SECONDS, WRITES_PER_SECOND = 3, 3, 60, 20
CHANGED_FILE, DB = "agents/main/0/0.json", "state/openclaw.sqlite"


def fill(state):
    """Half of the files compress by half, the others not at all, and neither does the database."""
    for number in range(FILES):
        file = state / f"agents/main/{number // 100}/{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        body = os.urandom(FILE_BYTES // 2).hex().encode() if number % 2 else os.urandom(FILE_BYTES)
        file.write_bytes(body)
    (state / DB).parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(state / DB)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)")
    with db:
        db.executemany("INSERT INTO rows (body) VALUES (randomblob(1000))", ((),) * (DB_BYTES // 1100))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def change_a_file(state, round):
    (state / CHANGED_FILE).write_bytes(b"changed %d" % round + os.urandom(1000))


def change_a_row(state, round):
    db = sqlite3.connect(state / DB)
    with db:
        db.execute("UPDATE rows SET body = randomblob(1000) WHERE id = ?", (round * 7 + 1,))
    db.close()


def ran(argv, env=None):
    """Seconds, user and system CPU seconds, and peak memory of one command, and what it printed."""
    began = time.monotonic()
    process = subprocess.Popen([str(arg) for arg in argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read(), process.stderr.read()
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        sys.exit(f"{argv[0]}: {err.decode()}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, out


class Subject:
    """A program that brings a directory to a store and back."""

    def __init__(self, name, s3):
        self.name, self.s3 = name, s3

    def measured(self, change, rounds):
        """Medians of seconds to durable, CPU seconds, bytes and requests of one change."""
        found = []
        for round in range(rounds):
            before = self.s3.requests() if self.s3 else 0
            found.append((*self.once(change, round), (self.s3.requests() if self.s3 else 0) - before))
        return [median(column) for column in zip(*found)]


class Ours(Subject):
    def __init__(self, name, s3, store):
        super().__init__(name, s3)
        self.store = store
        self.moltinit = Moltinit(f"ours-{name}", store)
        self.moltinit.wait_until_ready()
        self.state, self.idle = self.moltinit.state, self.moltinit.rss()
        fill(self.state)
        began = time.monotonic()
        self.moltinit.commit()
        self.first = time.monotonic() - began

    def once(self, change, round):
        self.moltinit.commit()
        time.sleep(1.2)  # past the least gap between two commits, which is not what is measured
        before, cpu = self.moltinit.last_commit(), self.cpu()
        began = time.monotonic()
        change(self.state, round)
        wait("a commit", lambda: self.moltinit.last_commit() != before, every=0.005)
        took = time.monotonic() - began
        return took, self.cpu() - cpu, self.moltinit.status()["snapshots"]["last"]["stored_bytes"]

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.moltinit.process.pid}/stat").read_text().rsplit(")")[-1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def restore(self):
        to = scratch / f"restored-{self.name}"
        took, cpu, peak, _ = ran([MOLTINIT, "restore", "--to", to, "--store", self.store], env=self.env())
        shutil.rmtree(to)
        return took, peak

    def env(self):
        return {"PATH": os.environ["PATH"], "HOME": str(self.moltinit.dir / "home"),
                "MOLTINIT_CONFIG": str(self.moltinit.dir / "moltinit.toml")}

    def cat(self):
        """Seconds for reading the store's bytes, one file after the other."""
        objects = [path for path in sorted((pathlib.Path(self.store) / "default").rglob("*")) if path.is_file()]
        began = time.monotonic()
        subprocess.run(["cat", *objects], stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - began


class Rclone(Subject):
    def __init__(self, name, s3, to):
        super().__init__(name, s3)
        self.to, self.state = to, scratch / f"rclone-{name}"
        self.env = s3.rclone_env() if s3 else os.environ
        fill(self.state)
        ran(["rclone", "sync", self.state, to], env=self.env)

    def once(self, change, round):
        began = time.monotonic()
        change(self.state, round)
        _, cpu, _, _ = ran(["rclone", "sync", "--use-json-log", "--stats-log-level", "NOTICE", self.state, self.to],
                           env=self.env)
        return time.monotonic() - began, cpu, (self.state / (CHANGED_FILE if change is change_a_file else DB)).stat().st_size

    def restore(self):
        to = scratch / f"restored-rclone-{self.name}"
        took, _, peak, _ = ran(["rclone", "copy", self.to, to], env=self.env)
        shutil.rmtree(to)
        return took, peak


class Restic(Subject):
    def __init__(self, name, s3, repository):
        super().__init__(name, s3)
        self.state = scratch / f"restic-{name}"
        self.env = {"PATH": os.environ["PATH"], "HOME": str(scratch), "RESTIC_REPOSITORY": str(repository),
                    "RESTIC_PASSWORD": "password", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        fill(self.state)
        ran(["restic", "init"], env=self.env)
        ran(["restic", "backup", "--quiet", self.state], env=self.env)

    def once(self, change, round):
        began = time.monotonic()
        change(self.state, round)
        _, cpu, _, out = ran(["restic", "backup", "--json", self.state], env=self.env)
        took = time.monotonic() - began
        return took, cpu, json.loads(out.splitlines()[-1])["data_added"]

    def restore(self):
        to = scratch / f"restored-restic-{self.name}"
        took, _, peak, _ = ran(["restic", "restore", "latest", "--target", to], env=self.env)
        shutil.rmtree(to)
        return took, peak


def compared(place, ours, peers):
    """The tables of one kind of store."""
    rows = []
    for title, change, rounds in [("a file", change_a_file, ROUNDS), ("a row", change_a_row, DB_ROUNDS)]:
        mine = ours.measured(change, rounds)
        for subject, (took, cpu, stored, requests) in [(ours, mine)] + [(p, p.measured(change, rounds)) for p in peers]:
            rows.append([title, subject.name, f"{took:.2f} s", f"{took / mine[0]:.1f}", f"{cpu:.2f} s",
                         f"{stored / 1000:.0f} kB", f"{requests:.0f}" if subject.s3 else ""])
    print(f"One change among {FILES:,} files of {FILE_BYTES // 1000} kB and a database of {DB_BYTES / 1e6:.0f} MB, {place}:\n")
    print(table(["change of", "program", "to durable", "ratio", "CPU", "stored", "requests"], rows) + "\n")
    cat = ours.cat()
    rows = [["`cat` of moltinit's store", f"{cat:.1f} s", "", ""]]
    mine = None
    for subject in [ours, *peers]:
        took, peak = subject.restore()
        mine = mine or took
        rows.append([subject.name, f"{took:.1f} s", f"{took / mine:.1f}", f"{peak / 2**20:.0f} MiB"])
    print(f"All of it back, {place}:\n")
    print(table(["program", "restore", "ratio", "peak memory"], rows))
    print(f"\nmoltinit's supervisor: {ours.idle / 2**20:.1f} MiB before there was any state, "
          f"{ours.moltinit.peak() / 2**20:.1f} MiB at its peak; first commit of all of it within {ours.first:.1f} s.\n")
    ours.moltinit.stop()


class Writer(threading.Thread):
    """Commits rows to a database, and notes when each commit returned."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.times = path, {}

    def run(self):
        db = sqlite3.connect(self.path, timeout=30)
        began = time.monotonic()
        for number in range(1, SUSTAINED_SECONDS * WRITES_PER_SECOND + 1):
            with db:
                db.execute("INSERT INTO log (id, body) VALUES (?, randomblob(500))", (number,))
            self.times[number] = time.monotonic()
            time.sleep(max(0, began + number / WRITES_PER_SECOND - time.monotonic()))
        db.close()


def small_database(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, body BLOB)")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)")
    with db:
        db.executemany("INSERT INTO rows (body) VALUES (randomblob(1000))", ((),) * 20_000)
    db.close()


def last_row(path):
    if not path.exists():
        return 0
    db = sqlite3.connect(path)
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM log").fetchone()
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    return last


def delays(times, durable):
    """Of each row, from its commit to when a version that has it was seen; `durable` pairs moments with last rows."""
    found, durable = [], sorted(durable)
    for number, written in times.items():
        # A version may be seen before the writer has taken down the time of its last row.
        seen = next((moment for moment, last in durable if last >= number), None)
        if seen is None:
            sys.exit(f"row {number} was never durable")
        found.append(max(0, seen - written))
    return sorted(found)


def watch(ask, seen, stop):
    while not stop.is_set():
        with contextlib.suppress(OSError, ValueError):
            for name in ask():
                seen.setdefault(name, time.monotonic())
        time.sleep(0.02)


def observed(path, ask, finished):
    """Lets the writer run, and gives its times and when each version was first seen."""
    seen, stop = {}, threading.Event()
    watcher = threading.Thread(target=watch, args=(ask, seen, stop), daemon=True)
    watcher.start()
    writer = Writer(path)
    writer.start()
    writer.join()
    finished()
    stop.set()
    watcher.join()
    return writer.times, seen


def sustained_ours(s3):
    store = s3.mount("sustained")
    moltinit = Moltinit("sustained-state", store)
    moltinit.wait_until_ready()
    path = moltinit.state / DB
    small_database(path)
    moltinit.commit()
    def finished():
        moltinit.commit()
        time.sleep(1)  # for the watcher's last look
    times, seen = observed(path, lambda: [moltinit.last_commit()], finished)
    moltinit.stop()
    durable = []
    for commit, moment in seen.items():
        to = scratch / "sustained-restored"
        ran([MOLTINIT, "restore", "--to", to, "--store", store, commit],
            env={"PATH": os.environ["PATH"], "HOME": str(moltinit.dir / "home")})
        durable.append((moment, last_row(to / "state" / DB)))
        shutil.rmtree(to)
    return delays(times, durable), len(seen)


def sustained_litestream(s3):
    path, config = scratch / "litestream/db.sqlite", scratch / "litestream.yml"
    small_database(path)
    config.write_text(f"""
access-key-id: key
secret-access-key: secret
dbs:
  - path: {path}
    replicas:
      - type: s3
        bucket: {s3.bucket}
        path: litestream
        endpoint: http://127.0.0.1:{s3.port}
        region: us-east-1
        force-path-style: true
""")
    process = start([LITESTREAM, "replicate", "-config", config])
    segments = lambda: [name for name in s3.names("litestream/") if name.endswith(".wal.lz4")]
    wait("the first version", lambda: any("/snapshots/" in name for name in s3.names("litestream/")), every=0.1)
    def finished():
        count = -1
        while count != (count := len(segments())):
            time.sleep(3)
    times, seen = observed(path, segments, finished)
    end(process)
    return delays(times, versions_of_litestream(s3, seen)), len(seen)


def versions_of_litestream(s3, seen):
    """What each of its pieces of a WAL adds: its own restore knows whole WALs only."""
    def fetched(name):
        packed = ran(["rclone", "cat", f"s3:{s3.bucket}/{name}"], env=s3.rclone_env())[3]
        return subprocess.run(["lz4", "-d"], input=packed, capture_output=True, check=True).stdout
    base, wal = scratch / "litestream-base", scratch / "litestream-base-wal"
    (snapshot,) = [name for name in s3.names("litestream/") if "/snapshots/" in name]
    base.write_bytes(fetched(snapshot))
    versions, index, piece = [], None, re.compile(r"/wal/(\w+)[_/](\w+)\.wal")
    for name in sorted(seen, key=lambda name: piece.search(name).groups()):
        if index != (index := piece.search(name)[1]) and wal.exists():
            sqlite3.connect(base).execute("PRAGMA wal_checkpoint(TRUNCATE)")
            wal.unlink(missing_ok=True)
        with open(wal, "ab") as so_far:
            so_far.write(fetched(name))
        copies = scratch / "litestream-version", scratch / "litestream-version-wal"
        shutil.copy(base, copies[0])
        shutil.copy(wal, copies[1])
        versions.append((seen[name], last_row(copies[0])))
        for copy in scratch.glob("litestream-version*"):
            copy.unlink()
    return versions


def percentile(values, part):
    return values[min(len(values) - 1, int(len(values) * part))]


print("## The state engine\n")
print("`./scripts/bench state`: medians. moltinit's times include its quiet time of 250 ms; peers are started at once "
      "after the change, as if somebody knew. S3 is moto's server with 30 ms added to each burst of a request; moltinit "
      "and `cat` use it through s3fs, the peers through their own clients.\n")
compared("local directory", Ours("moltinit", None, scratch / "store"),
         [Rclone("rclone", None, scratch / "rclone-store"), Restic("restic", None, scratch / "restic-store")])
for path in scratch.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
s3 = S3(delay_ms=30)
compared("S3 with 30 ms", Ours("moltinit on S3", s3, s3.mount("store")),
         [Rclone("rclone on S3", s3, f"s3:{s3.bucket}/rclone"),
          Restic("restic on S3", s3, f"s3:http://127.0.0.1:{s3.port}/{s3.bucket}/restic")])
s3 = S3(delay_ms=30)
rows = []
for name, (found, versions) in [("moltinit, through s3fs", sustained_ours(s3)),
                                ("litestream, its own client, as it is configured out of the box", sustained_litestream(s3))]:
    rows.append([name, f"{percentile(found, .5):.2f} s", f"{percentile(found, .99):.2f} s", f"{found[-1]:.2f} s", versions])
print(f"{WRITES_PER_SECOND} transactions a second for {SUSTAINED_SECONDS} s into a database of 20 MB, from each one's "
      "commit to when the version that has it was seen in the store (S3 with 30 ms):\n")
print(table(["program", "median", "p99", "worst", "versions"], rows))
print(f"\n{version('rclone', 'version')}, {version('restic', 'version')}, litestream {version(LITESTREAM, 'version')}, "
      f"{version('s3fs', '--version')}.\n")
