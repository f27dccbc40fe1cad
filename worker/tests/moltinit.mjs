// A stand-in for a container: moltinit's probes as the test sets them, the Sandbox SDK's server as far as mounting a
// bucket asks it, and the stand-in gateway. For faults and speed; `container` in harness.mjs has the real moltinit.
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { atEnd, begun, eventually, freePort } from "./harness.mjs";

const listen = async (t, handler) => {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { status = 200, body } = await handler(request, Buffer.concat(chunks).toString());
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  atEnd(t, () => (server.closeAllConnections(), new Promise((done) => server.close(done))));
  return server.address().port;
};

export async function standIn(t) {
  const self = {
    /** What `/startupz` waits for; `undefined`: the boot is over. */
    pending: "store",
    failing: ["gateway"],
    /** How much of the state is back. */
    progress: undefined,
    /** Of the gateway, in the status document. */
    gateway: { state: "starting", why: null },
    /** Answers nothing but this. */
    hung: false,
    /** The kernel lists the mount. */
    mounted: false,
    /** The mount is in use: it is taken away lazily or not at all. */
    busy: false,
    /** So often the probes were asked. */
    looks: 0,
    /** Commands that were run in the container. */
    commands: [],
    /** Requests for moltinit that are no probes. */
    asked: [],
  };
  const control = await listen(t, ({ method, url, headers }) => {
    if (self.hung) return { status: 500, body: {} };
    if (url === "/healthz") return { body: { ok: true } };
    if (url === "/status") return { body: { services: { gateway: self.gateway } } };
    if (url === "/startupz") {
      self.looks += 1;
      const { pending, progress } = self;
      return pending ? { status: 503, body: { ok: false, status: "starting", pendingReason: pending, progress } } : { body: { ok: true, status: "started" } };
    }
    if (url === "/readyz") return self.failing.length ? { status: 503, body: { ready: false, failing: self.failing } } : { body: { ready: true } };
    self.asked.push({ method, url, headers });
    return { body: { method, url } };
  });
  const sdk = await listen(t, ({ url }, text) => {
    const body = text ? JSON.parse(text) : {};
    const timestamp = new Date().toISOString();
    if (url !== "/api/execute") return { body: { success: true, timestamp, id: body.id ?? "session", message: "ok", path: body.path, version: "unknown" } };
    self.commands.push(body.command);
    let [exitCode, stdout] = [0, ""];
    if (body.command.startsWith("s3fs ")) self.mounted = true;
    else if (body.command.startsWith("fusermount -uz ")) self.mounted = false;
    else if (body.command.startsWith("fusermount ")) exitCode = self.busy ? 1 : 0;
    else if (body.command.startsWith("mountpoint ") && body.command.includes("FUSE_MOUNTED")) stdout = self.mounted ? "FUSE_MOUNTED\n" : "NOT_FUSE_MOUNTED\n";
    else if (body.command.startsWith("mountpoint ")) exitCode = self.mounted ? 0 : 1;
    return { body: { success: exitCode === 0, exitCode, stdout, stderr: "", command: body.command, timestamp } };
  });
  const gateway = await freePort();
  self.ports = { 9180: control, 3000: sdk, 18789: gateway };

  const ends = begun(t);
  let end;
  self.run = async () => {
    // Before anything of it answers: whoever mounts, mounts this one.
    self.mounted = self.hung = false;
    const process = spawn(globalThis.process.execPath, [fileURLToPath(new URL("gateway.mjs", import.meta.url)), String(gateway)], { stdio: "ignore" });
    const gone = new Promise((done) => process.on("exit", done));
    ends.push(() => (process.kill("SIGKILL"), gone));
    await eventually("the stand-in gateway", async () => (await fetch(`http://127.0.0.1:${gateway}/healthz`)).ok || undefined);
    const exited = new Promise((done) => (end = done));
    ends.push(() => end(0));
    return { exited, signal: (number) => (process.kill("SIGKILL"), gone.then(() => end(number === 15 ? 0 : 128 + number))) };
  };
  return self;
}
