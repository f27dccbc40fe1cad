// The keys of Cloudflare Access: asked for when they must be, and not more often; with a clock that the test turns.
import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import { source } from "./harness.mjs";

const { Keyring, FRESH, STALE, PATIENCE, BACK_OFF } = await source("keys.ts");

const jwk = (kid) => ({ ...generateKeyPairSync("rsa", { modulusLength: 2048 }).publicKey.export({ format: "jwk" }), kid });

function setUp() {
  const world = { now: 1_000_000, asked: 0, keys: [jwk("one")], up: true };
  const fetchIt = async () => {
    world.asked += 1;
    await world.gate;
    return world.up ? Response.json({ keys: world.keys }) : new Response("down", { status: 503 });
  };
  const ring = new Keyring("https://team.example/certs", fetchIt, () => world.now);
  return { world, ring, has: async (kid) => (await ring.key(kid)) !== undefined };
}

test("they are asked for once, and again when they are no longer fresh", async () => {
  const { world, has } = setUp();
  for (let i = 0; i < 5; i += 1) assert.ok(await has("one"));
  assert.equal(world.asked, 1);
  world.now += FRESH + 1;
  assert.ok(await has("one"));
  assert.equal(world.asked, 2);
});

test("a change of keys is noticed at the first token that is signed with a new one", async () => {
  const { world, has } = setUp();
  assert.ok(await has("one"));
  world.keys = [...world.keys, jwk("two")];
  world.now += PATIENCE;
  assert.ok(await has("two"));
  assert.equal(world.asked, 2);
  // And when the old one is withdrawn, it counts no more.
  world.keys = world.keys.slice(1);
  world.now += FRESH + 1;
  assert.ok(await has("two"));
  assert.equal(await has("one"), false);
});

test("keys that are made up are not asked for again and again", async () => {
  const { world, has } = setUp();
  for (let i = 0; i < 100; i += 1) assert.equal(await has(`made-up-${i}`), false);
  assert.equal(world.asked, 1);
  world.now += PATIENCE;
  for (let i = 0; i < 100; i += 1) assert.equal(await has(`made-up-${i}`), false);
  assert.equal(world.asked, 2);
});

test("in an outage those that are known go on for a day, and it is asked with a pause in between", async () => {
  const { world, has } = setUp();
  assert.ok(await has("one"));
  world.up = false;
  world.now += FRESH + 1;
  for (let i = 0; i < 10; i += 1) assert.ok(await has("one"));
  assert.equal(world.asked, 2);
  world.now += BACK_OFF;
  assert.ok(await has("one"));
  assert.equal(world.asked, 3);
  world.now += STALE;
  await assert.rejects(has("one"));
  world.up = true;
  world.now += BACK_OFF;
  assert.ok(await has("one"));
});

test("without any, everybody is refused, and asked for it is with a pause in between", async () => {
  const { world, has } = setUp();
  world.up = false;
  for (let i = 0; i < 10; i += 1) await assert.rejects(has("one"));
  assert.equal(world.asked, 1);
  world.up = true;
  await assert.rejects(has("one"));
  world.now += BACK_OFF;
  assert.ok(await has("one"));
});

test("whoever comes at once waits for one answer", async () => {
  const { world, has } = setUp();
  let open;
  world.gate = new Promise((done) => (open = done));
  const all = Array.from({ length: 20 }, () => has("one"));
  open();
  assert.deepEqual(new Set(await Promise.all(all)), new Set([true]));
  assert.equal(world.asked, 1);
});
