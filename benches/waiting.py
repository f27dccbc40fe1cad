"""What who uses a large database notices of its captures: how long its writes and its checkpoints take meanwhile."""

import sqlite3, threading

from bench import *

SIZE = int(os.environ.get("MOLTINIT_BENCH_DATABASE_MB", 200)) * 1_000_000
SECONDS = int(os.environ.get("MOLTINIT_BENCH_SECONDS", 30))
ROW = 100_000


class User(threading.Thread):
    """Writes a row now and then; with a log, each fifth time it begins the log anew, which waits for who reads it."""

    def __init__(self, path, mode):
        super().__init__(daemon=True)
        self.path, self.mode, self.stop = path, mode, threading.Event()
        self.took = {"a write": [], "a RESTART checkpoint": []}

    def run(self):
        db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        db.execute("PRAGMA synchronous=OFF")

        def timed(what, statement):
            began = time.monotonic()
            db.execute(statement).fetchall()
            self.took[what].append(1000 * (time.monotonic() - began))

        while not self.stop.wait(0.02 if self.mode == "wal" else 0.5):
            number = len(self.took["a write"])
            timed("a write", f"UPDATE t SET v = randomblob(3000) WHERE id = {number % (SIZE // ROW)}")
            if self.mode == "wal" and number % 5 == 4:
                timed("a RESTART checkpoint", "PRAGMA wal_checkpoint(RESTART)")
        db.close()


def large_database(path, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES(?, randomblob(?))", ((number, ROW) for number in range(SIZE // ROW)))
    db.execute("COMMIT")
    db.close()


def used(mode, captured):
    """The waits of a user, and how many snapshots were made meanwhile, the first of all of it among them."""
    name = f"waiting-{mode}-{captured}"
    path = scratch / name / "home/.openclaw/state.sqlite"
    large_database(path, mode)
    user, commits = User(path, mode), 0
    user.start()
    if captured:
        moltinit = Moltinit(name, scratch / name / "store")
        moltinit.wait_until_ready()
        time.sleep(SECONDS)
        commits = len(get(moltinit.port, "/snapshots")["snapshots"])
    else:
        time.sleep(SECONDS / 3)
    user.stop.set()
    user.join()
    if captured:
        moltinit.stop()
    shutil.rmtree(scratch / name)
    return {what: sorted(took) for what, took in user.took.items() if took}, commits


print(f"""## Waiting for a capture

`./scripts/bench waiting`: a database of {SIZE // 1_000_000} MB that is written to every 20 ms with a write-ahead log, every 500 ms with a
rollback journal, while it is captured as a whole and then again whenever it has changed, for {SECONDS} s. In ms.

| database | what | alone: median | worst | captured: median | 99 % | worst | snapshots |
| --- | --- | --- | --- | --- | --- | --- | --- |""")
for mode, called in [("wal", "write-ahead log"), ("delete", "rollback journal")]:
    alone, _ = used(mode, False)
    waits, commits = used(mode, True)
    for what, took in waits.items():
        quiet = alone[what]
        print(f"| {called} | {what} | {statistics.median(quiet):.1f} | {quiet[-1]:.1f} | {statistics.median(took):.1f} "
              f"| {took[len(took) * 99 // 100]:.1f} | {took[-1]:.1f} (n={len(took)}) | {commits} |")
print("\nAim: nobody is kept waiting for more than 5 ms.\n")
