// The relay to Browser Rendering: only with the secret, and then all of CDP as it is, for as long as the connection is
// there. The service is miniflare's own, with a real Chromium.
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { Response } from "miniflare";
import WebSocket from "ws";
import { CDP_SECRET, Engine, eventually, scratch, start } from "./harness.mjs";

const nobody = () => new Engine(() => assert.fail("nothing may start a container"));

/** What becomes of a WebSocket: `open`, or the status it is refused with. */
function dial(url, headers = {}) {
  return new Promise((done, fail) => {
    const socket = new WebSocket(url, { headers });
    socket.on("open", () => (socket.terminate(), done("open")));
    socket.on("unexpected-response", (_, response) => (response.destroy(), done(response.statusCode)));
    socket.on("error", fail);
  });
}

/**
 * Browser Rendering as miniflare has it: it starts the Chromium that is installed, for it takes it for the one that it
 * would download.
 */
function rendering(t) {
  const cache = scratch(t);
  process.env.XDG_CACHE_HOME = cache;
  const { platform, arch } = process;
  assert.equal(platform, "linux");
  const dir = join(cache, ".wrangler/chrome", `${arch === "arm64" ? "linux_arm" : "linux"}-126.0.6478.182`, "chrome-linux64");
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, "chrome"), '#!/bin/sh\nexec /usr/bin/chromium --no-sandbox --disable-gpu "$@"\n', { mode: 0o755 });
  return { binding: "BROWSER" };
}

test("with the wrong secret, or none, no browser is launched", async (t) => {
  let launched = 0;
  const browser = () => ((launched += 1), new Response("", { status: 500 }));
  const worker = await start(t, { engine: nobody(), browser });
  const url = new URL("/cdp", worker.url).href.replace("http", "ws");
  assert.equal(await dial(url), 401);
  assert.equal(await dial(`${url}?secret=`), 401);
  assert.equal(await dial(`${url}?secret=${CDP_SECRET}x`), 401);
  assert.equal(await dial(`${url}?secret=${CDP_SECRET.slice(1)}`), 401);
  assert.equal(await dial(url, { Authorization: "Bearer wrong" }), 401);
  // The header is the answer if there is one: no second try with the query.
  assert.equal(await dial(`${url}?secret=${CDP_SECRET}`, { Authorization: "Bearer wrong" }), 401);
  // A login is not the secret.
  assert.equal((await worker.asLogin("/cdp")).status, 401);
  // The secret without a WebSocket is a probe.
  assert.equal((await worker.ask(`/cdp?secret=${CDP_SECRET}`)).status, 426);
  assert.equal(launched, 0);
  const bare = await start(t, { engine: nobody(), browser, env: { CDP_SECRET: "" } });
  assert.equal((await bare.ask("/cdp?secret=")).status, 503);
});

test("what Browser Rendering refuses is said as what it is", async (t) => {
  for (const [status, expected] of [[429, 429], [500, 503], [403, 503]]) {
    const browser = () => new Response("no more browsers today", { status, headers: { "Retry-After": "7" } });
    const worker = await start(t, { engine: nobody(), browser });
    const url = `${new URL("/cdp", worker.url)}?secret=${CDP_SECRET}`.replace("http", "ws");
    assert.equal(await dial(url), expected);
  }
});

test("a Browser Rendering that cannot be reached is said as that", async (t) => {
  const beside = [{ name: "broken", modules: true, script: `export default { fetch() { throw new Error("no") } }`, compatibilityDate: "2026-04-01" }];
  const worker = await start(t, { engine: nobody(), browser: "broken", beside });
  assert.equal(await dial(`${new URL("/cdp", worker.url)}?secret=${CDP_SECRET}`.replace("http", "ws")), 503);
});

test("an agent's tools drive a real browser through it", async (t) => {
  const { chromium: playwright } = createRequire(`${process.env.MOLTINIT_TEST_NODE_MODULES}/`)("playwright-core");
  const worker = await start(t, { engine: nobody(), browserRendering: rendering(t) });
  const browsers = await worker.miniflare.getBindings().then(({ BROWSER }) => async () => (await (await BROWSER.fetch("http://x/v1/sessions")).json()).sessions.length);
  const url = new URL("/cdp", worker.url).href.replace("http", "ws");
  for (const [endpoint, headers] of [[`${url}?secret=${CDP_SECRET}`, {}], [url, { Authorization: `Bearer ${CDP_SECRET}` }]]) {
    const browser = await playwright.connectOverCDP(endpoint, { headers });
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.setContent(`<h1>hello</h1><p>${"x".repeat(2_000_000)}</p>`);
    assert.equal(await page.textContent("h1"), "hello");
    assert.equal((await page.textContent("p")).length, 2_000_000);
    assert.equal((await page.screenshot()).subarray(1, 4).toString(), "PNG");
    assert.equal(await browsers(), 1);
    await context.close();
    // The connection and not the browser is closed by this: without it nobody is to pay for the other.
    await browser.close();
    await eventually("the end of the browser", async () => (await browsers()) === 0 || undefined);
  }
  // The same when it is not closed but lost.
  const lost = new WebSocket(`${url}?secret=${CDP_SECRET}`);
  await new Promise((done, fail) => lost.on("open", done).on("error", fail));
  assert.equal(await browsers(), 1);
  lost.terminate();
  await eventually("the end of the browser", async () => (await browsers()) === 0 || undefined);
});
