// Callbacks: only what moltinit signed is kept, once each, and what is missing shows.
import assert from "node:assert/strict";
import { request } from "node:http";
import { test } from "node:test";
import { Engine, signed, start } from "./harness.mjs";

const BOOT = "01JD000000000000000000000A";
const event = (seq, more = {}) => ({
  id: `${BOOT}-${String(seq).padStart(8, "0")}`, boot: BOOT, seq, type: "heartbeat", time: new Date().toISOString(), instance: "default", data: { seq }, ...more,
});

async function setUp(t, env) {
  const worker = await start(t, { engine: new Engine(() => assert.fail("nothing may start a container")), env });
  const send = (body, headers) => worker.ask("/_moltinit/events", { method: "POST", body, headers });
  const post = (event, options) => {
    const body = JSON.stringify(event);
    return send(body, signed(event.id, body, options));
  };
  const kept = async () => (await worker.asLogin("/_admin/events")).json();
  return { worker, send, post, kept };
}

test("a signed event is kept, and a repetition is known as one", async (t) => {
  const { post, kept } = await setUp(t);
  const first = await post(event(1));
  assert.equal(first.status, 200);
  assert.equal((await first.json()).received, "first");
  const again = await post(event(1));
  assert.equal(again.status, 200);
  assert.equal((await again.json()).received, "again");
  const { events, boots } = await kept();
  assert.deepEqual(events.map(({ n, ...event }) => event.data), [{ seq: 1 }]);
  assert.deepEqual(boots, [{ boot: BOOT, last: 1, received: 1, missing: 0, dropped: 0, late: 0 }]);
});

