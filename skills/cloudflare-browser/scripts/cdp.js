// A small client of the Chrome DevTools Protocol, on nothing but Node, and what the scripts share.
import { spawnSync } from "node:child_process";
import process from "node:process";

// Node 20 has its WebSocket behind a flag.
if (!globalThis.WebSocket) {
  const flag = "--experimental-websocket";
  if (process.execArgv.includes(flag)) throw new Error("this Node has no WebSocket; use Node 22 or newer");
  const again = spawnSync(process.execPath, [flag, "--no-warnings", ...process.argv.slice(1)], { stdio: "inherit" });
  process.exit(again.status ?? 1);
}

const ENDPOINT = `http://${process.env.MOLTINIT_CDP_ADDR || "127.0.0.1:9222"}`;
const TOKEN = process.env.MOLTINIT_CDP_TOKEN;

/** A failure that has a plain sentence for an explanation. */
export class Failure extends Error {}

/** The arguments and options of `usage`; `defaults` names every option and its default, false for a flag. */
export function args(usage, count, defaults) {
  const values = [], options = { wait: 500, timeout: 60, ...defaults };
  const given = process.argv.slice(2);
  const wrong = (why) => {
    console.error(`${why}\nusage: node ${usage} [--wait MS] [--timeout S]`);
    process.exit(2);
  };
  while (given.length > 0) {
    const next = given.shift();
    const name = next.startsWith("--") && next.slice(2);
    if (!name) values.push(next);
    else if (!Object.hasOwn(options, name)) wrong(`unknown option ${next}`);
    else if (options[name] === false) options[name] = true;
    else if (given.length === 0) wrong(`${next} needs a value`);
    else if (typeof options[name] === "string") options[name] = given.shift();
    else if (!(Number(given[0]) >= 0)) wrong(`${next} needs a number, not ${given[0]}`);
    else options[name] = Number(given.shift());
  }
  if (values.length !== count) wrong(`${count} arguments are needed, ${values.length} were given`);
  return [...values, options];
}

/** Commands to the browser, and its events. */
class Connection {
  #socket;
  #calls = new Map();
  #waiting = new Set();
  #next = 1;
  #closed;

  static async open(timeout) {
    let version;
    try {
      const headers = TOKEN ? { Authorization: `Bearer ${TOKEN}` } : {};
      const answer = await fetch(`${ENDPOINT}/json/version`, { headers, signal: AbortSignal.timeout(10_000) });
      if (!answer.ok) throw new Failure(`${ENDPOINT} answers ${answer.status}: ${await answer.text()}`);
      version = await answer.json();
    } catch (error) {
      if (error instanceof Failure) throw error;
      throw new Failure(`no browser answers at ${ENDPOINT}: ${error.cause?.message ?? error.message}`);
    }
    const connection = new Connection();
    await connection.#open(version.webSocketDebuggerUrl, timeout);
    return connection;
  }

  #open(url, timeout) {
    this.timeout = timeout;
    this.#socket = new WebSocket(url);
    this.#socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    return new Promise((opened, failed) => {
      this.#socket.onopen = opened;
      this.#socket.onclose = ({ code, reason }) => {
        const error = new Failure(`the connection to the browser was closed (${code}${reason && `: ${reason}`})`);
        this.#closed = error;
        failed(error);
        for (const call of this.#calls.values()) call.failed(error);
        for (const wait of this.#waiting) wait.failed(error);
      };
    });
  }

  #take(message) {
    if (message.id === undefined) {
      for (const wait of this.#waiting) if (wait.wants(message)) wait.done(message.params);
      return;
    }
    const call = this.#calls.get(message.id);
    this.#calls.delete(message.id);
    if (message.error) call?.failed(new Failure(`${call.method}: ${message.error.message}`));
    else call?.done(message.result);
  }

  #within(what, begin) {
    let timer;
    const result = new Promise((done, failed) => {
      timer = setTimeout(() => failed(new Failure(`${what} took longer than ${this.timeout} s`)), this.timeout * 1000);
      // The socket keeps the process alive as long as it is needed.
      timer.unref();
      begin(done, failed);
    });
    return result.finally(() => clearTimeout(timer));
  }

  send(method, params = {}, sessionId) {
    return this.#within(method, (done, failed) => {
      // Nobody would answer, and with nothing to wait for the process would just end.
      if (this.#socket.readyState !== WebSocket.OPEN) return failed(this.#closed ?? new Failure("the connection to the browser is closing"));
      const id = this.#next++;
      this.#calls.set(id, { method, done, failed });
      this.#socket.send(JSON.stringify({ id, method, params, sessionId }));
    });
  }

  /** The next such event's parameters. */
  event(method, sessionId) {
    let wait;
    const wants = (message) => message.method === method && message.sessionId === sessionId;
    const began = this.#within(method, (done, failed) => {
      if (this.#closed) return failed(this.#closed);
      this.#waiting.add((wait = { wants, done, failed }));
    });
    const result = began.finally(() => this.#waiting.delete(wait));
    // Whoever asked may have failed before it looks here.
    result.catch(() => {});
    return result;
  }

  close() {
    this.#socket.onclose = null;
    this.#socket.close();
  }
}

/** A tab. */
class Page {
  constructor(connection, session, { wait }) {
    Object.assign(this, { connection, session, wait });
  }

  send(method, params) {
    return this.connection.send(method, params, this.session);
  }

  size(width, height) {
    return this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  }

  /** Goes to `url` and waits until it has loaded. */
  async goto(url) {
    const address = /^[a-z][a-z0-9+.-]*:/i.test(url) ? url : `https://${url}`;
    const loaded = this.connection.event("Page.loadEventFired", this.session);
    const { errorText } = await this.send("Page.navigate", { url: address });
    if (errorText) throw new Failure(`${address}: ${errorText}`);
    await loaded;
    await pause(this.wait);
  }

  /** What `expression` comes to in the page. */
  async evaluate(expression) {
    const params = { expression, returnByValue: true, awaitPromise: true };
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", params);
    if (exceptionDetails) throw new Failure(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** A picture or a PDF as bytes: `how` are the command's parameters. */
  async capture(method, how) {
    return Buffer.from((await this.send(method, how)).data, "base64");
  }
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Runs `work` with a tab of its own, which is closed afterwards, and ends the process. */
export async function withPage(options, work) {
  let connection, targetId;
  try {
    connection = await Connection.open(options.timeout);
    ({ targetId } = await connection.send("Target.createTarget", { url: "about:blank" }));
    const { sessionId } = await connection.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(connection, sessionId, options);
    await page.send("Page.enable");
    await work(page);
  } catch (error) {
    console.error(error instanceof Failure ? error.message : error);
    process.exitCode = 1;
  }
  if (targetId) await connection.send("Target.closeTarget", { targetId }).catch(() => {});
  connection?.close();
}
