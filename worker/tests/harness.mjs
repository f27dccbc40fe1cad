// What every test of the Worker needs: the Worker itself in workerd, and something that is its container.
import { spawn } from "node:child_process";
import { createHmac, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { Miniflare, Response } from "miniflare";

const here = fileURLToPath(new URL(".", import.meta.url));

export const TEAM = "team.cloudflareaccess.com";
export const AUDIENCE = "a".repeat(64);
export const CALLBACK_SECRET = `whsec_${randomBytes(32).toString("base64")}`;
export const GATEWAY_TOKEN = "gateway-token-0123456789";
export const CDP_SECRET = "cdp-secret-0123456789";

/** Generous: the machine may be busy. */
export const PATIENCE = 120_000;

const ends = new WeakMap();

/**
 * What is to be undone at the end of a test, the last first: nothing is taken from under what still runs, and what
 * fails keeps nothing else from being undone.
 */
export function atEnd(t, undo) {
  if (!ends.has(t)) {
    const all = [];
    ends.set(t, all);
    t.after(async () => {
      const failed = [];
      for (const undo of all.reverse()) await Promise.resolve().then(undo).catch((error) => failed.push(error));
      if (failed.length) throw new AggregateError(failed, "the end of the test");
    });
  }
  ends.get(t).push(undo);
}

export function scratch(t) {
  const dir = mkdtempSync(join(tmpdir(), "moltinit-worker-"));
  atEnd(t, () => rmSync(dir, { recursive: true, force: true, maxRetries: 20 }));
  return dir;
}

const given = new Set();

/**
 * A loopback port that nobody listens on, given once. It is below those that the kernel gives to whoever asks for any,
 * so nobody is given it before it is used.
 */
export async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    if (given.has(port)) continue;
    given.add(port);
    const server = createTcp();
    const free = await new Promise((done) => server.once("error", () => done(false)).listen(port, "127.0.0.1", () => done(true)));
    if (!free) continue;
    await new Promise((done) => server.close(done));
    return port;
  }
}

/** Asks again and again until there is an answer that is not `undefined`. */
export async function eventually(what, ask, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  for (let last; ; ) {
    try {
      const answer = await ask();
      if (answer !== undefined) return answer;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`${what}: not within ${patience} ms`, { cause: last });
    await new Promise((done) => setTimeout(done, 100));
  }
}

let bundled;
/** The Worker, with the stand-in for the container binding, as one module. */
function bundle() {
  return (bundled ??= asModule("standin.ts"));
}

async function asModule(name) {
  const result = await build({
    entryPoints: [join(here, name)],
    bundle: true,
    write: false,
    format: "esm",
    target: "es2022",
    conditions: ["workerd", "worker"],
    external: ["cloudflare:*", "node:*"],
    loader: { ".html": "text" },
    keepNames: true,
  });
  return result.outputFiles[0].text;
}

