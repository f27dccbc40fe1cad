#!/usr/bin/env python3
"""Restores a snapshot from a store, from docs/store-format.md alone: `read-store.py STORE INSTANCE DIR [COMMIT]`.

Needs the package `zstandard`. Takes the passphrase of an encrypted store from MOLTINIT_KEY. Prints the commit's id.
"""
import base64, hashlib, json, os, re, struct, sys

import zstandard

ULID = "[0-9A-HJKMNP-TV-Z]{26}"
SIDECARS = (b"-wal", b"-shm", b"-journal")


class Bad(Exception):
    pass


# XChaCha20-Poly1305 (RFC 8439 and draft-irtf-cfrg-xchacha), as slow as it is short.

def _rounds(state):
    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            v = state[z] ^ state[x]
            state[z] = ((v << turn) | (v >> (32 - turn))) & 0xFFFFFFFF
    for _ in range(10):
        quarter(0, 4, 8, 12); quarter(1, 5, 9, 13); quarter(2, 6, 10, 14); quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15); quarter(1, 6, 11, 12); quarter(2, 7, 8, 13); quarter(3, 4, 9, 14)
    return state


CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")


def _block(key, counter, nonce):
    start = [*CONSTANTS, *struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    end = _rounds(start[:])
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(start, end)))


def _poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at:at + 16] + b"\1", "little")) * r % ((1 << 130) - 5)
    return ((total + int.from_bytes(key[16:], "little")) & ((1 << 128) - 1)).to_bytes(16, "little")


