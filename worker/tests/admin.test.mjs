// The admin page in a real browser, at the size of a desk and of a phone, against the real moltinit and the real
// gateway: what it shows, and that each of its buttons does what it says.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { atEnd, container, Engine, eventually, GATEWAY_TOKEN, PATIENCE, scratch, start } from "./harness.mjs";

const SHOTS = process.env.MOLTINIT_TEST_SCREENSHOTS;

async function browser(t) {
  const { chromium } = createRequire(`${process.env.MOLTINIT_TEST_NODE_MODULES}/`)("playwright-core");
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
  atEnd(t, () => browser.close());
  return async (worker, options) => {
    // With the cookie of a login.
    const context = await browser.newContext(options);
    const value = worker.login.token({ exp: worker.login.now() + 7200 });
    await context.addCookies([{ name: "CF_Authorization", value, url: worker.url.href, httpOnly: true }]);
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    const trouble = [];
    page.on("pageerror", (error) => trouble.push(String(error)));
    page.on("console", (message) => message.text().includes("Content Security Policy") && trouble.push(message.text()));
    return { page, trouble };
  };
}

const shoot = async (page, name) => {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
};

test("from the loading page to the admin page, and every button on it", async (t) => {
  const dir = scratch(t);
  const inside = await container(t, { dir, store: join(dir, "store"), gateway: { delay: 3000 } });
  const engine = new Engine(inside.run);
  const worker = await start(t, { engine, ports: inside.ports });
  const open = await browser(t);

  const phone = await open(worker, { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true });
  await phone.page.goto(new URL("/", worker.url).href);
  await phone.page.locator("li.now").waitFor();
  await shoot(phone.page, "loading-phone");
  // It goes on by itself.
  await phone.page.getByText('"method":"GET"').waitFor();

  const { page, trouble } = await open(worker, { viewport: { width: 1280, height: 900 } });
  await page.goto(new URL("/_admin/", worker.url).href);
  await page.locator("#state", { hasText: /^ready$/ }).waitFor();
  await page.locator("#log", { hasText: "the stand-in gateway listens" }).waitFor();
  await page.locator("#gaps", { hasText: "none missing" }).waitFor();

  const message = page.locator("#message");
  await page.getByRole("button", { name: "Snapshot now" }).click();
  await message.getByText(/^committed /).waitFor();
  await page.locator("#snapshots li button").first().waitFor();
  await eventually("the figure", async () => /Seconds behind\s*\d+/.test(await page.locator("#figures").innerText()) || undefined);
  await shoot(page, "admin-desktop");

  await t.test("nothing happens without a confirmation", async () => {
    const pid = (await page.evaluate(() => fetch("/_admin/api/status").then((answer) => answer.json()))).services.gateway.pid;
    await page.locator("#services").getByRole("button", { name: "Restart" }).first().click();
    await shoot(page, "confirm-desktop");
    await page.getByRole("button", { name: "Cancel" }).click();
    // Had it been asked for, it would have been before this.
    await page.getByRole("button", { name: "Snapshot now" }).click();
    await message.getByText(/^committed .*[2-9]$/).waitFor();
    const now = (await page.evaluate(() => fetch("/_admin/api/status").then((answer) => answer.json()))).services.gateway.pid;
    assert.equal(now, pid);
  });
  await t.test("restart a service", async () => {
    await page.locator("#services").getByRole("button", { name: "Restart" }).first().click();
    await page.getByRole("button", { name: "Go on" }).click();
    await message.getByText("restart gateway: done").waitFor();
  });
  await t.test("restore a snapshot", async () => {
    await page.locator("#snapshots").getByRole("button", { name: "Restore" }).first().click();
    await page.getByRole("button", { name: "Go on" }).click();
    await message.getByText(/^restore .*: done$/).waitFor();
  });
  await t.test("restart the container", async () => {
    await page.getByRole("button", { name: "Restart the container" }).click();
    await page.getByRole("button", { name: "Go on" }).click();
    await message.getByText("The container is restarting").waitFor();
    await eventually("another container", () => engine.starts === 2 || undefined);
    await page.locator("#state", { hasText: /^ready$/ }).waitFor();
  });
  await t.test("on a phone nothing is out of reach", async () => {
    await phone.page.goto(new URL("/_admin", worker.url).href);
    await phone.page.locator("#state", { hasText: /^ready$/ }).waitFor();
    await phone.page.locator("#snapshots li button").first().waitFor();
    await shoot(phone.page, "admin-phone");
    // A phone shrinks a page that is too wide: then it is the page's width that innerWidth tells.
    assert.equal(await phone.page.evaluate(() => Math.max(innerWidth, document.documentElement.scrollWidth)), 390);
    for (const button of await phone.page.getByRole("button").all()) {
      if (await button.isVisible()) assert.ok((await button.boundingBox()).height >= 36, await button.innerText());
    }
  });
  assert.deepEqual([...trouble, ...phone.trouble], []);
});

test("a browser is paired with the real gateway", async (t) => {
  const dir = scratch(t);
  const inside = await container(t, { dir, store: join(dir, "store"), gateway: "openclaw" });
  const worker = await start(t, { engine: new Engine(inside.run), ports: inside.ports });
  const open = await browser(t);

  const { page: client } = await open(worker, {});
  await client.goto(new URL("/", worker.url).href);
  await client.locator("li.now").waitFor();
  await client.locator("li.now").waitFor({ state: "detached", timeout: 2 * PATIENCE });
  const chat = new URL(`/#token=${GATEWAY_TOKEN}`, worker.url).href;
  // By way of another page: a link to a fragment of the page that is shown would not load it again.
  await client.goto("about:blank");
  await client.goto(chat);

  const { page, trouble } = await open(worker, { viewport: { width: 390, height: 844 }, isMobile: true });
  await page.goto(new URL("/_admin", worker.url).href);
  await page.getByRole("button", { name: "Approve" }).click();
  await page.locator("#devices", { hasText: "paired" }).waitFor();
  await page.getByRole("button", { name: "Approve" }).waitFor({ state: "detached" });
  await shoot(page, "devices-phone");
  await client.goto("about:blank");
  await client.goto(chat);
  await client.getByText(/Model Setup|Settings/).first().waitFor();
  await shoot(client, "client");
  assert.deepEqual(trouble, []);
});
