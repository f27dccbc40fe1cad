// The relay to Browser Rendering: only with the secret, and then all of CDP as it is. A real Chromium stands for the
// service, behind the one route of it that is used.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { test } from "node:test";
import { Response } from "miniflare";
import WebSocket from "ws";
import { atEnd, CDP_SECRET, Engine, scratch, start } from "./harness.mjs";

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

async function chromium(t) {
  const process = spawn("chromium", ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", `--user-data-dir=${scratch(t)}`], { stdio: ["ignore", "ignore", "pipe"] });
  const gone = new Promise((done) => process.on("exit", done));
  atEnd(t, () => (process.kill("SIGKILL"), gone));
  process.stderr.setEncoding("utf8");
  let text = "";
  for await (const chunk of process.stderr) {
    text += chunk;
    const [, address] = /DevTools listening on ws:\/\/(\S+)/.exec(text) ?? [];
    if (address) {
      // `for await` closes what it read from; Chromium goes on without.
      const [host, ...path] = address.split("/");
      return { host, path: `/${path.join("/")}` };
    }
  }
  throw new Error(`Chromium did not start: ${text}`);
}

/** Browser Rendering as a Worker's binding: one route, a browser for each connection. */
function rendering(t, { host, path }) {
  const script = `let launched = 0;
    export default { async fetch(request) {
      const url = new URL(request.url);
      if (url.pathname === "/launched") return Response.json(launched);
      if (url.pathname !== "/v1/devtools/browser" || request.headers.get("Upgrade") !== "websocket") return new Response("no such route", { status: 404 });
      if (request.headers.has("Authorization") || url.searchParams.has("secret")) return new Response("the secret was passed on", { status: 500 });
      launched += 1;
      return fetch("http://${host}${path}", { headers: { Upgrade: "websocket" } });
    } };`;
  return { name: "rendering", modules: true, script, compatibilityDate: "2026-04-01" };
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

test("an agent's tools drive a real browser through it", async (t) => {
  const { chromium: playwright } = createRequire(`${process.env.MOLTINIT_TEST_NODE_MODULES}/`)("playwright-core");
  const worker = await start(t, { engine: nobody(), browser: "rendering", beside: [rendering(t, await chromium(t))] });
  const url = new URL("/cdp", worker.url).href.replace("http", "ws");
  for (const [endpoint, headers] of [[`${url}?secret=${CDP_SECRET}`, {}], [url, { Authorization: `Bearer ${CDP_SECRET}` }]]) {
    const browser = await playwright.connectOverCDP(endpoint, { headers });
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.setContent(`<h1>hello</h1><p>${"x".repeat(2_000_000)}</p>`);
    assert.equal(await page.textContent("h1"), "hello");
    assert.equal((await page.textContent("p")).length, 2_000_000);
    assert.equal((await page.screenshot()).subarray(1, 4).toString(), "PNG");
    await context.close();
    await browser.close();
  }
});