/** A file of the Worker's that needs nothing of workerd, for a test of it alone. */
export async function source(name) {
  const dir = mkdtempSync(join(tmpdir(), "moltinit-worker-"));
  try {
    const file = join(dir, "module.mjs");
    writeFileSync(file, await asModule(`../src/${name}`));
    return await import(file);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Cloudflare Access: keys, and tokens signed with them. */
export function access() {
  const pair = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const jwk = { ...pair.publicKey.export({ format: "jwk" }), kid: "key-1", alg: "RS256", use: "sig" };
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = () => Math.floor(Date.now() / 1000);
  return {
    jwks: { keys: [jwk] },
    asked: 0,
    encode,
    now,
    claims: () => ({ iss: `https://${TEAM}`, aud: [AUDIENCE], sub: "user-1", email: "me@example.com", iat: now(), nbf: now(), exp: now() + 600 }),
    token(claims = {}, header = {}, key = pair.privateKey) {
      const head = `${encode({ alg: "RS256", kid: "key-1", typ: "JWT", ...header })}.${encode({ ...this.claims(), ...claims })}`;
      return `${head}.${sign("RSA-SHA256", Buffer.from(head), key).toString("base64url")}`;
    },
  };
}

/** The headers of a callback, as the Standard Webhooks specification has them signed. */
export function signed(id, body, { secret = CALLBACK_SECRET, timestamp = Math.floor(Date.now() / 1000) } = {}) {
  const key = Buffer.from(secret.replace("whsec_", ""), "base64");
  const signature = createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64");
  return { "webhook-id": id, "webhook-timestamp": String(timestamp), "webhook-signature": `v1,${signature}` };
}

/** What stands for the platform: starts a container when the Worker says so, and tells it when it has ended. */
export class Engine {
  starts = 0;
  intercepted = [];
  /** The environment of the last start. */
  env;
  /** Of the running container: `exited`, a promise of its exit code, and `signal`. */
  container;

  /** `run(env)` starts a container. */
  constructor(run) {
    this.run = run;
  }

  async handle(request) {
    const [, verb, argument] = new URL(request.url).pathname.split("/");
    const body = await request.json();
    switch (verb) {
      case "start":
        this.starts += 1;
        this.env = body;
        this.container = await this.run(body);
        return Response.json({});
      case "wait":
        return Response.json(await this.container.exited);
      case "signal":
        this.container?.signal(Number(argument));
        return Response.json({});
      case "intercept":
        this.intercepted.push(body.host);
        return Response.json({});
    }
  }
}

/**
 * The Worker in workerd. `ports` says where the container's ports are really, `times` what of the Worker's is to be
 * quicker; `asLogin` makes requests that have passed Access.
 */
export async function start(t, { engine, ports = {}, env = {}, times = {}, port, persist, login = access(), browser, browserRendering, beside = [], running = false } = {}) {
  const script = await bundle();
  port ??= await freePort();
  const external = (port) => ({ external: { address: `127.0.0.1:${port}`, http: {} } });
  const miniflare = new Miniflare({
    host: "127.0.0.1",
    port,
    durableObjectsPersist: persist ?? false,
    workers: [
      {
        name: "moltinit",
        modules: [{ type: "ESModule", path: "index.mjs", contents: script }],
        compatibilityDate: "2026-04-01",
        compatibilityFlags: ["nodejs_compat"],
        durableObjects: {
          Sandbox: { className: "Sandbox", useSQLite: true },
          Journal: { className: "Journal", useSQLite: true },
        },
        r2Buckets: ["STORE"],
        browserRendering,
        bindings: {
          CF_ACCESS_TEAM_DOMAIN: TEAM,
          CF_ACCESS_AUD: AUDIENCE,
          OPENCLAW_GATEWAY_TOKEN: GATEWAY_TOKEN,
          MOLTINIT_CALLBACK_SECRET: CALLBACK_SECRET,
          CDP_SECRET,
          WORKER_URL: `http://127.0.0.1:${port}`,
          SANDBOX_LOG_LEVEL: "error",
          ENGINE_RUNNING: running,
          TIMES: times,
          ...env,
        },
        serviceBindings: {
          ENGINE: (request) => engine.handle(request),
          ...Object.fromEntries(Object.entries(ports).map(([inside, outside]) => [`PORT_${inside}`, external(outside)])),
          ...(browser && { BROWSER: browser }),
        },
        outboundService(request) {
          const url = new URL(request.url);
          if (url.host !== TEAM || url.pathname !== "/cdn-cgi/access/certs") return new Response("no such host", { status: 502 });
          login.asked += 1;
          return login.jwks ? Response.json(login.jwks) : new Response("down", { status: 503 });
        },
      },
      ...beside,
    ],
  });
  let disposed;
  const stop = () => (disposed ??= miniflare.dispose());
  atEnd(t, stop);
  const url = await miniflare.ready;
  // On a connection of its own: workerd ends one on which it answered before it had read all of the body, and the next
  // request on it would be lost if it came in that moment.
  const ask = (path, { headers = {}, ...init } = {}) =>
    fetch(new URL(path, url), { redirect: "manual", ...init, headers: { Connection: "close", ...headers } });
  const asLogin = (path, { headers = {}, ...init } = {}) =>
    ask(path, { ...init, headers: { "Cf-Access-Jwt-Assertion": login.token(), ...headers } });
  return { url, ask, asLogin, login, stop, miniflare };
}

/**
 * What is begun in the course of a test, to be ended at its end: once all that is set up later is gone, which might
 * begin more.
 */
export function begun(t) {
  const ends = [];
  atEnd(t, () => Promise.all(ends.map((end) => end())));
  return ends;
}

/**
 * Runs the real moltinit as PID 1 of a PID namespace, with the real gateway or with a stand-in for it, which is ready
 * `delay` ms after its start. The directory is its disk; its store is `store`. Gives what `Engine` wants, and where its
 * ports are.
 */
export async function container(t, { dir, store, gateway = { delay: 0 } }) {
  const ports = { 9180: await freePort(), 18789: await freePort() };
  const cdp = await freePort();
  for (const name of ["home", "data", "run"]) mkdirSync(join(dir, name), { recursive: true });
  mkdirSync(store, { recursive: true });
  const port = String(ports[18789]);
  const command =
    gateway === "openclaw"
      ? ["openclaw", "gateway", "--port", port, "--bind", "loopback"]
      : [process.execPath, join(here, "gateway.mjs"), port, String(gateway.delay)];
  const path = gateway === "openclaw" ? `${process.env.MOLTINIT_TEST_OPENCLAW}/bin:${process.env.PATH}` : process.env.PATH;
  const config = join(dir, "moltinit.toml");
  writeFileSync(
    config,
    `[[service]]\nname = "gateway"\ncommand = ${JSON.stringify(command)}\n` +
      `ready = { http = "http://127.0.0.1:${port}/readyz", json = "ready", every = "100ms" }\n` +
      `live = { http = "http://127.0.0.1:${port}/healthz", json = "ok" }\n`,
  );
  if (gateway === "openclaw") {
    // The platform's proxy is at an address of its own, which the configuration gets anyway; here it is this machine.
    mkdirSync(join(dir, "home/.openclaw"), { recursive: true });
    writeFileSync(join(dir, "home/.openclaw/openclaw.json"), JSON.stringify({ gateway: { trustedProxies: ["127.0.0.1"] } }));
  }
  const log = join(dir, "log");
  const ends = begun(t);
  const run = async (given) => {
    const env = {
      ...given,
      PATH: path,
      HOME: join(dir, "home"),
      MOLTINIT_CONFIG: config,
      MOLTINIT_STORE: store,
      MOLTINIT_DATA_DIR: join(dir, "data"),
      MOLTINIT_RUN_DIR: join(dir, "run"),
      MOLTINIT_HTTP_ADDR: `127.0.0.1:${ports[9180]}`,
      MOLTINIT_CDP_ADDR: `127.0.0.1:${cdp}`,
    };
    const bin = process.env.MOLTINIT_TEST_BIN;
    if (!bin) throw new Error("MOLTINIT_TEST_BIN must name the moltinit to test");
    // Gone with this process, whatever ends it.
    const args = ["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", bin, "run"];
    const unshare = spawn("setpriv", args, { env, stdio: ["ignore", openSync(log, "a"), openSync(log, "a")] });
    let init;
    let hasExited = false;
    const exited = new Promise((done) => {
      unshare.on("exit", (code, signal) => done(signal ? 137 : code));
      unshare.on("error", () => done(127));
    }).finally(() => (hasExited = true));
    ends.push(async () => {
      // Its PID 1, where there is one: `unshare` ends once the kernel has ended all that was in the namespace.
      if (!hasExited) process.kill(init ?? unshare.pid, "SIGKILL");
      await exited;
    });
    const children = `/proc/${unshare.pid}/task/${unshare.pid}/children`;
    init = await eventually("PID 1 of the namespace", () => Number(readFileSync(children, "utf8").trim()) || undefined);
    return { init, exited, signal: (number) => process.kill(init, number) };
  };
  return { run, ports, log: () => readFileSync(log, "utf8") };
}
