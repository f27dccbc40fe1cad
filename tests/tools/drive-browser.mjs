// drive-browser.mjs playwright|puppeteer ENDPOINT [tour|download]: does through a CDP endpoint what an agent's tools do,
// prints JSON. A tour goes to a site of its own, and clicks, types, prints and opens tabs there.
// The packages are found by MOLTINIT_TEST_NODE_MODULES.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
const [library, endpoint, what = "drive"] = process.argv.slice(2);
const require = createRequire(process.env.MOLTINIT_TEST_NODE_MODULES + "/");
const text = "<title>A page</title><h1>hello</h1><p>" + "x".repeat(3_000_000) + "</p>";

const drive = {
  async playwright() {
    const { chromium } = require("playwright-core");
    const browser = await chromium.connectOverCDP(endpoint);
    const page = await browser.contexts()[0].newPage();
    await page.setContent(text);
    const seen = { title: await page.title(), heading: await page.textContent("h1") };
    seen.long = (await page.textContent("p")).length;
    seen.png = (await page.screenshot()).subarray(1, 4).toString();
    await page.close();
    await browser.close();
    return seen;
  },
  async puppeteer() {
    const puppeteer = require("puppeteer-core");
    const browser = await puppeteer.connect({ browserURL: endpoint });
    const page = await browser.newPage();
    await page.setContent(text);
    const seen = { title: await page.title(), heading: await page.$eval("h1", (h1) => h1.textContent) };
    seen.long = (await page.$eval("p", (p) => p.textContent)).length;
    seen.png = Buffer.from(await page.screenshot()).subarray(1, 4).toString();
    await page.close();
    await browser.disconnect();
    return seen;
  },
};

async function site() {
  const server = createServer(({ url }, answer) => {
    answer.setHeader("Content-Type", "text/html");
    // As strict a policy on scripts as there is.
    answer.setHeader("Content-Security-Policy", "default-src 'none'");
    if (url.startsWith("/file")) {
      answer.setHeader("Content-Disposition", "attachment; filename=greeting.txt");
      return answer.end("hello");
    }
    if (url.startsWith("/found")) return answer.end(`<title>Found</title><h1>${new URL(url, "http://h").searchParams.get("q")}</h1>`);
    answer.end("<title>Search</title><form action=/found><input name=q><button>Go</button></form>");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return `http://127.0.0.1:${server.address().port}/`;
}

const tours = {
  async playwright() {
    const browser = await require("playwright-core").chromium.connectOverCDP(endpoint);
    const context = browser.contexts()[0];
    const page = context.pages()[0] ?? (await context.newPage());
    await page.goto(await site());
    const seen = { title: await page.title() };
    await page.click("input");
    await page.keyboard.type("two words");
    seen.typed = await page.inputValue("input");
    await page.click("button");
    await page.waitForSelector("h1");
    seen.found = await page.textContent("h1");
    seen.sum = await page.evaluate(([a, b]) => Promise.resolve({ sum: a + b }), [1, 2]);
    seen.pdf = (await page.pdf()).subarray(0, 4).toString();
    const second = await context.newPage();
    await second.goto(page.url());
    seen.tabs = await Promise.all(context.pages().map((page) => page.title()));
    seen.wrong = await page.evaluate(() => nowhere()).catch((error) => /nowhere is not defined/.test(error.message));
    seen.lost = await second.goto("http://nowhere.invalid/").catch((error) => /ERR_NAME_NOT_RESOLVED/.test(error.message));
    await second.close();
    seen.left = context.pages().length;
    await browser.close();
    return seen;
  },
  async puppeteer() {
    const browser = await require("puppeteer-core").connect({ browserURL: endpoint });
    const page = (await browser.pages())[0] ?? (await browser.newPage());
    await page.goto(await site());
    const seen = { title: await page.title() };
    await page.click("input");
    await page.keyboard.type("two words");
    seen.typed = await page.$eval("input", (input) => input.value);
    await page.click("button");
    await page.waitForSelector("h1");
    seen.found = await page.$eval("h1", (h1) => h1.textContent);
    seen.sum = await page.evaluate((a, b) => Promise.resolve({ sum: a + b }), 1, 2);
    seen.pdf = Buffer.from(await page.pdf()).subarray(0, 4).toString();
    const second = await browser.newPage();
    await second.goto(page.url());
    seen.tabs = await Promise.all((await browser.pages()).map((page) => page.title()));
    seen.wrong = await page.evaluate(() => nowhere()).catch((error) => /nowhere is not defined/.test(error.message));
    seen.lost = await second.goto("http://nowhere.invalid/").catch((error) => /ERR_NAME_NOT_RESOLVED/.test(error.message));
    await second.close();
    seen.left = (await browser.pages()).length;
    await browser.disconnect();
    return seen;
  },
};
const downloads = {
  async playwright() {
    const browser = await require("playwright-core").chromium.connectOverCDP(endpoint);
    const page = await browser.contexts()[0].newPage();
    await page.goto(await site());
    const coming = page.waitForEvent("download");
    await page.evaluate(() => void (location.href = "/file"));
    const download = await coming;
    const seen = { name: download.suggestedFilename(), text: await readFile(await download.path(), "utf8") };
    await browser.close();
    return seen;
  },
};
console.log(JSON.stringify(await { drive, tour: tours, download: downloads }[what][library]()));
process.exit(0);
