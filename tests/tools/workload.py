#!/usr/bin/env python3
"""An agent that never rests, and that knows what it must find when it wakes up.

workload.py LEDGERS SEED BOOT STATE

Runs as the gateway. It changes files and SQLite databases below STATE at random and writes down in LEDGERS, which
outlives the container, what it is about to do and what it has done. SIGUSR1 makes it take 400 MiB. Each time a container starts (BOOT differs) it first
holds what was restored against the ledger of the life before. Of every path and database the state that is found has
to be the one at the *floor* or a later one. The floor is set by whoever was told that a snapshot is durable: a file
`floor` beside the ledgers with the lengths that they had before the snapshot was asked for. What was found is the
beginning of the next life `life-NNNN`, all of it required; or else it is a line in `violations`, and nothing is changed.
"""
import errno
import glob
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import sys
import threading
import time
import traceback

LEDGERS, SEED, BOOT, STATE = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
ROOT = os.path.join(STATE, "work")
DATABASES = {"wal": "WAL", "rollback": "DELETE", "truncate": "TRUNCATE"}
ACCOUNTS, TOTAL = 50, 50_000
KEPT_TRANSFERS = 400
FILES, PAUSE = 150, 0.02
# None that makes a file run as its owner: in a user namespace, a write takes that away.
MODES = [0o600, 0o644, 0o755, 0o1755]


def put(file, data):
    """All of it, or an error: where a disk is full, a single write ends early and says nothing."""
    while data:
        data = data[os.write(file, data):]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def content(key, length):
    return random.Random(f"{SEED} {key}").randbytes(length)


