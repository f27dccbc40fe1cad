"""The browser port, beside no relay at all, one of Node's `ws`, and websocat: before a Worker, whose one browser all clients
share, and before a browser that is given by its URL."""

from bench import *

EVALUATIONS, MESSAGES, MEBIBYTE, ROUNDS = 2_000, 1_000, 1 << 20, 3
SCRIPT = ROOT / "benches/cdp.mjs"


def node(*words):
    process = subprocess.run(["node", SCRIPT, *map(str, words)], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{words}: {process.stderr}")
    return json.loads(process.stdout)


def listens(port):
    with socket.create_connection(("127.0.0.1", port)):
        return True


def chromium():
    profile = scratch / "chromium"
    start(["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
           "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"])
    port = wait("Chromium", lambda: (profile / "DevToolsActivePort").read_text().split()[0], every=0.05)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version") as answer:
        return json.load(answer)["webSocketDebuggerUrl"]


def to_worker(upstream):
    """The settings by which it is taken for a Worker's."""
    return {"WORKER_URL": upstream.replace("ws:", "http:"), "CDP_SECRET": "bench-secret"}


def through_moltinit(**settings):
    cdp = free_port()
    name = f"browser-{cdp}"
    moltinit = Moltinit(name, scratch / f"store-{name}", MOLTINIT_CDP_ADDR=f"127.0.0.1:{cdp}", **settings)
    moltinit.wait_until_ready()
    wait("the browser port", lambda: listens(cdp), every=0.01)
    return moltinit, f"ws://127.0.0.1:{cdp}/devtools/browser"


def through_ws(upstream):
    port = free_port()
    start(["node", SCRIPT, "relay", port, upstream])
    wait("the relay of ws", lambda: listens(port), every=0.05)
    return f"ws://127.0.0.1:{port}/"


def through_websocat(upstream):
    port = free_port()
    start(["websocat", "--exit-on-eof", "--text", "-B", 2 * MEBIBYTE, f"ws-l:127.0.0.1:{port}", upstream])
    wait("websocat", lambda: listens(port), every=0.05)
    return f"ws://127.0.0.1:{port}/"


def compared(upstream, measure):
    """What is measured, in turns, so that all have the same weather."""
    moltinit, shared = through_moltinit(**to_worker(upstream))
    plain, unread = through_moltinit(MOLTINIT_CDP_UPSTREAM=upstream)
    ways = {"direct": upstream, "moltinit, to a Worker": shared, "moltinit, to a URL": unread, "Node's `ws`": through_ws(upstream)}
    if shutil.which("websocat"):
        ways["websocat"] = through_websocat(upstream)
    found = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, url in ways.items():
            found[name].append(measure(url))
    moltinit.stop()
    plain.stop()
    return found


# A Worker has its browser at a path of its own.
browser = free_port()
start(["node", SCRIPT, "lead", browser, chromium()])
wait("the way to Chromium", lambda: listens(browser), every=0.05)
browser = f"ws://127.0.0.1:{browser}/"
latency = compared(browser, lambda url: median(node("latency", url, EVALUATIONS)))
echo = free_port()
start(["node", SCRIPT, "echo", echo])
wait("the echo", lambda: listens(echo), every=0.05)
echo = f"ws://127.0.0.1:{echo}/"
throughput = compared(echo, lambda url: MESSAGES / node("throughput", url, MESSAGES, MEBIBYTE) * 1e3)
moltinit, url = through_moltinit(**to_worker(echo))
idle = moltinit.rss()
moved = node("sessions", url, 16, 20)
peak = moltinit.peak()

print("## The browser port\n")
print(f"`./scripts/bench browser`. Round trips are medians of {EVALUATIONS:,} `Runtime.evaluate` to a real Chromium; messages are "
      f"{MESSAGES:,} of 1 MiB, eight at a time, to a server that sends them back. Medians of {ROUNDS} rounds.\n")
direct = median(latency["direct"]), median(throughput["direct"])
rows = [[name, f"{median(latency[name]):.3f} ms", f"{median(latency[name]) - direct[0]:+.3f} ms",
         f"{median(throughput[name]):.0f}/s", f"{median(throughput[name]) / direct[1]:.2f}"] for name in latency]
print(table(["", "round trip", "added", "messages of 1 MiB", "to direct"], rows))
print("\nAims: under 0.2 ms added; at least 0.8 of direct, and ahead of the other relays."
      + ("" if "websocat" in latency else " websocat is not installed here.") + "\n")
print(f"16 sessions that are sent as much as they take, one of which does not read: {idle / 2**20:.1f} MiB before, "
      f"{peak / 2**20:.1f} MiB at the peak (aim: under 64 MiB more), {moved / 2**30:.1f} GiB moved in 20 s.\n")
