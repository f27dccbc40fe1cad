// gateway.mjs PORT [DELAY]: a stand-in for the gateway. Answers its probes, ready DELAY ms after its start, and shows
// what reaches it: HTTP requests as JSON, WebSocket messages as they are.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const [port, delay = 0] = process.argv.slice(2).map(Number);
const readyAt = Date.now() + delay;

const server = createServer(async (request, response) => {
  const json = (status, body) => response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  if (request.url === "/healthz") return json(200, { ok: true });
  if (request.url === "/readyz") {
    const ready = Date.now() >= readyAt;
    return json(ready ? 200 : 503, { ready });
  }
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  json(200, { method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(chunks).toString() });
});
new WebSocketServer({ server }).on("connection", (socket, request) => {
  socket.send(JSON.stringify({ url: request.url }));
  socket.on("message", (data, binary) => {
    if (!binary && String(data) === "close me") return socket.close(4007, "as you wish");
    socket.send(data, { binary });
  });
});
server.listen(port, "127.0.0.1", () => console.log(`the stand-in gateway listens on ${port}`));
process.on("SIGTERM", () => process.exit(0));
