// What goes to the gateway, and what a person sees until it can.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import WebSocket from "ws";
import { container, Engine, eventually, GATEWAY_TOKEN, scratch, start } from "./harness.mjs";
import { standIn } from "./moltinit.mjs";

const html = { headers: { Accept: "text/html,application/xhtml+xml" } };

async function setUp(t, env = {}, times = {}) {
  const inside = await standIn(t);
  const engine = new Engine(inside.run);
  const worker = await start(t, { engine, ports: inside.ports, env, times });
  const status = async () => (await worker.asLogin("/api/status")).json();
  const reaches = (what, holds) => eventually(what, async () => {
    const now = await status();
    return holds(now) ? now : undefined;
  });
  return { inside, engine, worker, status, reaches };
}

/** A WebSocket through the Worker, with its messages in a queue. */
function connect(worker, path, headers = {}) {
  const url = new URL(path, worker.url).href.replace("http", "ws");
  const socket = new WebSocket(url, { headers: { "Cf-Access-Jwt-Assertion": worker.login.token(), ...headers } });
  const messages = [];
  const waiting = [];
  const put = (message) => (waiting.length ? waiting.shift()(message) : messages.push(message));
  socket.on("message", (data, binary) => put(binary ? data : data.toString()));
  socket.on("close", (code, reason) => put({ code, reason: reason.toString() }));
  socket.on("unexpected-response", (_, response) => (response.destroy(), put({ status: response.statusCode })));
  socket.on("error", (error) => put({ error: error.message }));
  return { socket, next: () => (messages.length ? Promise.resolve(messages.shift()) : new Promise((done) => waiting.push(done))) };
}

/** The gateway as a browser and a program use it. */
async function through(worker) {
  const answer = await worker.asLogin("/chat?session=main", { method: "POST", body: "hello", headers: { "X-Custom": "kept" } });
  assert.equal(answer.status, 200);
  const seen = await answer.json();
  assert.deepEqual([seen.method, seen.url, seen.body, seen.headers["x-custom"]], ["POST", "/chat?session=main", "hello", "kept"]);

  const { socket, next } = connect(worker, "/ws");
  // A login by Access loses the query: the token is put back.
  assert.deepEqual(JSON.parse(await next()), { url: `/ws?token=${GATEWAY_TOKEN}` });
  socket.send("hello");
  assert.equal(await next(), "hello");
  const binary = Buffer.alloc(1 << 20, 7);
  socket.send(binary);
  assert.deepEqual(await next(), binary);
  socket.send("close me");
  assert.deepEqual(await next(), { code: 4007, reason: "as you wish" });

  const own = connect(worker, "/ws?token=mine");
  assert.deepEqual(JSON.parse(await own.next()), { url: "/ws?token=mine" });
  own.socket.terminate();
}