def look(path):
    """What is at `path`, as ledgers have it; None for nothing."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return {"kind": "dir", "mode": mode}
    if stat.S_ISLNK(found.st_mode):
        return {"kind": "link", "to": os.readlink(path)}
    with open(path, "rb") as file:
        data = file.read()
    return {"kind": "file", "mode": mode, "len": len(data), "sha": digest(data)}


def scan():
    """Everything below ROOT but the databases, by path relative to it."""
    found = {}
    for above, dirs, files in os.walk(ROOT):
        for name in dirs + files:
            path = os.path.join(above, name)
            rel = os.path.relpath(path, ROOT)
            if not rel.startswith("databases") and not rel.endswith(".tmp"):
                found[rel] = look(path)
    return found


class Ledger:
    """Lines of JSON, each written at once."""

    def __init__(self, life, name):
        self.path = os.path.join(life, name)
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line):
        os.write(self.file, json.dumps(line).encode() + b"\n")


def lines(life, name):
    """The ledger's whole lines, each with where it ends. A kill can cut the last one."""
    try:
        with open(os.path.join(life, name), "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return
    end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if line.endswith(b"\n"):
            yield end, json.loads(line)


# Files


class Files:
    """Changes to files, one at a time."""

    def __init__(self, life, present, rng):
        self.life, self.present, self.rng = os.path.basename(life), dict(present), rng
        # Names and contents are made of the number: after a restart it goes on.
        self.ledger, self.number = Ledger(life, "files"), sum(1 for _ in lines(life, "files"))

    def do(self, after, act, how="at once", piece=None, moved=None):
        """Writes down what `act` makes of which paths, does it, and writes down that it is done."""
        self.number += 1
        self.ledger.write({"after": after, "how": how, "piece": piece, "moved": moved})
        act()
        self.ledger.write({"done": True})
        for path, state in after.items():
            self.present.pop(path, None)
            if state is not None:
                self.present[path] = state

    def catch_up(self):
        """After a restart in the same container: what the one before was about to do is done, half done, or not."""
        found = scan()
        paths = {path for path in found.keys() | self.present.keys() if found.get(path) != self.present.get(path)}
        if paths:
            self.do({path: found.get(path) for path in paths}, lambda: None)

    def of_kind(self, *kinds):
        return [path for path, state in self.present.items() if state["kind"] in kinds]

    def directory(self):
        return self.rng.choice(["", *self.of_kind("dir")])

    def new_path(self):
        odd = ["plain", "with space", "né", "line\nbreak", "-dash", "*?[", "quo'te\"", "\udcff\udcfe", "x" * 120, "CON", "back\\slash"]
        path = os.path.join(self.directory(), f"{self.rng.choice(odd)}.{self.life}.{self.number}")
        return path if len(os.fsencode(path)) < 900 else self.new_top()

    def new_top(self):
        return f"top.{self.life}.{self.number}"

    def piece(self):
        length = int(self.rng.choice([0, 1, 100, 4096, 5000, 60_000, 60_000, self.rng.random() * 1_500_000]))
        key = f"{self.life} {self.number}"
        return {"key": key, "len": length}, content(key, length)

    def write(self, path, mode, flags):
        piece, data = self.piece()
        after = {"kind": "file", "mode": mode, "len": len(data), "sha": digest(data)}

        def act():
            file = os.open(os.path.join(ROOT, path), os.O_WRONLY | os.O_CREAT | flags, mode)
            half = self.rng.randint(0, len(data))
            for part in (data[:half], data[half:]):
                put(file, part)
            os.close(file)

        self.do({path: after}, act, "write", piece)

    def create(self):
        self.write(self.new_path(), self.rng.choice(MODES), os.O_EXCL)

    def rewrite(self, path):
        self.write(path, self.present[path]["mode"], os.O_TRUNC)

    def append(self, path):
        piece, data = self.piece()
        with open(os.path.join(ROOT, path), "rb") as file:
            whole = file.read() + data
        after = {**self.present[path], "len": len(whole), "sha": digest(whole)}

        def act():
            file = os.open(os.path.join(ROOT, path), os.O_WRONLY | os.O_APPEND)
            put(file, data)
            os.close(file)

        self.do({path: after}, act, "append", piece)

    def replace(self, path):
        _, data = self.piece()
        mode = self.rng.choice([0o600, 0o640])
        place = os.path.join(ROOT, path)

        def act():
            file = os.open(place[:-1] + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            os.fchmod(file, mode)
            put(file, data)
            os.close(file)
            os.rename(place[:-1] + ".tmp", place)

        self.do({path: {"kind": "file", "mode": mode, "len": len(data), "sha": digest(data)}}, act)

    def chmod(self, path):
        mode = self.rng.choice([0o600, 0o644, 0o700, 0o000])
        self.do({path: {**self.present[path], "mode": mode}}, lambda: os.chmod(os.path.join(ROOT, path), mode))

    def unlink(self, path):
        self.do({path: None}, lambda: os.unlink(os.path.join(ROOT, path)))

    def below(self, path):
        return [each for each in self.present if each == path or each.startswith(path + "/")]

    def move(self, path):
        moved = self.below(path)
        to = self.new_path()
        if to.startswith(path + "/"):
            to = self.new_top()
        after = {each: None for each in moved}
        after |= {to + each[len(path):]: self.present[each] for each in moved}
        self.do(after, lambda: os.rename(os.path.join(ROOT, path), os.path.join(ROOT, to)), moved=[path, to])

    def move_over(self, path):
        other = self.rng.choice(self.of_kind("file"))
        if other != path:
            after = {path: None, other: self.present[path]}
            self.do(after, lambda: os.rename(os.path.join(ROOT, path), os.path.join(ROOT, other)))

    def link(self):
        path = self.new_path()
        to = self.rng.choice(["nowhere", "../up", "/etc/hostname", "té\nst"])
        self.do({path: {"kind": "link", "to": to}}, lambda: os.symlink(to, os.path.join(ROOT, path)))

    def mkdir(self):
        path = self.new_path()
        mode = self.rng.choice([0o700, 0o755])
        self.do({path: {"kind": "dir", "mode": mode}}, lambda: os.mkdir(os.path.join(ROOT, path), mode))

    def remove_tree(self, path):
        self.do({each: None for each in self.below(path)}, lambda: shutil.rmtree(os.path.join(ROOT, path)))

    def step(self):
        files, dirs, names = self.of_kind("file"), self.of_kind("dir"), self.of_kind("file", "link")
        if len(files) < 5:
            return self.create()
        if len(self.present) > FILES:
            return self.remove_tree(self.rng.choice(dirs)) if dirs else self.unlink(self.rng.choice(names))
        choices = [
            (4, self.create, None),
            (3, self.rewrite, files),
            (4, self.append, files),
            (3, self.replace, files),
            (2, self.chmod, files + dirs),
            (2, self.unlink, names),
            (2, self.move, files + dirs),
            (1, self.move_over, files),
            (1, self.link, None),
            (2, self.mkdir, None),
            (0.2, self.remove_tree, dirs),
        ]
        choices = [choice for choice in choices if choice[2] is None or choice[2]]
        _, act, of = self.rng.choices(choices, [choice[0] for choice in choices])[0]
        act(*([] if of is None else [self.rng.choice(of)]))


def read(path):
    with open(os.path.join(ROOT, path), "rb") as file:
        return file.read()


def is_part(found, path, before, change):
    """Whether `found` is a change of contents half done: they are no single moment's work."""
    after, piece = change["after"][path], change["piece"]
    if found is None or found["kind"] != "file" or after is None or piece is None:
        return False
    if found["mode"] != after["mode"]:
        return False
    data = read(path)
    kept = before["len"] if change["how"] == "append" and before else 0
    if kept and (len(data) < kept or digest(data[:kept]) != before["sha"]):
        return False
    return content(piece["key"], piece["len"]).startswith(data[kept:])


def check_files(life, base, floor):
    history = {path: [(True, state, None)] for path, state in base.items()}
    changes = []
    for end, line in lines(life, "files"):
        if "after" in line:
            changes.append([line, False])
        else:
            changes[-1][1] = end <= floor
    for change, required in changes:
        for path, state in change["after"].items():
            history.setdefault(path, [(True, None, None)]).append((required, state, change))
    present = scan()
    for path in sorted(present.keys() | history.keys()):
        found, versions = present.get(path), history.get(path, [(True, None, None)])
        first = max(index for index, version in enumerate(versions) if version[0])
        if any(found == state for _, state, _ in versions[first:]):
            continue
        later = zip(versions[first:], versions[first + 1:])
        if any(is_part(found, path, before[1], after[2]) for before, after in later):
            continue
        yield f"{path!r} is {found}, but may be {[state for _, state, _ in versions[first:]]}"
    yield from lost_between_names(changes, history, present)


def lost_between_names(changes, history, present):
    """What was there at the floor, and since then was only given another name, has to be under one of them."""
    later = {}
    for change, required in changes:
        if not required:
            for path in change["after"]:
                later.setdefault(path, []).append(change)
    for change, required in changes:
        if required or not change["moved"]:
            continue
        names = change["moved"]
        was_there = [state for required, state, _ in history[names[0]] if required][-1] is not None
        only_moved = all(later[name] == [change] for name in names)
        if was_there and only_moved and not any(name in present for name in names):
            yield f"what went from {names[0]!r} to {names[1]!r} is under neither name"


# Databases


def database(name):
    return os.path.join(ROOT, "databases", f"{name}.db")


def connect(name):
    connection = sqlite3.connect(database(name), timeout=60, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA journal_mode = {DATABASES[name]}")
    return connection


SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE account (id INTEGER PRIMARY KEY, opening INTEGER, balance INTEGER);
CREATE TABLE transfer (seq INTEGER PRIMARY KEY, src INTEGER, dst INTEGER, amount INTEGER, note BLOB);
CREATE INDEX by_src ON transfer (src, amount);
CREATE INDEX by_note ON transfer (note);
CREATE TABLE state (seq INTEGER, pruned INTEGER);
INSERT INTO state VALUES (0, 0);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
    INSERT INTO account SELECT i, {TOTAL // ACCOUNTS}, {TOTAL // ACCOUNTS} FROM n;
COMMIT;
"""


def has_schema(connection):
    return connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'state'").fetchone()[0] == 1


def transfer(connection, ledger, rng):
    """Money from one account to another, a record of it, and the number of it: in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    seq, pruned = connection.execute("SELECT seq, pruned FROM state").fetchone()
    seq += 1
    src, dst, amount = rng.randint(1, ACCOUNTS), rng.randint(1, ACCOUNTS), rng.randint(1, 100)
    connection.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, src))
    connection.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, dst))
    note = rng.randbytes(rng.choice([10, 100, 1000, 20_000]))
    connection.execute("INSERT INTO transfer VALUES (?, ?, ?, ?, ?)", (seq, src, dst, amount, note))
    connection.execute("UPDATE state SET seq = ?", (seq,))
    if seq - pruned > KEPT_TRANSFERS:
        pruned = seq - KEPT_TRANSFERS // 2
        connection.execute(
            "UPDATE account SET opening = opening"
            " + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE dst = id AND seq <= ?1)"
            " - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE src = id AND seq <= ?1)",
            (pruned,),
        )
        connection.execute("DELETE FROM transfer WHERE seq <= ?", (pruned,))
        connection.execute("UPDATE state SET pruned = ?", (pruned,))
    if rng.random() < 0.05:
        connection.execute("ROLLBACK")
        return
    connection.execute("COMMIT")
    ledger.write({"seq": seq})