def unseal(key, what, sealed):
    nonce, text, tag = sealed[:24], sealed[24:-16], sealed[-16:]
    state = _rounds([*CONSTANTS, *struct.unpack("<8I", key), *struct.unpack("<4I", nonce[:16])])
    key, nonce = struct.pack("<8I", *state[:4], *state[12:]), bytes(4) + nonce[16:]
    pad = lambda part: part + bytes(-len(part) % 16)
    message = pad(what) + pad(text) + struct.pack("<QQ", len(what), len(text))
    if _poly1305(_block(key, 0, nonce)[:32], message) != tag:
        raise Bad("a sealed part is not as it was written")
    stream = b"".join(_block(key, 1 + n, nonce) for n in range((len(text) + 63) // 64))
    return bytes(a ^ b for a, b in zip(text, stream))


class Store:
    def __init__(self, path, instance):
        self.path, self.instance = os.path.join(path, instance, "v1"), instance
        self.dirs, self.bases = {}, {}
        for name in os.listdir(self.path) if os.path.isdir(self.path) else []:
            found = re.fullmatch(f"({ULID})(?:\\.from\\.({ULID}-\\d{{8,}}))?", name)
            if found:
                self.dirs[found[1]], self.bases[found[1]] = name, found[2]
        self.key = None
        if os.environ.get("MOLTINIT_KEY"):
            salt = f"moltinit store v1 {instance}".encode()
            self.key = hashlib.pbkdf2_hmac("sha256", os.environ["MOLTINIT_KEY"].encode(), salt, 600_000)

    def object(self, commit):
        generation, seq = commit.split("-")
        if generation not in self.dirs:
            raise Bad(f"{commit}: its generation is not there")
        return os.path.join(self.path, self.dirs[generation], f"{int(seq) // 100:06}", f"{int(seq):08}.seg")

    def commits(self, generation):
        found = []
        for at, _, names in os.walk(os.path.join(self.path, self.dirs[generation])):
            found += [f"{generation}-{name[:-4]}" for name in names if re.fullmatch(r"\d{8,}\.seg", name)]
        return sorted(found, key=lambda commit: int(commit.split("-")[1]))

    def is_sealed_before(self, commit):
        for generation in sorted(self.dirs):
            for older in self.commits(generation):
                if (generation, int(older.split("-")[1])) >= (commit[:26], int(commit.split("-")[1])):
                    return False
                try:
                    if Segment(self, older).key:
                        return True
                except (Bad, OSError):
                    pass
        return False

    def tip(self, generations):
        based = [g for g in generations if self.bases[g]]
        if based or not generations:
            return max(based, default=None)
        time = lambda ulid: sum("0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(c) << 5 * (9 - n) for n, c in enumerate(ulid[:10]))
        return max(g for g in generations if time(g) <= time(min(generations)) + 300_000)

    def line(self, generations):
        """The commits along the line, newest first, in one list for each generation."""
        generation, until = self.tip(generations), None
        while generation:
            yield [c for c in reversed(self.commits(generation)) if until is None or int(c.split("-")[1]) <= until]
            base = self.bases[generation]
            generation, until = None, None
            if base:
                generation, seq = base.split("-")
                until = int(seq)
                if generation not in generations:
                    generation, until = self.tip({g for g in generations if g < generation}), None

    def newest(self):
        generations = set(self.dirs)
        while generations:
            finished = False
            for n, commits in enumerate(self.line(generations)):
                for commit in commits:
                    try:
                        Segment(self, commit)
                        finished = True
                        tree = Tree(self, commit)
                        for chunk in tree.used():
                            tree.chunk(chunk)
                        return tree
                    except (Bad, OSError) as error:
                        print(f"passed over: {error}", file=sys.stderr)
                if n == 0 and not finished:
                    break
            else:
                break
            generations.discard(self.tip(generations))
        raise Bad("no commit can be restored")


class Segment:
    def __init__(self, store, commit):
        self.store, self.commit = store, commit
        with open(store.object(commit), "rb") as file:
            self.bytes = file.read()
        trailer = self.bytes[-152:]
        if len(trailer) != 152 or trailer[:8] != b"MOLTTAIL":
            raise Bad(f"{commit}: never finished")
        version, flags, generation, seq, key_id = struct.unpack("<II16sQ16s", trailer[8:56])
        tree_at, tree_len, info_len, info_raw = struct.unpack("<4Q", trailer[56:88])
        if tree_at + tree_len + info_len + 152 != len(self.bytes) or not self.bytes.startswith(b"MOLTSEG1"):
            raise Bad(f"{commit}: its parts do not fill it")
        if hashlib.sha256(self.bytes[:-152]).digest() != trailer[88:120]:
            raise Bad(f"{commit}: the hash of the whole is wrong")
        info = self.bytes[tree_at + tree_len:-152]
        if hashlib.sha256(info + trailer[:120]).digest() != trailer[120:]:
            raise Bad(f"{commit}: the hash of the info is wrong")
        if version != 1:
            sys.exit(f"{commit} is of version {version}, which this reader does not know")
        self.key = store.key if flags & 1 else None
        if flags & 1 and (not self.key or hashlib.sha256(b"moltinit key id" + self.key).digest()[:16] != key_id):
            sys.exit(f"{commit} is encrypted with another key: set MOLTINIT_KEY")
        self.info = json.loads(self.unpack(f"info {commit} 0", info, info_raw))
        number = f"{int.from_bytes(generation, 'big'):0128b}".zfill(130)
        ulid = "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[int(number[n:n + 5], 2)] for n in range(0, 130, 5))
        if not f"{ulid}-{seq:08}" == self.info["meta"]["id"] == commit:
            raise Bad(f"{commit}: it is another commit")
        self.tree = self.bytes[tree_at:tree_at + tree_len]
        if hashlib.sha256(self.tree).hexdigest() != self.info["tree"]:
            raise Bad(f"{commit}: the hash of the tree is wrong")

    def unpack(self, what, stored, raw):
        if self.key:
            stored = unseal(self.key, what.encode(), stored)
        plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw)
        if len(plain) != raw:
            raise Bad(f"{self.commit}: {what} has the wrong length")
        return plain

    def lines(self):
        at, plain = 0, b""
        for block in range(self.info["blocks"]):
            length, raw = struct.unpack("<II", self.tree[at:at + 8])
            plain += self.unpack(f"tree {self.commit} {block}", self.tree[at + 8:at + 8 + length], raw)
            at += 8 + length
        return map(json.loads, plain.splitlines())


def raw(text):
    return base64.b64decode(text["base64"]) if isinstance(text, dict) else text.encode()


class Tree:
    def __init__(self, store, commit):
        self.store, self.commit, self.entries, self.where, self.open = store, commit, {}, {}, {}
        segment = Segment(store, commit)
        if "checkpoint" in segment.info:
            checkpoint = Segment(store, segment.info["checkpoint"])
            if segment.key and not checkpoint.key:
                raise Bad(f"{commit}: its checkpoint is not encrypted")
            self.apply(checkpoint)
        self.apply(segment)
        if store.key and not segment.key and store.is_sealed_before(commit):
            raise Bad(f"{commit}: it is not encrypted, though older commits are")
        for path, entry in self.entries.items():
            parts = path.split(b"/")
            if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
                raise Bad(f"{commit}: {path} is no path")
            parent = self.entries.get(b"/".join(parts[:-1])) if len(parts) > 1 else {"kind": "dir"}
            if not parent or parent["kind"] != "dir":
                raise Bad(f"{commit}: {path} is in no directory")
            if "len" in entry and sum(extent[-1] for extent in entry["extents"]) != entry["len"]:
                raise Bad(f"{commit}: {path} does not add up")

    def apply(self, segment):
        chunks, entry, old = [], None, []
        def extents(lists):
            for numbers in lists:
                if len(numbers) == 2:
                    yield from old[numbers[0]:sum(numbers)]
                elif len(numbers) == 3:
                    yield (chunks[numbers[0]], numbers[1], numbers[2])
                else:
                    yield (numbers[0],)
        for line in segment.lines():
            (kind, value), = line.items()
            if kind == "chunk":
                source = segment.info["sources"][value["source"]]["commit"]
                self.where[value["sha256"]] = (source, value["at"], value["len"], value["raw"])
                chunks.append(value["sha256"])
            elif kind == "remove":
                del self.entries[raw(value)]
            elif kind == "entry":
                path, entry = raw(value["path"]), value
                old = self.entries.get(path, {}).get("extents", [])
                if "extents" in entry:
                    entry["extents"] = list(extents(entry["extents"]))
                self.entries[path] = entry
            elif kind == "more":
                entry["extents"] += extents(value)

    def used(self):
        return {extent[0] for entry in self.entries.values() for extent in entry.get("extents", []) if len(extent) == 3}

    def chunk(self, sha256):
        commit, at, length, size = self.where[sha256]
        if commit not in self.open:
            self.open[commit] = Segment(self.store, commit)
        segment = self.open[commit]
        plain = segment.unpack("chunk", segment.bytes[at:at + length], size)
        if hashlib.sha256(plain).hexdigest() != sha256:
            raise Bad(f"{commit}: a chunk has the wrong hash")
        return plain

    def write(self, to):
        to = os.fsencode(to)
        place = lambda path: os.path.join(to, path)
        databases = {path for path, entry in self.entries.items() if entry["kind"] == "sqlite"}
        left_out = {path + suffix for path in databases for suffix in SIDECARS}
        entries = sorted((p, e) for p, e in self.entries.items() if p not in left_out or e["kind"] == "dir")
        for path, entry in entries:
            if entry["kind"] == "dir":
                os.mkdir(place(path))
            elif "extents" in entry:
                with open(place(path), "xb") as file:
                    for extent in entry["extents"]:
                        if len(extent) == 3:
                            file.write(self.chunk(extent[0])[extent[1]:extent[1] + extent[2]])
                        else:
                            file.seek(extent[0], os.SEEK_CUR)
                    file.truncate(entry["len"])
        for path, entry in entries:
            if entry["kind"] == "hardlink":
                os.link(place(raw(entry["to"])), place(path))
            elif entry["kind"] == "symlink":
                os.symlink(raw(entry["target"]), place(path))
        for path, entry in reversed(entries):
            if entry["kind"] == "hardlink":
                continue
            if os.geteuid() == 0:
                os.chown(place(path), entry["uid"], entry["gid"], follow_symlinks=False)
            if entry["kind"] != "symlink":
                os.chmod(place(path), entry["mode"])
            os.utime(place(path), ns=(entry["mtime_ns"],) * 2, follow_symlinks=False)


def main(store, instance, to, commit=None):
    store = Store(store, instance)
    os.makedirs(to, exist_ok=True)
    tree = Tree(store, commit) if commit else store.newest()
    tree.write(to)
    print(tree.commit)


if __name__ == "__main__":
    main(*sys.argv[1:])
