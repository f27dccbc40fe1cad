"""What the benchmarks share: scratch space, processes that end with the benchmark, an S3 server behind a slow wire,
medians, and Markdown."""

import atexit, contextlib, json, os, pathlib, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
import urllib.parse, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOLTINIT = ROOT / "target/dist/moltinit"
TOKEN = "benchmark-token"
PACKAGES = os.environ["MOLTINIT_TEST_PYTHONPATH"]
LITESTREAM = os.environ["MOLTINIT_BENCH_LITESTREAM"]

scratch = pathlib.Path(tempfile.mkdtemp(prefix="moltinit-bench."))
_running, _mounts = [], []


@atexit.register
def tidy():
    for path in _mounts:
        subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)
    for process in reversed(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


def start(argv, **options):
    """A process group that ends with the benchmark."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.DEVNULL)
    process = subprocess.Popen([str(arg) for arg in argv], start_new_session=True, **options)
    _running.append(process)
    return process


def end(process, how=signal.SIGTERM):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, ask, patience=60, every=0.001):
    """Asks until the answer is true; gives it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if answer := ask():
                return answer
        time.sleep(every)
    sys.exit(f"waited {patience} s in vain for {what}")


def get(port, path, method="GET", timeout=5):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def memory(pid, which="VmRSS"):
    """Bytes, by the kernel's name for them; none of a process that is gone."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{which}:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


class Moltinit:
    """moltinit with a stand-in for the gateway: what is measured is moltinit's own time."""

    def __init__(self, name, store, **extra):
        self.dir = scratch / name
        self.state = self.dir / "home/.openclaw"
        self.state.mkdir(parents=True, exist_ok=True)
        self.port, self.started = free_port(), self.dir / "started"
        self.started.unlink(missing_ok=True)
        config = self.dir / "moltinit.toml"
        script = f"date +%s%N > {self.started}.new; mv {self.started}.new {self.started}; exec sleep 100000"
        config.write_text(
            f'[[service]]\nname = "gateway"\ncommand = ["sh", "-c", "{script}"]\nready = {{ command = ["true"] }}\n'
            'live = { command = ["true"] }\n'
        )
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.dir / "home"), "MOLTINIT_CONFIG": str(config),
            "MOLTINIT_STORE": str(store), "MOLTINIT_DATA_DIR": str(self.dir / "data"),
            "MOLTINIT_RUN_DIR": str(self.dir / "run"), "MOLTINIT_HTTP_ADDR": f"127.0.0.1:{self.port}",
            "MOLTINIT_CDP_ADDR": f"127.0.0.1:{free_port()}", "MOLTINIT_ADMIN_TOKEN": TOKEN, **extra,
        }
        self.log = open(self.dir / "log", "w")
        self.exec_ns = time.time_ns()
        self.process = start([MOLTINIT, "run"], env=env, stderr=self.log)

    def wait_until_ready(self):
        wait("moltinit to be ready", lambda: get(self.port, "/readyz").get("ready"), every=0.01)

    def status(self):
        return get(self.port, "/status")

    def commit(self):
        """Commits what has changed by now, and waits for it."""
        return get(self.port, "/snapshots", "POST", timeout=900)["id"]

    def last_commit(self):
        last = self.status()["snapshots"]["last"]
        return last and last["commit"]

    def rss(self):
        return memory(self.process.pid)

    def peak(self):
        return memory(self.process.pid, "VmHWM")

    def stop(self):
        self.process.terminate()
        self.process.wait()
        end(self.process, signal.SIGKILL)


# As it is, moto reads and copies the whole of an object for each range of it.
S3_SERVER = """
from moto.s3.models import FakeKey
from moto.server import main

stored = FakeKey.value.fget

def value(key):
    if key.__dict__.get("whole") is None:
        key.whole = stored(key)
    return key.whole

def store(key, value):
    key.whole = None
    FakeKey.stored.fset(key, value)

FakeKey.stored = FakeKey.value
FakeKey.value = property(value, store)
main()
"""


