"""From a write to when it is durable, under writes without a pause, beside litestream on the same databases."""

import sqlite3, threading

from bench import *

SECONDS = int(os.environ.get("MOLTINIT_BENCH_SECONDS", 60))
WRITES_PER_SECOND = 20
DATABASES = ["state/openclaw.sqlite", "agents/main/memory.sqlite"]


class Writer(threading.Thread):
    """Commits rows to a database, and notes when each commit returned."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.times = path, {}

    def run(self):
        db = sqlite3.connect(self.path, timeout=30)
        began = time.monotonic()
        for number in range(1, SECONDS * WRITES_PER_SECOND + 1):
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
    return found


def observed(paths, watch, finished):
    """Lets the writers run, and gives their times and when each version was first seen by `watch(seen)`, over and over."""
    seen, stop = {}, threading.Event()

    def watching():
        while not stop.is_set():
            with contextlib.suppress(OSError, ValueError):
                watch(seen)

    watcher = threading.Thread(target=watching, daemon=True)
    watcher.start()
    writers = [Writer(path) for path in paths]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    finished(seen)
    stop.set()
    watcher.join()
    return [writer.times for writer in writers], seen


def sustained_ours(s3):
    store = s3.mount("sustained")
    moltinit = Moltinit("sustained-state", store)
    moltinit.wait_until_ready()
    idle, paths = moltinit.rss(), [moltinit.state / name for name in DATABASES]
    for path in paths:
        small_database(path)
    moltinit.commit()

    def watch(seen):
        seen.setdefault(moltinit.last_commit(), time.monotonic())
        time.sleep(0.02)

    def finished(seen):
        commit = moltinit.commit()
        wait("the last commit to be seen", lambda: commit in seen, every=0.05)

    times, seen = observed(paths, watch, finished)
    rose = moltinit.peak() - idle
    moltinit.stop()
    durable = [[] for _ in DATABASES]
    for commit, moment in seen.items():
        to = scratch / "sustained-restored"
        ran([MOLTINIT, "restore", "--to", to, "--store", store, commit],
            env={"PATH": os.environ["PATH"], "HOME": str(moltinit.dir / "home")})
        for name, versions in zip(DATABASES, durable):
            versions.append((moment, last_row(to / "state" / name)))
        shutil.rmtree(to)
    return sorted(delay for pair in zip(times, durable) for delay in delays(*pair)), len(seen), rose


def sustained_litestream(s3):
    config = scratch / "litestream.yml"
    paths = [scratch / f"litestream-{number}/db.sqlite" for number in range(len(DATABASES))]
    for path in paths:
        small_database(path)
    config.write_text("access-key-id: key\nsecret-access-key: secret\ndbs:\n" + "".join(f"""
  - path: {path}
    replicas:
      - type: s3
        bucket: {s3.bucket}
        path: litestream/{number}
        endpoint: http://127.0.0.1:{s3.port}
        region: us-east-1
        force-path-style: true
""" for number, path in enumerate(paths)))
    process = start([LITESTREAM, "replicate", "-config", config])
    segments = lambda: [name for name in s3.names("litestream/") if name.endswith(".wal.lz4")]
    snapshots = lambda: [name for name in s3.names("litestream/") if "/snapshots/" in name]
    wait("the first versions", lambda: len(snapshots()) == len(paths), every=0.1)

    def watch(seen):
        for name in segments():
            seen.setdefault(name, time.monotonic())
        time.sleep(0.02)

    def finished(seen):
        count = -1
        while count != (count := len(segments())):
            time.sleep(3)

    times, seen = observed(paths, watch, finished)
    end(process)
    found = []
    for number, written in enumerate(times):
        mine = {name: moment for name, moment in seen.items() if name.startswith(f"litestream/{number}/")}
        found += delays(written, versions_of_litestream(s3, number, mine))
    return sorted(found), len(seen), None


def versions_of_litestream(s3, number, seen):
    """What each of its pieces of a WAL adds: its own restore knows whole WALs only."""
    def fetched(name):
        packed = ran(["rclone", "cat", f"s3:{s3.bucket}/{name}"], env=s3.rclone_env())[3]
        return subprocess.run(["lz4", "-d"], input=packed, capture_output=True, check=True).stdout
    base, wal = scratch / f"base-{number}", scratch / f"base-{number}-wal"
    (snapshot,) = [name for name in s3.names(f"litestream/{number}/") if "/snapshots/" in name]
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


s3 = S3(delay_ms=30)
rows = []
for name, (found, versions, rose) in [("moltinit, through s3fs", sustained_ours(s3)),
                                      ("litestream, its own client, as it is configured out of the box", sustained_litestream(s3))]:
    rows.append([name, f"{percentile(found, .5):.2f} s", f"{percentile(found, .99):.2f} s", f"{found[-1]:.2f} s", versions])
    if rose is not None:
        p99 = percentile(found, .99)
        note = "* Under sustained writes: " + ", ".join([
            verdict(f"{p99:.2f} s at the 99th percentile", "under 2 s", p99 < 2),
            verdict(f"{rose / 2**20:.1f} MiB over idle", "64 MiB", rose < 64 << 20)])
print("## Durability under writes\n")
print(f"`./scripts/bench sustained`: {WRITES_PER_SECOND} transactions a second for {SECONDS} s into each of "
      f"{len(DATABASES)} databases of 20 MB, from each one's commit to when the version that has it was seen in the store (S3 "
      "with 30 ms):\n")
print(table(["program", "median", "p99", "worst", "versions"], rows))
print(f"\n{note}\n\nlitestream {version(LITESTREAM, 'version')}, {version('s3fs', '--version')}.\n")