def transfer_for_ever(name, life, rng):
    connection = connect(name)
    if not has_schema(connection):
        connection.executescript(SCHEMA)
    ledger = Ledger(life, name)
    while True:
        transfer(connection, ledger, rng)
        if rng.random() < 0.01:
            connection.execute(rng.choice(["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA optimize"]))
        time.sleep(rng.random() * 2 * PAUSE)


def check_database(name, required):
    """What is wrong with a database in which at least that many transfers are required."""
    if not os.path.exists(database(name)):
        if required:
            yield f"{name} is gone, but had {required} transfers"
        return
    connection = sqlite3.connect(database(name))
    verdict = connection.execute("PRAGMA integrity_check").fetchall()
    if verdict != [("ok",)]:
        yield f"{name}: {verdict}"
        return
    if not has_schema(connection):
        if required:
            yield f"{name} is empty, but had {required} transfers"
        return
    one = lambda sql: connection.execute(sql).fetchone()
    seq, pruned = one("SELECT seq, pruned FROM state")
    if seq < required:
        yield f"{name} has {seq} transfers, but {required} are required"
    if one("SELECT sum(balance), count(*) FROM account") != (TOTAL, ACCOUNTS):
        yield f"{name}: the total is not {TOTAL}"
    if one("SELECT count(*), coalesce(max(seq), 0) FROM transfer") != (seq - pruned, seq):
        yield f"{name}: not the transfers from {pruned} to {seq}"
    wrong = one(
        "SELECT count(*) FROM account WHERE balance != opening"
        " + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE dst = id)"
        " - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE src = id)"
    )
    if wrong != (0,):
        yield f"{name}: {wrong[0]} balances are not what the transfers make them"
    connection.close()


