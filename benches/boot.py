"""From the container's start to a gateway that is ready, beside a shell script that does what moltworker's does."""

from bench import *

OPENCLAW = pathlib.Path(os.environ["MOLTINIT_BENCH_OPENCLAW"])
ROUNDS, FILES = 5, 300
SECRETS = {"OPENCLAW_GATEWAY_TOKEN": TOKEN, "ANTHROPIC_API_KEY": "sk-ant-benchmark-0123456789"}
PATH = f"{OPENCLAW / 'bin'}:{os.environ['PATH']}"


def ready(port):
    """The gateway's own word for it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return json.load(answer).get("ready")


def grow(state):
    """An agent that has lived a while, and written down what it learnt."""
    for number in range(FILES):
        file = state / f"workspace/memory/{number // 30}/{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(10_000).hex().encode())


class Booted:
    """A fresh container: nothing on its disk, and the bucket as it is."""

    def __init__(self, s3, number):
        self.home = scratch / f"home-{type(self).__name__}-{number}"
        self.state, self.port = self.home / ".openclaw", free_port()
        self.state.mkdir(parents=True)
        # Node and the gateway keep what they compile there: a fresh container's is empty.
        (self.home / "tmp").mkdir()
        self.env = SECRETS | {"PATH": PATH, "HOME": str(self.home), "TMPDIR": str(self.home / "tmp")}
        began = time.monotonic()
        self.process = self.begin(s3)
        wait("a gateway that is ready", self.is_ready, patience=300, every=0.02)
        self.took = time.monotonic() - began

    def end(self):
        end(self.process)
        shutil.rmtree(self.home, ignore_errors=True)


class Ours(Booted):
    def begin(self, s3):
        self.http, config = free_port(), self.home / "moltinit.toml"
        config.write_text(f'''
[[service]]
name = "gateway"
command = ["openclaw", "gateway", "--port", "{self.port}", "--bind", "loopback"]
ready = {{ http = "http://127.0.0.1:{self.port}/readyz", json = "ready" }}
live = {{ http = "http://127.0.0.1:{self.port}/healthz", json = "ok" }}
''')
        # As in the image, which brings what Node has compiled of the gateway.
        env = {"MOLTINIT_CONFIG": str(config), "MOLTINIT_STORE": str(s3.mounted),
               "MOLTINIT_DATA_DIR": str(self.home / "data"), "MOLTINIT_RUN_DIR": str(self.home / "run"),
               "MOLTINIT_HTTP_ADDR": f"127.0.0.1:{self.http}", "MOLTINIT_ADMIN_TOKEN": TOKEN,
               "NODE_COMPILE_CACHE": str(OPENCLAW / "compile-cache")}
        return start([MOLTINIT, "run"], env=self.env | env)

    def is_ready(self):
        return get(self.http, "/readyz").get("ready")

    def save(self, s3):
        get(self.http, "/snapshots", "POST", timeout=300)


class Script(Booted):
    def begin(self, s3):
        env = {"STATE": str(self.state), "PORT": str(self.port), "REMOTE": f"s3:{s3.bucket}/openclaw",
               "OPENCLAW_NO_RESPAWN": "1"}
        return start(["sh", ROOT / "benches/boot-script.sh"], env=s3.rclone_env() | self.env | env)

    def is_ready(self):
        return ready(self.port)

    def save(self, s3):
        # Stopped first: rclone cannot copy files that change.
        end(self.process)
        s3.rclone("sync", self.state, f"s3:{s3.bucket}/openclaw")


def bucket(kind, number):
    s3 = S3(delay_ms=30)
    s3.mounted = s3.mount(f"bucket-{kind.__name__}-{number}")
    return s3


KINDS = Ours, Script
first, warm, buckets = {Ours: [], Script: []}, {Ours: [], Script: []}, {}
Script(S3(delay_ms=30), "to-warm-the-page-cache").end()
# In turns, so that all have the same weather.
for number in range(ROUNDS):
    for kind in KINDS:
        buckets[kind] = bucket(kind, number)
        booted = kind(buckets[kind], f"first-{number}")
        first[kind].append(booted.took)
        if number + 1 == ROUNDS:
            grow(booted.state)
            booted.save(buckets[kind])
        booted.end()
for number in range(ROUNDS):
    for kind in KINDS:
        booted = kind(buckets[kind], f"warm-{number}")
        warm[kind].append(booted.took)
        booted.end()

print("## Boot\n")
print(f"`./scripts/bench boot`: from the start of PID 1 to the gateway's own `/readyz`, OpenClaw "
      f"{json.loads((OPENCLAW / 'node_modules/openclaw/package.json').read_text())['version']}, on a fresh disk each time, "
      f"the bucket on moto's S3 server with 30 ms added to each request. Beside it `benches/boot-script.sh`, which does what "
      f"moltworker's start script does with rclone and the gateway's own onboarding. moltinit's gateway finds what Node has "
      f"compiled of it, as in the image; the script's does not, as in moltworker's. The warm boots bring {FILES} files of the "
      "workspace and the gateway's databases back.\n")
rows = [[what, spread(times[Ours], "s"), spread(times[Script], "s"), f"{median(times[Ours]) / median(times[Script]):.2f}", "0.6"]
        for what, times in [("first boot", first), ("warm boot", warm)]]
print(table(["", "moltinit", "start script", "ratio", "aim"], rows) + "\n")