test("what is not proven is refused and leaves nothing", async (t) => {
  const { worker, send, post, kept } = await setUp(t);
  const good = event(1);
  const body = JSON.stringify(good);
  const headers = signed(good.id, body);
  const now = Math.floor(Date.now() / 1000);
  const without = (name) => Object.fromEntries(Object.entries(headers).filter(([key]) => key !== name));
  const refused = {
    "no signature": [body, without("webhook-signature")],
    "no time": [body, without("webhook-timestamp")],
    "no id": [body, without("webhook-id")],
    "another body": [JSON.stringify(event(1, { data: { seq: 2 } })), headers],
    "another id": [body, { ...headers, "webhook-id": event(2).id }],
    "another secret": [body, signed(good.id, body, { secret: `whsec_${Buffer.alloc(32, 7).toString("base64")}` })],
    "a replay from an hour ago": [body, signed(good.id, body, { timestamp: now - 3600 })],
    "a replay with a new time": [body, { ...signed(good.id, body, { timestamp: now - 3600 }), "webhook-timestamp": String(now) }],
    "a time to come": [body, signed(good.id, body, { timestamp: now + 3600 })],
    "a time that is no number": [body, signed(good.id, body, { timestamp: "now" })],
    "another scheme": [body, { ...headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v0,") }],
    "half a signature": [body, { ...headers, "webhook-signature": headers["webhook-signature"].slice(0, 20) }],
    "no base64": [body, { ...headers, "webhook-signature": "v1,!!!!" }],
  };
  for (const [name, [text, given]] of Object.entries(refused)) {
    await t.test(name, async () => assert.equal((await send(text, given)).status, 401));
  }
  await t.test("signed, but no event", async () => {
    assert.equal((await post({ id: "x", hello: "world" })).status, 400);
    assert.equal((await post(event(0))).status, 400);
    const text = "no JSON";
    assert.equal((await send(text, signed("x", text))).status, 400);
    // An id of its own would let one event be kept twice.
    assert.equal((await send(body, signed("other", body))).status, 400);
  });
  await t.test("too large", async () => {
    const text = JSON.stringify(event(1, { data: { text: "x".repeat(2 << 20) } }));
    assert.equal((await send(text, signed(good.id, text))).status, 413);
  });
  await t.test("a body that never ends is read no further than an event could go, and without headers not at all", async () => {
    for (const [given, expected] of [[headers, 413], [{}, 401]]) {
      // It is answered while it still sends, or cut off.
      const answer = await new Promise((done, fail) => {
        const sending = request(new URL("/_moltinit/events", worker.url), { method: "POST", headers: given }, (answer) => (done(answer), sending.destroy()));
        sending.on("error", () => done(undefined));
        let chunks = 0;
        const more = () => {
          if (sending.destroyed) return;
          if ((chunks += 1) > 512) fail(new Error("all of it is read"));
          else sending.write(Buffer.alloc(1 << 16), () => setImmediate(more));
        };
        more();
      });
      if (answer) assert.equal(answer.statusCode, expected);
    }
  });
  const { events, boots } = await kept();
  assert.deepEqual([events, boots], [[], []]);
});

test("of several signatures one that is good will do, as while a secret is changed", async (t) => {
  const { send } = await setUp(t);
  const body = JSON.stringify(event(1));
  const headers = signed(event(1).id, body);
  const other = signed(event(1).id, body, { secret: `whsec_${Buffer.alloc(32, 7).toString("base64")}` });
  headers["webhook-signature"] = `v1a,asymmetric ${other["webhook-signature"]} ${headers["webhook-signature"]}`;
  assert.equal((await send(body, headers)).status, 200);
});

test("order is kept, and a gap shows until it is filled", async (t) => {
  const { post, kept } = await setUp(t);
  for (const seq of [1, 2, 5]) await post(event(seq));
  let { events, boots } = await kept();
  assert.deepEqual(events.map((event) => event.seq), [5, 2, 1]);
  assert.deepEqual([boots[0].last, boots[0].missing, boots[0].late], [5, 2, 0]);
  await post(event(4));
  await post(event(3));
  ({ events, boots } = await kept());
  assert.deepEqual([boots[0].missing, boots[0].late], [0, 2]);
  // Of a later boot, which says that it had to drop two.
  const next = "01JD000000000000000000000B";
  await post(event(3, { id: `${next}-00000003`, boot: next, type: "events.dropped", data: { count: 2 } }));
  ({ boots } = await kept());
  assert.deepEqual(boots.map(({ boot, missing, dropped }) => [boot, missing, dropped]), [[next, 2, 2], [BOOT, 0, 0]]);
});

test("a repetition is known as one, however much has come since", async (t) => {
  const { worker, kept } = await setUp(t);
  // Past the door, for there are many.
  const { Journal } = await worker.miniflare.getBindings();
  const receive = (seqs) => Journal.getByName("events").receiveAll(seqs.map((seq) => event(seq)));
  const range = (from, to) => Array.from({ length: to - from }, (_, index) => from + index);
  await receive(range(1, 5_101));
  assert.deepEqual(await receive([1, 50, 5_100]), [false, false, false]);
  let [boot] = (await kept()).boots;
  assert.deepEqual([boot.last, boot.received, boot.missing], [5_100, 5_100, 0]);

  // A gap: what fills it is new, once; and what came past it is not.
  assert.deepEqual(await receive([5_102, 5_103, 5_102, 5_101, 5_101, 5_103]), [true, true, false, true, false, false]);
  [boot] = (await kept()).boots;
  assert.deepEqual([boot.last, boot.received, boot.missing, boot.late], [5_103, 5_103, 0, 1]);

  // One that is never filled is given up, and stays missing.
  await receive(range(5_105, 6_200));
  assert.deepEqual(await receive([5_105, 6_199]), [false, false]);
  [boot] = (await kept()).boots;
  assert.deepEqual([boot.last, boot.missing], [6_199, 1]);
});

test("the same event twice at once is kept once", async (t) => {
  const { post, kept } = await setUp(t);
  const answers = await Promise.all(Array.from({ length: 20 }, () => post(event(1)).then((answer) => answer.json())));
  assert.equal(answers.filter(({ received }) => received === "first").length, 1);
  assert.equal((await kept()).events.length, 1);
});

test("without a secret nothing is taken for granted", async (t) => {
  const { post } = await setUp(t, { MOLTINIT_CALLBACK_SECRET: "" });
  assert.equal((await post(event(1))).status, 503);
});