class S3:
    """moto's S3 server with a bucket, and a wire to it that adds `delay_ms` to each request."""

    bucket = "bench"

    def __init__(self, delay_ms):
        server, self.port = free_port(), free_port()
        self.direct, self.log = f"http://127.0.0.1:{server}/{self.bucket}", scratch / f"s3-{server}.log"
        start([sys.executable, "-c", S3_SERVER, "-H", "127.0.0.1", "-p", server],
              env={**os.environ, "PYTHONPATH": PACKAGES}, stderr=open(self.log, "w"))
        start([sys.executable, ROOT / "tests/tools/slow-tcp.py", self.port, server, "--delay-ms", delay_ms])
        make = urllib.request.Request(self.direct, method="PUT")
        wait("the S3 server", lambda: urllib.request.urlopen(make).status == 200, every=0.05)
        wait("the wire", lambda: urllib.request.urlopen(f"http://127.0.0.1:{self.port}/").status == 200, every=0.05)

    def mount(self, name):
        path = scratch / name
        path.mkdir()
        passwords = scratch / f"{name}.passwd"
        passwords.write_text("key:secret")
        passwords.chmod(0o600)
        options = (f"passwd_file={passwords},url=http://127.0.0.1:{self.port},use_path_request_style,nomixupload,"
                   "stat_cache_expire=60,enable_noobj_cache,multipart_size=5")
        _mounts.append(path)
        start(["s3fs", self.bucket, path, "-f", "-o", options])
        wait("the mount", lambda: os.path.ismount(path), every=0.05)
        return path

    def requests(self):
        """How many the server has answered: it logs a line for each."""
        return self.log.read_bytes().count(b" HTTP/1.1")

    def names(self, prefix):
        """The objects below a prefix; asked of the server directly."""
        names, token = [], ""
        while True:
            with urllib.request.urlopen(f"{self.direct}?list-type=2&prefix={prefix}{token}", timeout=60) as answer:
                page = answer.read().decode()
            names += re.findall("<Key>(.*?)</Key>", page)
            following = re.search("<NextContinuationToken>(.*?)</NextContinuationToken>", page)
            if not following:
                return names
            token = "&continuation-token=" + urllib.parse.quote(following[1], safe="")

    def rclone_env(self):
        env = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
        return env | {
            "RCLONE_CONFIG": "/dev/null", "RCLONE_CONFIG_S3_TYPE": "s3", "RCLONE_CONFIG_S3_PROVIDER": "Other",
            "RCLONE_CONFIG_S3_ENDPOINT": f"http://127.0.0.1:{self.port}", "RCLONE_CONFIG_S3_ACCESS_KEY_ID": "key",
            "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": "secret", "RCLONE_CONFIG_S3_FORCE_PATH_STYLE": "true",
        }

    def rclone(self, *argv):
        subprocess.run(["rclone", *map(str, argv)], env=self.rclone_env(), check=True, stdout=subprocess.DEVNULL)


def ran(argv, env=None):
    """Seconds, user and system CPU seconds, and peak memory of one command, and what it said on stdout and stderr."""
    began = time.monotonic()
    process = subprocess.Popen([str(arg) for arg in argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read(), process.stderr.read()
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        sys.exit(f"{argv[0]}: {err.decode()}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, out, err


def verdict(measured, aim, met):
    return f"{measured} (aim: {aim}; {'met' if met else 'missed'})"


def version(*argv):
    answer = subprocess.run(argv, capture_output=True, text=True)
    return (answer.stdout or answer.stderr).strip().splitlines()[0]


def median(values):
    return statistics.median(values)


def spread(values, unit, digits=1):
    return f"{median(values):.{digits}f} {unit} ({min(values):.{digits}f} to {max(values):.{digits}f}, n={len(values)})"


def table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
