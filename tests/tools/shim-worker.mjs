// shim-worker.mjs HOST:PORT: in real workerd, a Worker that behaves like moltworker's shim, before the Chromium at that
// DevTools port; prints its URL. One page is all a client gets to begin with; no sessions, no contexts, values only.
import { createRequire } from "node:module";
const { Miniflare } = createRequire(new URL("../../worker/", import.meta.url))("miniflare");
const [chromium] = process.argv.slice(2);

const script = `
const SECRET = "shim-secret";
export default {
  async fetch(request) {
    const url = new URL(request.url);
    if (url.searchParams.get("secret") !== SECRET) return new Response("Unauthorized", { status: 401 });
    const [client, server] = Object.values(new WebSocketPair());
    server.accept();
    serve(server).catch((error) => server.close(1011, String(error).slice(0, 100)));
    return new Response(null, { status: 101, webSocket: client });
  },
};

async function serve(shim) {
  // A browser takes a while, and what comes meanwhile is lost: nobody listens yet.
  await new Promise((done) => setTimeout(done, 500));
  const { webSocketDebuggerUrl } = await (await fetch("http://${chromium}/json/version")).json();
  const upgraded = await fetch(webSocketDebuggerUrl.replace("ws:", "http:"), { headers: { Upgrade: "websocket" } });
  const browser = upgraded.webSocket;
  browser.accept();
  const calls = new Map(), waits = new Set();
  let next = 1;
  browser.addEventListener("close", () => shim.close(1011, "the browser is gone"));
  browser.addEventListener("message", ({ data }) => {
    const message = JSON.parse(data);
    if (message.method === "Fetch.requestPaused") return pause(message);
    if (message.id) return calls.get(message.id)?.(message), calls.delete(message.id);
    for (const wait of waits) if (wait.method === message.method && wait.session === message.sessionId) wait.done();
  });
  const send = (method, params, sessionId) => new Promise((done, failed) => {
    calls.set(next, ({ result, error }) => (error ? failed(new Error(error.message)) : done(result)));
    browser.send(JSON.stringify({ id: next++, method, params, sessionId }));
  });
  const pause = ({ sessionId, params: { requestId, request, resourceType } }) => {
    const id = crypto.randomUUID();
    paused.set(id, { requestId, sessionId });
    say({ method: "Fetch.requestPaused", params: { requestId: id, request, frameId: first, resourceType: resourceType.toLowerCase() } });
  };
  const event = (method, session) => new Promise((done) => {
    const wait = { method, session, done: () => (waits.delete(wait), done()) };
    waits.add(wait);
  });
  const say = (message) => shim.send(JSON.stringify(message));
  const pages = new Map(), paused = new Map();
  const open = async (url) => {
    const { targetId: inner } = await send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await send("Target.attachToTarget", { targetId: inner, flatten: true });
    await send("Page.enable", {}, sessionId);
    const targetId = crypto.randomUUID();
    const page = { inner, sessionId, x: 0, y: 0 };
    pages.set(targetId, page);
    // Whoever asks for a page waits until it has loaded.
    if (url !== "about:blank") await goto(page, url);
    const [title, at] = await Promise.all(["document.title", "location.href"].map((expression) => evaluate(page, expression)));
    say({ method: "Target.targetCreated", params: { targetInfo: { targetId, type: "page", title, url: at, attached: true } } });
    return targetId;
  };
  const evaluate = async (page, expression) => {
    const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true }, page.sessionId);
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  const goto = async (page, url) => {
    const loaded = event("Page.loadEventFired", page.sessionId);
    const { errorText } = await send("Page.navigate", { url }, page.sessionId);
    if (errorText) throw new Error(errorText + " at " + url);
    await loaded;
  };
  shim.addEventListener("close", () => { for (const page of pages.values()) send("Target.closeTarget", { targetId: page.inner }).catch(() => {}); });
  const first = await open("about:blank");
  const handle = async (method, params) => {
    const page = pages.get(params.targetId ?? first);
    const to = (method, params) => send(method, params, page.sessionId);
    switch (method) {
      case "Target.createTarget": return { targetId: await open(params.url || "about:blank") };
      case "Target.closeTarget":
        await send("Target.closeTarget", { targetId: page.inner });
        pages.delete(params.targetId);
        say({ method: "Target.targetDestroyed", params: { targetId: params.targetId } });
        return { success: true };
      case "Page.navigate":
        await goto(page, params.url);
        say({ method: "Page.frameNavigated", params: { frame: { id: first, url: params.url } } });
        say({ method: "Page.loadEventFired", params: { timestamp: 0 } });
        return { frameId: first, loaderId: crypto.randomUUID(), errorText: /^http/.test(params.url) ? undefined : "Navigation failed" };
      case "Page.captureScreenshot": return to(method, { format: params.format ?? "png", clip: params.clip && { scale: 1, ...params.clip } });
      case "Page.printToPDF": return to(method, {});
      case "Page.addScriptToEvaluateOnNewDocument": return to(method, { source: params.source });
      case "Page.bringToFront": case "Page.enable": return {};
      case "Runtime.evaluate":
        try {
          const value = await evaluate(page, params.awaitPromise ? "(async () => { return " + params.expression + "; })()" : params.expression);
          return { result: { type: typeof value, value, description: String(value) } };
        } catch (error) {
          return { exceptionDetails: { exceptionId: 1, text: error.message, lineNumber: 0, columnNumber: 0 } };
        }
      case "Runtime.callFunctionOn":
        return { exceptionDetails: { exceptionId: 1, text: "Code generation from strings disallowed for this context", lineNumber: 0, columnNumber: 0 } };
      case "Input.dispatchMouseEvent":
        if (params.type === "mouseMoved") Object.assign(page, { x: params.x, y: params.y });
        await to(method, { type: params.type, x: page.x, y: page.y, button: params.type === "mouseMoved" ? "none" : params.button ?? "left", clickCount: params.type === "mouseMoved" ? 0 : 1 });
        return {};
      case "Input.dispatchKeyEvent": {
        if (params.type !== "keyUp" && params.type !== "keyDown") throw new Error("Unknown key type in the stand-in: " + params.type);
        const text = params.type === "keyDown" && params.key.length === 1 ? params.key : undefined;
        await to(method, { type: text || params.type === "keyUp" ? params.type : "rawKeyDown", key: params.key, text });
        return {};
      }
      case "Input.insertText": await to(method, { text: params.text }); return {};
      case "Emulation.setDeviceMetricsOverride":
        await to(method, { width: params.width, height: params.height, deviceScaleFactor: 1, mobile: false });
        return {};
      case "Fetch.enable":
        if (page.intercepts) throw new Error("stopped twice: each of its requests would be judged twice");
        page.intercepts = true;
        return to(method, {});
      case "Fetch.continueRequest": case "Fetch.fulfillRequest": case "Fetch.failRequest": {
        const found = paused.get(params.requestId);
        if (!page || !found) throw new Error("Request not found: " + params.requestId);
        paused.delete(params.requestId);
        const { targetId, ...given } = params;
        return send(method, { ...given, requestId: found.requestId }, found.sessionId);
      }
      default: throw new Error("Unknown " + method.split(".")[0] + " method: " + method.split(".")[1]);
    }
  };
  shim.addEventListener("message", async ({ data }) => {
    const { id, method, params } = JSON.parse(data);
    try {
      say({ id, result: await handle(method, params ?? {}) });
    } catch (error) {
      say({ id, error: { code: -32000, message: error.message } });
    }
  });
}
`;
const worker = new Miniflare({ modules: true, script, compatibilityDate: "2025-09-01", host: "127.0.0.1", port: 0 });
console.log((await worker.ready).href);
process.on("SIGTERM", () => worker.dispose().then(() => process.exit(0)));
