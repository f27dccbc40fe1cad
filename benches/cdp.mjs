// cdp.mjs relay PORT TARGET | echo PORT | latency URL COUNT | throughput URL COUNT BYTES | sessions URL COUNT SECONDS
// What the browser benchmark needs of WebSockets: a relay to compare with, a neighbour, and clients. Prints JSON.
// The packages are found by MOLTINIT_TEST_NODE_MODULES.
import { createRequire } from "node:module";
const WebSocket = createRequire(process.env.MOLTINIT_TEST_NODE_MODULES + "/")("ws");
const plain = { perMessageDeflate: false, maxPayload: 64 << 20 };
const open = (url) => new Promise((done, failed) => {
  const socket = new WebSocket(url, plain);
  socket.once("open", () => done(socket)).once("error", failed);
});
const milliseconds = () => Number(process.hrtime.bigint()) / 1e6;

const modes = {
  relay(port, target) {
    new WebSocket.Server({ host: "127.0.0.1", port: +port, ...plain }).on("connection", (near) => {
      const far = new WebSocket(target, plain), held = [];
      near.on("message", (data, binary) => (far.readyState === 1 ? far.send(data, { binary }) : held.push([data, binary])));
      far.on("open", () => held.splice(0).forEach(([data, binary]) => far.send(data, { binary })));
      far.on("message", (data, binary) => near.send(data, { binary }));
      near.on("close", () => far.close());
      far.on("close", () => near.close()).on("error", () => near.close());
    });
  },
  // Sends back what it gets; after the word `flood`, mebibytes without end, as fast as they are taken.
  echo(port) {
    const mebibyte = "x".repeat(1 << 20);
    new WebSocket.Server({ host: "127.0.0.1", port: +port, ...plain }).on("connection", (socket) => {
      const more = () => socket.readyState === 1 && socket.send(mebibyte, more);
      socket.on("message", (data, binary) => (data.toString("latin1", 0, 5) === "flood" ? more() : socket.send(data, { binary })));
      socket.on("error", () => {});
    });
  },
  async latency(url, count) {
    const socket = await open(url);
    const ask = (id, method, params, sessionId) => new Promise((done) => {
      socket.on("message", function hear(data) {
        const message = JSON.parse(data);
        if (message.id === id) socket.off("message", hear), done(message.result);
      });
      socket.send(JSON.stringify({ id, method, params, sessionId }));
    });
    const { targetId } = await ask(1, "Target.createTarget", { url: "about:blank" });
    const { sessionId } = await ask(2, "Target.attachToTarget", { targetId, flatten: true });
    const times = [];
    for (let id = 3; id < +count + 3; id++) {
      const began = milliseconds();
      await ask(id, "Runtime.evaluate", { expression: "1" }, sessionId);
      times.push(milliseconds() - began);
    }
    await ask(+count + 3, "Target.closeTarget", { targetId });
    return times;
  },
  async throughput(url, count, bytes) {
    const socket = await open(url), message = "x".repeat(+bytes);
    const began = milliseconds();
    await new Promise((done) => {
      let sent = 0, got = 0;
      const send = () => sent < +count && (sent++, socket.send(message));
      socket.on("message", () => (++got === +count ? done() : send()));
      for (let window = 0; window < 8; window++) send();
    });
    return milliseconds() - began;
  },
  async sessions(url, count, seconds) {
    const sockets = await Promise.all(Array.from({ length: +count }, () => open(url)));
    let got = 0;
    sockets.forEach((socket, index) => {
      socket.on("message", (data) => (got += data.length));
      socket.send("flood");
      if (index === 0) socket.pause();
    });
    await new Promise((done) => setTimeout(done, seconds * 1000));
    return got;
  },
};
const [mode, ...words] = process.argv.slice(2);
const result = await modes[mode](...words);
if (result !== undefined) {
  console.log(JSON.stringify(result));
  process.exit(0);
}
