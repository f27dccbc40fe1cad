// The Worker and the real moltinit through what happens to them: a SIGKILL, an outage of the Worker, a shutdown. The
// Worker polls the probes and keeps the callbacks all along. No event is missing, none is out of order.
import assert from "node:assert/strict";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { container, Engine, eventually, freePort, scratch, start } from "./harness.mjs";

/** Of the Worker's absence. */
const OUTAGE = 30_000;

/** Takes connections at the Worker's port and answers none. */
async function hanging(port) {
  const taken = new Set();
  const server = createServer((socket) => taken.add(socket.on("error", () => {})));
  await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
  return {
    taken,
    async end() {
      for (const socket of taken) socket.destroy();
      await new Promise((done) => server.close(done));
    },
  };
}

test("no event is missing and none is out of order", async (t) => {
  const dir = scratch(t);
  const inside = await container(t, { dir, store: join(dir, "store") });
  const engine = new Engine(inside.run);
  const port = await freePort();
  const up = (running) => start(t, { engine, ports: inside.ports, port, persist: join(dir, "worker"), running });
  let worker = await up(false);

  const status = async () => (await worker.asLogin("/api/status")).json();
  const ready = (what, starts) => eventually(what, async () => ((await status()).state === "ready" && engine.starts === starts) || undefined);
  const journal = async () => (await worker.asLogin("/_admin/events")).json();
  const control = async (path, init) => (await worker.asLogin(`/_admin/api${path}`, init)).json();
  /** Until everything that moltinit has to say is here. */
  const delivered = (what) => eventually(what, async () => ((await control("/status")).events.undelivered === 0) || undefined);

  await ready("the first boot", 1);
  await control("/snapshots", { method: "POST" });
  await delivered("the first events");
  const first = (await journal()).boots[0].boot;

  // Without a word.
  engine.container.signal(9);
  assert.notEqual(await engine.container.exited, 0);
  await ready("the boot after the SIGKILL", 2);
  await delivered("what was left of the first boot, and the second's events");
  const second = (await journal()).boots[0].boot;
  assert.notEqual(second, first);

  // The Worker is away; moltinit goes on, and much happens.
  const before = (await journal()).boots[0].last;
  const direct = (path, method = "GET") =>
    fetch(`http://127.0.0.1:${inside.ports[9180]}${path}`, { method, headers: { Authorization: `Bearer ${engine.env.OPENCLAW_GATEWAY_TOKEN}` } }).then((answer) => answer.json());
  await worker.stop();
  const back = Date.now() + OUTAGE;
  for (let round = 0; round < 3; round += 1) {
    let { id, outcome } = await direct("/services/gateway/restart", "POST");
    while (outcome === "running") ({ outcome } = await direct(`/operations/${id}?wait=20s`));
    assert.equal(outcome, "done");
  }
  await eventually("a callback that was refused", async () => (await direct("/status")).callbacks.state === "retrying" || undefined);
  // Half back is worse than away.
  const hung = await hanging(port);
  await eventually("a callback that hangs", async () => hung.taken.size > 0 || undefined);
  await new Promise((done) => setTimeout(done, back - Date.now()));
  const { events, callbacks } = await direct("/status");
  assert.ok(events.undelivered >= 9, JSON.stringify(events));
  assert.equal(callbacks.state, "retrying");
  await hung.end();

  // Back, with the same container behind it.
  worker = await up(true);
  await ready("the gateway after the outage", 2);
  await delivered("what happened meanwhile");
  assert.ok((await journal()).boots[0].last >= before + 9);

  // In order: the last event is told as well.
  await worker.asLogin("/_admin/restart", { method: "POST" });
  assert.equal(await engine.container.exited, 0);
  const last = await eventually("the last event", async () => {
    const { events } = await journal();
    return events.find((event) => event.type === "shutdown.finished" && event.boot === second);
  });

  const { boots } = await journal();
  const all = [];
  for (let before = ""; ; ) {
    const { events } = await (await worker.asLogin(`/_admin/events?before=${before}`)).json();
    if (events.length === 0) break;
    all.unshift(...events.reverse());
    before = all[0].n;
  }
  for (const boot of [first, second]) {
    const seqs = all.filter((event) => event.boot === boot).map((event) => event.seq);
    assert.deepEqual(seqs, Array.from(seqs, (_, index) => index + 1), `${boot}: from 1, without a gap, in order`);
    const { missing, late, received } = boots.find((seen) => seen.boot === boot);
    assert.deepEqual([missing, late, received], [0, 0, seqs.length]);
  }
  assert.deepEqual(all.findLast((event) => event.boot === second), last);
  // What was left undelivered by the SIGKILL came before anything of the boot after it.
  assert.ok(all.findLastIndex((event) => event.boot === first) < all.findIndex((event) => event.boot === second));
  for (const type of ["boot.started", "service.ready", "service.exited", "shutdown.started"]) {
    assert.ok(all.some((event) => event.boot === second && event.type === type), type);
  }
});
