"""From the container's start to a gateway that is ready, beside a shell script that does what moltworker's does."""

import datetime, itertools

from bench import *

LATEST, PINNED = (pathlib.Path(os.environ[name]) for name in ("MOLTINIT_BENCH_OPENCLAW", "MOLTINIT_BENCH_OPENCLAW_PINNED"))
# What the gateway has done by then, as it says itself.
TRACED = {"cli.main.argv": "Node and the launcher", "cli.command.config-ready": "configuration, plugins and databases checked",
          "gateway.server-start-import": "the server's code loaded"}
ROUNDS, FILES = int(os.environ.get("MOLTINIT_BENCH_ROUNDS", 5)), 300
SECRETS = {"OPENCLAW_GATEWAY_TOKEN": TOKEN, "ANTHROPIC_API_KEY": "sk-ant-benchmark-0123456789"}


def ready(openclaw, port):
    """The gateway's own word for it. The early generation answers any path with a page: it is asked by its WebSocket."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        if openclaw == LATEST:
            return json.load(answer).get("ready")
    health = [openclaw / "bin/node", ROOT / "tests/tools/gateway-rpc.mjs", str(port), TOKEN, "health"]
    return subprocess.run(health, capture_output=True).returncode == 0


def version(openclaw):
    return json.loads((openclaw / "node_modules/openclaw/package.json").read_text())["version"]


def grow(state):
    """An agent that has lived a while, and written down what it learnt."""
    for number in range(FILES):
        file = state / f"workspace/memory/{number // 30}/{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(10_000).hex().encode())


class Booted:
    """A fresh container: nothing on its disk, and the bucket as it is. Its paths and its port are those of the one before, as a
    container's are: the gateway looks through all of its state again where they have changed."""

    def __init__(self, s3, openclaw):
        self.openclaw = openclaw
        self.home = scratch / f"home-{type(self).__name__}"
        self.state, self.port = self.home / ".openclaw", ports[type(self)]
        self.state.mkdir(parents=True)
        # Node and the gateway keep what they compile there: a fresh container's is empty.
        (self.home / "tmp").mkdir()
        path = f"{openclaw / 'bin'}:{os.environ['PATH']}"
        self.env = SECRETS | {"PATH": path, "HOME": str(self.home), "TMPDIR": str(self.home / "tmp")}
        self.unpack()
        # A container of Cloudflare's is a virtual machine, which begins with nothing of its image in memory.
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        began = time.monotonic()
        self.process = self.begin(s3)
        wait("a gateway that is ready", self.is_ready, patience=300, every=0.02)
        self.took = time.monotonic() - began

    def unpack(self):
        """What the image brings."""

    def end(self):
        end(self.process)
        shutil.rmtree(self.home, ignore_errors=True)


class Ours(Booted):
    def unpack(self):
        # What Node has compiled of the gateway, as the image has it: what a round adds to it is gone with the round.
        shutil.copytree(self.openclaw / "compile-cache", self.home / "compile-cache")
        if self.openclaw == PINNED:
            shutil.copytree(self.openclaw / "jiti", self.home / "tmp/jiti")

    def begin(self, s3):
        self.http, config = free_port(), self.home / "moltinit.toml"
        config.write_text(f'''
[[service]]
name = "gateway"
command = ["openclaw", "gateway", "--port", "{self.port}", "--bind", "loopback"]
ready = {{ http = "http://127.0.0.1:{self.port}/readyz", json = "ready" }}
live = {{ http = "http://127.0.0.1:{self.port}/healthz", json = "ok" }}
''')
        env = {"MOLTINIT_CONFIG": str(config), "MOLTINIT_STORE": str(s3.mounted),
               "MOLTINIT_DATA_DIR": str(self.home / "data"), "MOLTINIT_RUN_DIR": str(self.home / "run"),
               "MOLTINIT_HTTP_ADDR": f"127.0.0.1:{self.http}", "MOLTINIT_ADMIN_TOKEN": TOKEN,
               "NODE_COMPILE_CACHE": str(self.home / "compile-cache"), "OPENCLAW_GATEWAY_STARTUP_TRACE": "1"}
        self.log = open(self.home / "log", "w+")
        return start([MOLTINIT, "run"], env=self.env | env, stderr=self.log)

    def is_ready(self):
        return get(self.http, "/readyz").get("ready")

    def save(self, s3):
        get(self.http, "/snapshots", "POST", timeout=300)

    def phases(self):
        """Seconds of each phase of the boot, in order: moltinit's, then the gateway's as it traces its own start."""
        happened = {event["type"]: event for event in get(self.http, "/events?after=0")["events"]}
        at = {kind: datetime.datetime.fromisoformat(event["time"]) for kind, event in happened.items()}
        whole = (at["service.ready"] - at["service.started"]).total_seconds()
        self.log.flush()
        traced = re.findall(r"startup trace: ([\w.-]+) [\d.]+ms total=([\d.]+)ms", pathlib.Path(self.log.name).read_text())
        totals = {name: float(total) / 1000 for name, total in reversed(traced)}
        reached = [0, *(totals[name] for name in TRACED), whole]
        return [(at["service.started"] - at["boot.started"]).total_seconds(),
                *(later - earlier for earlier, later in itertools.pairwise(reached))]