test("step by step to an open gateway", async (t) => {
  const { inside, engine, worker, status, reaches } = await setUp(t);
  assert.equal(engine.starts, 0);
  // The first request starts it, and does not wait for it.
  const first = await worker.asLogin("/", html);
  assert.equal(first.status, 503);
  assert.match(first.headers.get("Content-Type"), /text\/html/);
  assert.match(await first.text(), /Your agent is starting/);
  // The store is waited for, and so it is mounted, once.
  await reaches("the mount", () => inside.mounted);
  assert.deepEqual(engine.intercepted.includes("r2.internal"), true);
  assert.equal(engine.env.MOLTINIT_STORE, "/data/moltbot");

  Object.assign(inside, { pending: "restore", failing: ["restore", "gateway"], progress: { doneBytes: 1_000_000, totalBytes: 3_000_000 } });
  const { progress } = await reaches("how far it is", (now) => now.progress);
  assert.deepEqual(progress, { doneBytes: 1_000_000, totalBytes: 3_000_000 });
  Object.assign(inside, { failing: ["gateway"], progress: undefined });
  for (const pending of ["prepare", "services"]) {
    inside.pending = pending;
    const gateway = pending === "services" ? { gateway: { state: "starting" } } : {};
    assert.deepEqual(await reaches(pending, (now) => now.pending === pending), { state: "starting", open: false, pending, failing: [], ...gateway, events: null });
  }
  // One that does not come up says why.
  inside.gateway = { state: "held", why: "its configuration is broken" };
  assert.deepEqual((await reaches("the reason", (now) => now.gateway?.why)).gateway, inside.gateway);
  inside.gateway = { state: "ready", why: null };
  // A program is told to come back; so is a WebSocket, and nothing of it reaches the gateway.
  const program = await worker.asLogin("/v1/chat/completions", { method: "POST", body: "{}" });
  assert.deepEqual([program.status, program.headers.get("Retry-After"), (await program.json()).detail], [503, "2", "services"]);
  assert.deepEqual(await connect(worker, "/ws").next(), { status: 503 });

  // Booted, but the gateway is away.
  inside.pending = undefined;
  await reaches("the gateway to be missed", (now) => now.state === "failing" && !now.open);
  assert.equal((await worker.asLogin("/", html)).status, 503);
  inside.failing = [];
  await reaches("the open door", (now) => now.state === "ready" && now.open);
  await through(worker);

  // A store that is away is no reason to shut people out. It is looked after.
  inside.failing = ["store"];
  assert.equal((await reaches("trouble", (now) => now.state === "failing")).open, true);
  await through(worker);

  const mounts = inside.commands.filter((command) => command.startsWith("s3fs "));
  assert.equal(mounts.length, 1, "a live mount is left alone");
  assert.equal(engine.starts, 1, "and there was one container all the time");
  assert.equal((await status()).error, undefined);
});

test("the container has what is set here, and not what is the Worker's own", async (t) => {
  const { engine, reaches } = await setUp(t, { ANTHROPIC_API_KEY: "sk-test", GROQ_API_KEY: "gsk-test", OPENCLAW_GATEWAY_TOKEN: "", MOLTBOT_GATEWAY_TOKEN: GATEWAY_TOKEN, MOLTINIT_MOUNT: "s3fs", MOLTINIT_STORE: "/elsewhere" });
  await reaches("a container", (now) => now.pending === "store");
  const { ANTHROPIC_API_KEY, GROQ_API_KEY, OPENCLAW_GATEWAY_TOKEN, CF_ACCESS_AUD, MOLTBOT_GATEWAY_TOKEN, WORKER_URL } = engine.env;
  assert.deepEqual([ANTHROPIC_API_KEY, GROQ_API_KEY, OPENCLAW_GATEWAY_TOKEN, CF_ACCESS_AUD, MOLTBOT_GATEWAY_TOKEN], ["sk-test", "gsk-test", GATEWAY_TOKEN, undefined, undefined]);
  assert.ok(WORKER_URL);
  // Anywhere else it would be a directory that vanishes with the container.
  assert.equal(engine.env.MOLTINIT_STORE, "/data/moltbot");
});

