// relay-worker.mjs HOST:PORT [LISTEN]: in real workerd, the relay of the Worker in `worker/`, before the Chromium at that
// DevTools port, which stands for Browser Rendering; listens at the port LISTEN, and prints its URL.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
const worker = new URL("../../worker/", import.meta.url);
const require = createRequire(worker);
const { Miniflare } = require("miniflare");
const [chromium, listen] = process.argv.slice(2);

const entry = 'import { relay } from "./cdp"; export default { fetch: relay };';
const { outputFiles } = await require("esbuild").build({
  stdin: { contents: entry, resolveDir: fileURLToPath(new URL("src", worker)), loader: "ts" },
  bundle: true,
  write: false,
  format: "esm",
});
const rendering = `export default { async fetch(request) {
  const { pathname, searchParams } = new URL(request.url);
  if (pathname !== "/v1/devtools/browser" || !searchParams.get("keep_alive")) return new Response("no such route", { status: 404 });
  const { webSocketDebuggerUrl } = await (await fetch("http://${chromium}/json/version")).json();
  return fetch(webSocketDebuggerUrl.replace("ws:", "http:"), { headers: { Upgrade: "websocket" } });
} };`;
const shared = { modules: true, compatibilityDate: "2025-09-01" };
const miniflare = new Miniflare({
  host: "127.0.0.1",
  port: Number(listen ?? 0),
  workers: [
    { name: "relay", script: outputFiles[0].text, bindings: { CDP_SECRET: "relay-secret" }, serviceBindings: { BROWSER: "rendering" }, ...shared },
    { name: "rendering", script: rendering, ...shared },
  ],
});
console.log((await miniflare.ready).href);
process.on("SIGTERM", () => miniflare.dispose().then(() => process.exit(0)));
