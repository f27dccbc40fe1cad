// drive-browser.mjs playwright|puppeteer ENDPOINT: does through a CDP endpoint what an agent's tools do, prints JSON.
// The packages are found by MOLTINIT_TEST_NODE_MODULES.
import { createRequire } from "node:module";
const [library, endpoint] = process.argv.slice(2);
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
console.log(JSON.stringify(await drive[library]()));
process.exit(0);