test("the gateway is told who asks by the Worker, and by nobody else", async (t) => {
  const { inside, worker, reaches } = await setUp(t);
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  const made = { Forwarded: "for=192.0.2.1", "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "evil.example", "X-Real-IP": "192.0.2.1", "CF-Connecting-IP": "203.0.113.7" };
  const { headers } = await (await worker.asLogin("/", { headers: made })).json();
  assert.deepEqual(
    ["forwarded", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"].map((name) => headers[name]),
    [undefined, undefined, headers["cf-connecting-ip"], worker.url.host, "http"],
  );
  assert.ok(headers["cf-connecting-ip"]);
  // Nor is it given what would let the agent log in as its owner.
  const login = { Cookie: `theme=dark; CF_Authorization=${worker.login.token()}; lang=en`, "CF-Access-Client-Secret": "of-a-service" };
  const seen = (await (await worker.asLogin("/", { headers: login })).json()).headers;
  assert.equal(seen.cookie, "theme=dark; lang=en");
  assert.deepEqual(Object.keys(seen).filter((name) => name.startsWith("cf-access-")), []);
});

test("no request gets at another port than the gateway's", async (t) => {
  const { inside, worker, reaches } = await setUp(t);
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  // What the SDK would take for a wish.
  for (const path of ["/proxy/3000/api/execute", "/proxy/9180/status"]) {
    const headers = { "cf-container-target-port": "3000" };
    assert.equal((await (await worker.asLogin(path, { headers })).json()).url, path);
    const socket = connect(worker, path, headers);
    assert.match(JSON.parse(await socket.next()).url, new RegExp(`^${path}`));
    socket.socket.terminate();
  }
  assert.ok(inside.commands.every((command) => !command.includes("proxy")));
});

test("moltinit that mounts its own bucket is left to it", async (t) => {
  const { inside, reaches } = await setUp(t, { MOLTINIT_MOUNT: "s3fs" });
  await reaches("a container", (now) => now.pending === "store");
  inside.pending = "restore";
  await reaches("the restore", (now) => now.pending === "restore");
  assert.deepEqual(inside.commands, []);
});

for (const busy of [false, true]) {
  test(`a dead mount is taken away and made again${busy ? ", though it is in use" : ""}`, async (t) => {
    const { inside, reaches } = await setUp(t, {}, { mountGap: 100 });
    await reaches("the mount", () => inside.mounted);
    Object.assign(inside, { pending: undefined, failing: [], busy });
    await reaches("the open door", (now) => now.open);
    Object.assign(inside, { mounted: false, failing: ["store"] });
    await reaches("another mount", () => inside.mounted);
    const verbs = inside.commands.map((command) => command.split(" ").slice(0, 2).join(" "));
    const last = verbs.lastIndexOf("s3fs 'STORE'");
    assert.deepEqual(verbs.slice(0, last).filter((verb) => verb.startsWith("fusermount")).slice(-2), ["fusermount -u", "fusermount -uz"]);
  });
}

test("a mount that dies during the boot, whatever the phase, is made again", async (t) => {
  const { inside, reaches } = await setUp(t, {}, { mountGap: 100 });
  await reaches("the mount", () => inside.mounted);
  for (const pending of ["restore", "services"]) {
    Object.assign(inside, { pending, failing: ["gateway"] });
    await reaches(pending, (now) => now.pending === pending);
    Object.assign(inside, { mounted: false, failing: ["gateway", "store"] });
    await reaches("another mount", () => inside.mounted);
  }
});

test("a mount of an earlier life that is listed but fails is made again", async (t) => {
  const inside = await standIn(t);
  const engine = new Engine(inside.run);
  // As after the object was reset: the container runs on, its mount too, and nobody answers the mount's requests.
  engine.container = await inside.run();
  Object.assign(inside, { pending: undefined, failing: [], mounted: true });
  const worker = await start(t, { engine, ports: inside.ports, running: true, times: { mountGap: 100, mountGrace: 2_000 } });
  const reaches = (what, holds) => eventually(what, async () => holds(await (await worker.asLogin("/api/status")).json()) || undefined);
  await reaches("the open door", (now) => now.state === "ready");
  const mounts = () => inside.commands.filter((command) => command.startsWith("s3fs ")).length;
  assert.equal(mounts(), 0, "one that works is left alone");

  inside.failing = ["store"];
  await reaches("a look at it", () => inside.commands.some((command) => command.startsWith("mountpoint ")));
  assert.equal(mounts(), 0, "it may come to itself");
  await reaches("another mount", () => mounts() === 1);
  assert.ok(inside.commands.some((command) => command.startsWith("fusermount -uz ")));
  // Now it is this object's own. A store that still fails has another reason.
  const looks = inside.commands.length;
  await reaches("more looks", () => inside.commands.length > looks + 2);
  assert.equal(mounts(), 1);
});

test("a container whose moltinit hangs is ended and started again", async (t) => {
  const { inside, engine, worker, reaches } = await setUp(t, {}, { silence: 300 });
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  const cron = await worker.miniflare.getWorker();
  await cron.scheduled({ cron: "* * * * *" });
  inside.hung = true;
  assert.deepEqual((await reaches("the trouble", (now) => !now.open)).failing, ["moltinit"]);
  await eventually("the next start", async () => {
    await cron.scheduled({ cron: "* * * * *" });
    return engine.starts > 1 || undefined;
  });
  await reaches("the open door again", (now) => now.open);
  assert.equal(engine.starts, 2);
});

test("a container that is to sleep does, though it was kept awake before", async (t) => {
  const inside = await standIn(t);
  const engine = new Engine(inside.run);
  Object.assign(inside, { pending: undefined, failing: [] });
  const common = { engine, ports: inside.ports, persist: scratch(t) };
  const open = (worker) => eventually("the open door", async () => (await (await worker.asLogin("/api/status")).json()).open || undefined);
  const awake = await start(t, common);
  await open(awake);
  await awake.stop();
  const asleep = await start(t, { ...common, running: true, env: { SLEEP_AFTER: "2s" } });
  await open(asleep);
  assert.equal(await engine.container.exited, 0);
});

test("everybody who asks at once is answered by one look", async (t) => {
  const { inside, worker, reaches } = await setUp(t, {}, { probe: 0 });
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  inside.looks = 0;
  await Promise.all(Array.from({ length: 20 }, () => worker.asLogin("/api/status").then((answer) => answer.text())));
  assert.ok(inside.looks < 20, `${inside.looks} looks`);
});

test("a container that dies is missed, and the next minute brings it back", async (t) => {
  const { inside, engine, worker, reaches } = await setUp(t);
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  await through(worker);
  engine.container.signal(9);
  await engine.container.exited;
  // Nobody asks: the cron does.
  const scheduled = await worker.miniflare.getWorker();
  await eventually("the next start", async () => {
    await scheduled.scheduled({ cron: "* * * * *" });
    return engine.starts > 1 || undefined;
  });
  await reaches("the open door again", (now) => now.open);
  await through(worker);
});

test("the admin page's requests reach moltinit with its token, and nothing of the login", async (t) => {
  const { inside, worker, reaches } = await setUp(t);
  Object.assign(inside, { pending: undefined, failing: [] });
  await reaches("the open door", (now) => now.open);
  const cookie = { Cookie: `CF_Authorization=${worker.login.token()}` };
  const answer = await worker.asLogin("/_admin/api/snapshots/abc/restore?x=1", { method: "POST", headers: cookie });
  assert.deepEqual(await answer.json(), { method: "POST", url: "/snapshots/abc/restore?x=1" });
  const { headers } = inside.asked.find(({ url }) => url.startsWith("/snapshots"));
  assert.equal(headers.authorization, `Bearer ${GATEWAY_TOKEN}`);
  assert.deepEqual([headers.cookie, headers["cf-access-jwt-assertion"]], [undefined, undefined]);
});

test("with the real moltinit", async (t) => {
  const dir = scratch(t);
  const store = join(dir, "store");
  mkdirSync(store);
  const inside = await container(t, { dir, store, gateway: { delay: 1500 } });
  const engine = new Engine(inside.run);
  const worker = await start(t, { engine, ports: inside.ports });
  const seen = new Set();
  await eventually("the open door", async () => {
    const now = await (await worker.asLogin("/api/status")).json();
    seen.add(now.pending ?? now.state);
    return now.open || undefined;
  });
  assert.ok(seen.has("container"), [...seen].join());
  assert.ok(seen.has("services"), [...seen].join());
  await through(worker);
  const status = await (await worker.asLogin("/_admin/api/status")).json();
  assert.equal(status.ready, true);
  assert.equal(status.services.gateway.state, "ready");
  // Its last lines, as they come.
  const logs = await worker.asLogin("/_admin/api/services/gateway/logs?follow=true");
  const { value } = await logs.body.getReader().read();
  assert.match(new TextDecoder().decode(value), /the stand-in gateway listens/);
  await logs.body.cancel().catch(() => {});
  // In order, with a last snapshot; and again.
  assert.equal((await worker.asLogin("/_admin/restart", { method: "POST" })).status, 202);
  assert.equal(await engine.container.exited, 0);
  await eventually("the next container", async () => ((await (await worker.asLogin("/api/status")).json()).open && engine.starts === 2) || undefined);
});