def seqs():
    found = {}
    for name in DATABASES:
        if os.path.exists(database(name)):
            connection = sqlite3.connect(database(name))
            found[name] = connection.execute("SELECT seq FROM state").fetchone()[0] if has_schema(connection) else 0
            connection.close()
    return found


# Lives


def load(path, otherwise):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return otherwise


def check_gateways():
    """What is wrong with the databases of a real gateway. One that is in somebody's exclusive use is its user's business."""
    for path in glob.glob(f"{STATE}/state/*.sqlite") + glob.glob(f"{STATE}/agents/*/agent/*.sqlite"):
        connection = sqlite3.connect(path, timeout=60)
        try:
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.OperationalError:
            continue
        finally:
            connection.close()
        if verdict != [("ok",)]:
            yield f"{path}: {verdict}"


def violations(life):
    yield from check_gateways()
    base = load(os.path.join(life, "base"), {"paths": {}, "seqs": {}})
    floor = load(os.path.join(life, "floor"), {})
    yield from check_files(life, base["paths"], floor.get("files", 0))
    for name in DATABASES:
        done = [line["seq"] for end, line in lines(life, name) if end <= floor.get(name, 0)]
        yield from check_database(name, max([base["seqs"].get(name, 0), *done]))


def begin(number):
    """The ledgers of a new life. They are there with their base, or not at all."""
    life = os.path.join(LEDGERS, f"life-{number:04}")
    shutil.rmtree(life + ".new", ignore_errors=True)
    os.mkdir(life + ".new")
    with open(os.path.join(life + ".new", "base"), "w") as file:
        json.dump({"boot": BOOT, "paths": scan(), "seqs": seqs()}, file)
    os.rename(life + ".new", life)
    return life


def wake():
    """This life's ledgers, and what there is of files by them."""
    lives = sorted(name for name in os.listdir(LEDGERS) if name.startswith("life-") and not name.endswith(".new"))
    if lives:
        last = os.path.join(LEDGERS, lives[-1])
        base = load(os.path.join(last, "base"), None)
        if base["boot"] == BOOT:
            present = dict(base["paths"])
            for _, line in lines(last, "files"):
                for path, state in line.get("after", {}).items():
                    present.pop(path, None)
                    if state is not None:
                        present[path] = state
            return last, present
        found = list(violations(last))
        if found:
            complain("".join(f"{last}: {line}\n" for line in found))
    life = begin(len(lives) + 1)
    return life, load(os.path.join(life, "base"), None)["paths"]


def complain(text):
    """Says what must not be, and stops changing anything."""
    with open(os.path.join(LEDGERS, "violations"), "a") as file:
        file.write(text)
    os.kill(os.getpid(), signal.SIGSTOP)


def guarded(work, *args):
    """An agent that cannot work, because a database stays locked or a file is not what it was, has been disturbed. One
    whose disk is full has not: it ends, and begins again."""
    try:
        work(*args)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error):
            os._exit(1)
        complain(traceback.format_exc())


def grow(hoard=[]):
    """Takes a lot of memory and keeps it."""
    hoard.append(b"\1" * (400 << 20))


def main():
    signal.signal(signal.SIGUSR1, lambda *_: grow())
    os.umask(0)
    os.makedirs(os.path.join(ROOT, "databases"), exist_ok=True)
    life, present = wake()
    # A restart in the same container goes on differently.
    rng = lambda name: random.Random(f"{SEED} {BOOT} {name} {time.monotonic_ns() if present else 0}")
    files = Files(life, present, rng("files"))
    files.catch_up()
    for name in DATABASES:
        threading.Thread(target=guarded, args=(transfer_for_ever, name, life, rng(name)), daemon=True).start()
    while True:
        files.step()
        time.sleep(files.rng.random() * 2 * PAUSE)


guarded(main)