class Uncompiled(Ours):
    """Without what Node has compiled."""

    def unpack(self):
        (self.home / "compile-cache").mkdir()


class Script(Booted):
    def begin(self, s3):
        env = {"STATE": str(self.state), "PORT": str(self.port), "REMOTE": f"s3:{s3.bucket}",
               "OPENCLAW_NO_RESPAWN": "1"}
        return start(["sh", ROOT / "benches/boot-script.sh"], env=s3.rclone_env() | self.env | env)

    def is_ready(self):
        return ready(self.openclaw, self.port)

    def save(self, s3):
        # Stopped first: rclone cannot copy files that change.
        end(self.process)
        s3.rclone("sync", self.state, f"s3:{s3.bucket}/openclaw", "--exclude", "/workspace/**")
        s3.rclone("sync", self.state / "workspace", f"s3:{s3.bucket}/workspace")


def bucket(kind, number):
    s3 = S3(delay_ms=30)
    began = time.monotonic()
    s3.mounted = s3.mount(f"bucket-{kind.__name__}-{number}")
    mounting.append(time.monotonic() - began)
    return s3


KINDS = Ours, Script
ports = {kind: free_port() for kind in (*KINDS, Uncompiled)}
mounting = []


def compared(openclaw):
    """Seconds of each kind's first boots and of its warm ones, in turns, so that all have the same weather; the phases of
    moltinit's; and the seconds that onboarding takes the script."""
    first, warm, buckets = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}, {}
    phases, onboarding = {"first": [], "warm": []}, []

    def note(booted, times, which):
        times[type(booted)].append(booted.took)
        if isinstance(booted, Ours) and openclaw == LATEST:
            phases[which].append(booted.phases())

    for number in range(ROUNDS):
        for kind in KINDS:
            buckets[kind] = bucket(kind, f"{openclaw.name}-{number}")
            booted = kind(buckets[kind], openclaw)
            note(booted, first, "first")
            if kind is Script:
                onboarding.append(float((booted.home / "onboarding").read_text()))
            if number + 1 == ROUNDS:
                grow(booted.state)
                booted.save(buckets[kind])
            booted.end()
    for number in range(ROUNDS):
        for kind in KINDS:
            booted = kind(buckets[kind], openclaw)
            note(booted, warm, "warm")
            booted.end()
    return first, warm, phases, onboarding


first, warm, phases, onboarding = compared(LATEST)
uncompiled = []
for number in range(ROUNDS):
    booted = Uncompiled(bucket(Uncompiled, number), LATEST)
    uncompiled.append(booted.took)
    booted.end()
early_first, early_warm, *_ = compared(PINNED)

print("## Boot\n")
print(f"`./scripts/bench boot`: from the start of PID 1 to a gateway that says that it is ready, on a fresh disk each time, "
      f"of which nothing is in memory, the bucket on moto's S3 server with 30 ms added to each request. Beside it `benches/boot-script.sh`, which does what "
      f"moltworker's start script does with rclone and the gateway's own onboarding. moltinit's gateway finds what Node has "
      f"compiled of it and what the early generation has translated, and a list of what it reads, as in the image; the "
      f"script's does not, as in moltworker's. The warm boots bring {FILES} files of the "
      "workspace and the gateway's databases back.\n")
rows = [[what, spread(times[Ours], "s"), spread(times[Script], "s"), f"{median(times[Ours]) / median(times[Script]):.2f}", "0.6"]
        for what, times in [(f"OpenClaw {version(LATEST)}, first boot", first), ("the same, warm boot", warm),
                            (f"OpenClaw {version(PINNED)}, which moltworker pins, first boot", early_first),
                            ("the same, warm boot", early_warm)]]
print(table(["", "moltinit", "start script", "ratio", "aim"], rows) + "\n")
names = ["the state brought back, the configuration written", *TRACED.values(), "the server and what is beside it, up to ready"]
print(table([f"where moltinit's boots with {version(LATEST)} go", *phases],
            [[name, *(spread(times, "s", 2) for times in both)]
             for name, *both in zip(names, *(zip(*boots) for boots in phases.values()))]) + "\n")
print(f"The first of these is moltinit's, the others are the gateway's own. Without what Node has compiled of it the boot takes "
      f"{spread(uncompiled, 's')}. Onboarding, which moltinit does without, is {spread(onboarding, 's')} of the script's. The bucket "
      f"is mounted before the clock starts, as a Worker has it mounted; where moltinit mounts it by itself, that adds the "
      f"{spread(mounting, 's')} of s3fs.\n")
