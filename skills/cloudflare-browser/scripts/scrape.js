// scrape.js URL: what a page says, as JSON, as its visible text (--text) or as its HTML (--html).
import { Failure, args, withPage } from "./cdp.js";

const [url, options] = args("scrape.js URL [--selector CSS] [--text | --html]", 1, {
  selector: "",
  text: false,
  html: false,
});

// Runs in the page.
function read(selector) {
  const found = selector ? [...document.querySelectorAll(selector)] : [document.documentElement];
  const join = (what) => found.map(what).join("\n");
  const links = found.flatMap((element) => [...element.querySelectorAll("a[href]")]);
  return {
    url: location.href,
    title: document.title,
    found: found.length,
    text: join((element) => (selector ? element : document.body ?? element).innerText ?? element.textContent).trim(),
    html: join((element) => element.outerHTML),
    links: links.map((link) => ({ text: link.innerText.trim(), url: link.href })),
  };
}

await withPage(options, async (page) => {
  await page.goto(url);
  const { found, html, ...seen } = await page.evaluate(`(${read})(${JSON.stringify(options.selector)})`);
  if (found === 0) throw new Failure(`nothing on ${seen.url} matches ${options.selector}`);
  if (options.html) console.log(html);
  else if (options.text) console.log(seen.text);
  else console.log(JSON.stringify(seen, null, 2));
});
