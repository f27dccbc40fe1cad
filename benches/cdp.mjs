// cdp.mjs relay PORT TARGET | lead PORT TARGET | echo PORT | latency URL COUNT | throughput URL COUNT BYTES | sessions URL COUNT SECONDS
// What the browser benchmark needs of WebSockets: a relay to compare with, a neighbour, and clients. Prints JSON.
// The packages are found by MOLTINIT_TEST_NODE_MODULES.
import { createRequire } from "node:module";
import net from "node:net";
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
  // Whatever path a connection asks for, it gets the target's; then its bytes as they are.
  lead(port, target) {
    const { hostname, port: of, pathname } = new URL(target);
    net.createServer({ noDelay: true }, (near) => {
      near.once("data", (head) => {
        const far = net.connect({ host: hostname, port: +of, noDelay: true });
        far.write(head.toString("latin1").replace(/^GET \S+/, `GET ${pathname}`), "latin1");
        near.pipe(far).pipe(near);
        far.on("error", () => near.destroy());
      });
      near.on("error", () => {});
    }).listen(+port, "127.0.0.1");
  },
  // A browser as far as it has sessions. Answers with what it is given; to `Flood`, events of a mebibyte without end, as fast
  // as they are taken.
  echo(port) {
    const mebibyte = "x".repeat(1 << 20);
    let opened = 0;
    new WebSocket.Server({ host: "127.0.0.1", port: +port, ...plain }).on("connection", (socket) => {
      socket.on("message", (data) => {
        const text = data.toString("latin1");
        if (text.includes('"method":"Echo"')) return socket.send(text.replace('"method":"Echo","params"', '"result"'));
        const { id, method, sessionId } = JSON.parse(text);
        const event = JSON.stringify({ method, params: { mebibyte }, sessionId });
        const more = () => socket.readyState === 1 && socket.send(event, more);
        if (method === "Flood") return more();
        const result = method.startsWith("Target.attach") ? { sessionId: `S${++opened}` } : {};
        socket.send(JSON.stringify({ id, result, sessionId }));
      });
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
    const socket = await open(url), x = "x".repeat(+bytes);
    const message = (id) => `{"id":${id},"method":"Echo","params":{"x":"${x}"}}`;
    const began = milliseconds();
    await new Promise((done) => {
      let sent = 0, got = 0;
      const send = () => sent < +count && socket.send(message(++sent));
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
      socket.send('{"id":1,"method":"Flood"}');
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
