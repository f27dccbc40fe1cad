"""The state engine: one small change, and a whole restore, beside rclone and restic.

MOLTINIT_BENCH_SCALE=0.01 makes everything a hundredth of its size, to try the script itself."""

import sqlite3

from bench import *

SCALE = float(os.environ.get("MOLTINIT_BENCH_SCALE", 1))
FILES, FILE_BYTES, DB_BYTES = int(10_000 * SCALE), 50_000, int(1_000_000_000 * SCALE)
ROUNDS = 3
PAGE, CHANGED_FILE, DB = 4096, "agents/main/0/0.json", "state/openclaw.sqlite"


# As the gateway has its own: the last connection that closes folds the write-ahead log into the database.
open_databases = []


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
    open_databases.append(db)


def change_a_file(state, round):
    (state / CHANGED_FILE).write_bytes(b"changed %d" % round + os.urandom(1000))


def change_a_row(state, round):
    db = sqlite3.connect(state / DB)
    with db:
        db.execute("UPDATE rows SET body = randomblob(1000) WHERE id = ?", (round * 7 + 1,))
    db.close()


class Subject:
    """A program that brings a directory to a store and back."""

    def __init__(self, name, s3, place, prefix):
        """`place` is its store as a local directory, `prefix` where in the bucket it is."""
        self.name, self.s3, self.place, self.prefix = name, s3, place, prefix

    def measured(self, change):
        """Medians of seconds to durable, CPU seconds, bytes, new objects and requests of one change."""
        found = []
        for round in range(ROUNDS):
            self.settle()
            objects, before = self.objects(), self.s3.requests() if self.s3 else 0
            took = self.once(change, round)
            requests = (self.s3.requests() if self.s3 else 0) - before
            found.append((*took, len(self.objects() - objects), requests))
        return [median(column) for column in zip(*found)]

    def settle(self):
        """Nothing of an earlier round is left to be done."""

    def fresh(self):
        """An empty directory to restore into. None is removed before all are done: where many files have just been
        removed, ext4 searches long for inodes of new ones."""
        return tempfile.mkdtemp(prefix="restored-", dir=scratch)

    def objects(self):
        """The names in the store, asked past the slow wire."""
        if self.s3:
            return set(self.s3.names(self.prefix))
        return {path for path in self.place.rglob("*") if path.is_file()}


class Ours(Subject):
    def __init__(self, name, s3, store):
        super().__init__(name, s3, store, "default/")
        self.store = store
        self.moltinit = Moltinit(f"ours-{name}", store)
        self.moltinit.wait_until_ready()
        self.state, self.idle = self.moltinit.state, self.moltinit.rss()
        fill(self.state)
        began = time.monotonic()
        self.moltinit.commit()
        self.first = time.monotonic() - began

    def settle(self):
        self.moltinit.commit()
        time.sleep(1.2)  # past the least gap between two commits, which is not what is measured

    def once(self, change, round):
        before, cpu = self.moltinit.last_commit(), self.cpu()
        began = time.monotonic()
        change(self.state, round)
        wait("a commit", lambda: self.moltinit.last_commit() != before, every=0.02)
        took = time.monotonic() - began
        return took, self.cpu() - cpu, self.moltinit.status()["snapshots"]["last"]["stored_bytes"]

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.moltinit.process.pid}/stat").read_text().rsplit(")")[-1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def restore(self):
        took, _, peak, *_ = ran([MOLTINIT, "restore", "--to", self.fresh(), "--store", self.store], env=self.env())
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
    # What its documentation advises for a bucket: one listing of all of it, and no look whether the bucket is there.
    OPTIONS = ["--fast-list", "--s3-no-check-bucket"]

    def __init__(self, name, s3, to):
        super().__init__(name, s3, to, "rclone/")
        self.to, self.state = to, scratch / f"rclone-{name}"
        self.env = s3.rclone_env() if s3 else os.environ
        fill(self.state)
        ran(["rclone", "sync", *self.OPTIONS, self.state, to], env=self.env)

    def once(self, change, round):
        began = time.monotonic()
        change(self.state, round)
        took = ran(["rclone", "sync", "--use-json-log", "--stats-log-level", "NOTICE", *self.OPTIONS, self.state, self.to],
                   env=self.env)
        return time.monotonic() - began, took[1], json.loads(took[4].splitlines()[-1])["stats"]["bytes"]

    def restore(self):
        took, _, peak, *_ = ran(["rclone", "copy", *self.OPTIONS, self.to, self.fresh()], env=self.env)
        return took, peak


