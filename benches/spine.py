"""The main job's own figures: from exec to the gateway's start, idle memory, from a change to its commit."""

import time

from bench import *

ROUNDS = 15
FILES = 300


def from_exec_to_gateway():
    times = []
    for round in range(ROUNDS):
        moltinit = Moltinit(f"start-{round}", scratch / f"empty-store-{round}")
        wait("the gateway's start", moltinit.started.exists)
        times.append((int(moltinit.started.read_text()) - moltinit.exec_ns) / 1e6)
        moltinit.stop()
    return times


def fill(state):
    for number in range(FILES):
        file = state / f"agents/main/{number // 50}/{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"number": {number}}}' * 50)


def from_change_to_commit(name, store):
    moltinit = Moltinit(name, store)
    moltinit.wait_until_ready()
    fill(moltinit.state)
    wait("the first commit", lambda: moltinit.last_commit() and moltinit.status()["snapshots"]["pending_paths"] == 0)
    times = []
    for round in range(ROUNDS):
        time.sleep(1.2)  # past the least gap between two commits, which is not what is measured
        before = moltinit.last_commit()
        began = time.monotonic()
        (moltinit.state / "agents/main/0/0.json").write_text(f"changed {round}")
        wait("a commit", lambda: moltinit.last_commit() != before, every=0.002)
        times.append((time.monotonic() - began) * 1e3)
    rss = moltinit.rss()
    moltinit.stop()
    return times, rss


def with_rclone(s3):
    local = scratch / "for-rclone"
    fill(local)
    s3.rclone("sync", local, f"s3:{s3.bucket}/rclone")
    times = []
    for round in range(ROUNDS):
        began = time.monotonic()
        (local / "agents/main/0/0.json").write_text(f"changed {round}")
        s3.rclone("sync", local, f"s3:{s3.bucket}/rclone")
        times.append((time.monotonic() - began) * 1e3)
    return times


def idle_memory():
    moltinit = Moltinit("idle", scratch / "idle-store")
    moltinit.wait_until_ready()
    time.sleep(5)
    rss = moltinit.rss()
    moltinit.stop()
    return rss


starts, idle = from_exec_to_gateway(), idle_memory()
local, _ = from_change_to_commit("local", scratch / "local-store")
s3 = S3(delay_ms=30)
mounted, busy = from_change_to_commit("mounted", s3.mount("mnt"))
peer = with_rclone(s3)
print("## The main job\n")
print("`./scripts/bench spine`: a stand-in for the gateway, the default pacing (250 ms of quiet), "
      f"{FILES} files of state; s3fs on moto's S3 server with 30 ms added to each request.\n")
print(table(["what", "measured", "aim"], [
    ["from exec to the gateway's start, empty store", spread(starts, "ms"), "under 30 ms"],
    ["resident memory of PID 1, idle", f"{idle / 2**20:.1f} MiB", "under 15 MiB"],
    ["from a change to its commit, local directory", spread(local, "ms", 0), "under 400 ms"],
    ["from a change to its commit, s3fs + 30 ms", spread(mounted, "ms", 0), "under 2,500 ms"],
    ["`rclone sync` of the same change, started at once, same S3 server", spread(peer, "ms", 0), ""],
]))
print(f"\nmoltinit's quiet time is part of its figures: 250 ms pass before it begins. Ratio to rclone: "
      f"{median(peer) / median(mounted):.1f}. Memory after the commits on s3fs: {busy / 2**20:.1f} MiB. "
      f"{version('rclone', 'version')}, {version('s3fs', '--version')}.\n")
