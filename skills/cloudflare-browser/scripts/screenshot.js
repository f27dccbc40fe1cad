// screenshot.js URL OUTPUT: a page as .png, .jpg, .webp or .pdf.
import { writeFile } from "node:fs/promises";
import { extname } from "node:path";
import { Failure, args, withPage } from "./cdp.js";

const [url, output, options] = args("screenshot.js URL OUTPUT [--full] [--width N] [--height N]", 2, {
  full: false,
  width: 1280,
  height: 800,
});
const FORMATS = { ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".pdf": "pdf" };

await withPage(options, async (page) => {
  const format = FORMATS[extname(output).toLowerCase()];
  if (!format) throw new Failure(`${output}: the ending must be one of ${Object.keys(FORMATS).join(", ")}`);
  await page.size(options.width, options.height);
  await page.goto(url);
  let bytes;
  if (format === "pdf") {
    bytes = await page.capture("Page.printToPDF", { printBackground: true });
  } else {
    const how = { format };
    if (options.full) {
      const root = "document.scrollingElement ?? document.documentElement";
      const [width, height] = await page.evaluate(`(({ scrollWidth, scrollHeight }) => [scrollWidth, scrollHeight])(${root})`);
      Object.assign(how, { captureBeyondViewport: true, clip: { x: 0, y: 0, width, height, scale: 1 } });
    }
    bytes = await page.capture("Page.captureScreenshot", how);
  }
  await writeFile(output, bytes);
  console.log(output);
});