class Restic(Subject):
    def __init__(self, name, s3, repository):
        super().__init__(name, s3, repository, "restic/")
        self.state = scratch / f"restic-{name}"
        self.env = {"PATH": os.environ["PATH"], "HOME": str(scratch), "RESTIC_REPOSITORY": str(repository),
                    "RESTIC_PASSWORD": "password", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        fill(self.state)
        ran(["restic", "init"], env=self.env)
        ran(["restic", "backup", "--quiet", self.state], env=self.env)

    def once(self, change, round):
        began = time.monotonic()
        change(self.state, round)
        _, cpu, _, out, _ = ran(["restic", "backup", "--json", self.state], env=self.env)
        took = time.monotonic() - began
        return took, cpu, json.loads(out.splitlines()[-1])["data_added"]

    def restore(self):
        took, _, peak, *_ = ran(["restic", "restore", "latest", "--target", self.fresh()], env=self.env)
        return took, peak


def compared(place, ours, peers):
    """The tables of one kind of store."""
    rows, notes = [], []
    for title, change in [("a file", change_a_file), ("a row", change_a_row)]:
        found = [(subject, subject.measured(change)) for subject in [ours, *peers]]
        mine = found[0][1]
        for subject, (took, cpu, stored, objects, requests) in found:
            rows.append([title, subject.name, f"{took:.2f} s", f"{took / mine[0]:.1f}", f"{cpu:.2f} s",
                         f"{stored / 1000:.0f} kB", f"{objects:.0f}", f"{requests:.0f}" if subject.s3 else ""])
        least = min(took for _, (took, *_) in found[1:]) / mine[0]
        notes.append(f"* Change of {title}: " + ", ".join([
            verdict(f"{least:.1f}x faster than the faster peer", "10x", least >= 10),
            verdict(f"{mine[3]:.0f} objects", "1", mine[3] <= 1), verdict(f"{mine[1]:.2f} s of CPU", "under 1 s", mine[1] < 1),
        ]))
        if change is change_a_row:
            # The row's page alone; a page of an index or of the table's root may have changed beside it.
            notes[-1] += ", " + verdict(f"{mine[2] / PAGE:.1f} pages stored for the one changed", "3", mine[2] <= 3 * PAGE)
    print(f"One change among {FILES:,} files of {FILE_BYTES // 1000} kB and a database of {DB_BYTES / 1e6:.0f} MB, {place}:\n")
    print(table(["change of", "program", "to durable", "ratio", "CPU", "stored", "new objects", "requests"], rows) + "\n")
    # In turns, so that what else the machine does meets all of them alike.
    cats, restores = [], {subject: [] for subject in [ours, *peers]}
    for _ in range(ROUNDS):
        cats.append(ours.cat())
        for subject, found in restores.items():
            found.append(subject.restore())
    for restored in scratch.glob("restored-*"):
        shutil.rmtree(restored)
    cat, rows = median(cats), [["`cat` of moltinit's store", spread(cats, "s"), "", ""]]
    took = {subject: median([seconds for seconds, _ in found]) for subject, found in restores.items()}
    for subject, found in restores.items():
        rows.append([subject.name, spread([seconds for seconds, _ in found], "s"), f"{took[subject] / took[ours]:.1f}",
                     f"{max(peak for _, peak in found) / 2**20:.0f} MiB"])
    rclone, restic = (took[peer] / took[ours] for peer in peers)
    rose = max(peak for _, peak in restores[ours]) - ours.idle
    notes.append("* Restore: " + ", ".join([
        verdict(f"{rclone:.1f}x faster than `rclone copy`", "5x", rclone >= 5),
        verdict(f"{restic:.1f}x faster than `restic restore`", "faster", restic > 1),
        # Of a local store the page cache has everything.
        *([verdict(f"{cat / took[ours] * 100:.0f} % of the speed of `cat`", "80 %", cat >= 0.8 * took[ours])] if ours.s3 else []),
        verdict(f"{rose / 2**20:.0f} MiB at its peak over what the supervisor has when idle", "64 MiB", rose < 64 << 20),
    ]))
    rose = ours.moltinit.peak() - ours.idle
    notes.append("* The supervisor's memory, all of this and the first commit included (" + f"{ours.first:.1f} s): " +
                 verdict(f"{rose / 2**20:.1f} MiB over the {ours.idle / 2**20:.1f} MiB when idle", "64 MiB", rose < 64 << 20))
    print(f"All of it back, {place}:\n")
    print(table(["program", "restore", "ratio", "peak memory"], rows) + "\n")
    print("\n".join(notes) + "\n")
    ours.moltinit.stop()


print("## The state engine\n")
print("`./scripts/bench state`: medians. moltinit's times include its quiet time of 250 ms; peers are started at once "
      "after the change, as if somebody knew. S3 is moto's server with 30 ms added to each burst of a request; moltinit "
      "and `cat` use it through s3fs, the peers through their own clients. The database is open, as the gateway has it, and "
      "written to by its write-ahead log; what rclone copies of it is not consistent.\n")
compared("local directory", Ours("moltinit", None, scratch / "store"),
         [Rclone("rclone", None, scratch / "rclone-store"), Restic("restic", None, scratch / "restic-store")])
for path in scratch.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
s3 = S3(delay_ms=30)
compared("S3 with 30 ms", Ours("moltinit on S3", s3, s3.mount("store")),
         [Rclone("rclone on S3", s3, f"s3:{s3.bucket}/rclone"),
          Restic("restic on S3", s3, f"s3:http://127.0.0.1:{s3.port}/{s3.bucket}/restic")])
print(f"{version('rclone', 'version')}, {version('restic', 'version')}, {version('s3fs', '--version')}.\n")
