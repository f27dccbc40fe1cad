// gateway-rpc.mjs PORT TOKEN METHOD [PARAMS-JSON]: one call to the gateway over its WebSocket; prints the payload.
const [port, token, method, params = "{}"] = process.argv.slice(2);
const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
const fail = (why) => { console.error(why); process.exit(1); };
const send = (id, method, params) => socket.send(JSON.stringify({ type: "req", id, method, params }));
setTimeout(() => fail("no answer within 20 s"), 20_000);
socket.onerror = () => fail("the connection failed");
socket.onclose = (event) => fail(`closed: ${event.code} ${event.reason}`);
socket.onmessage = ({ data }) => {
  const frame = JSON.parse(data);
  if (frame.event === "connect.challenge") {
    send("connect", "connect", {
      minProtocol: 3, maxProtocol: 4, role: "operator", scopes: ["operator.admin"], auth: { token },
      client: { id: "gateway-client", version: "0.1", platform: "linux", mode: "backend" },
    });
  } else if (frame.type === "res" && !frame.ok) {
    fail(`${frame.id}: ${JSON.stringify(frame.error)}`);
  } else if (frame.id === "connect") {
    send("call", method, JSON.parse(params));
  } else if (frame.id === "call") {
    console.log(JSON.stringify(frame.payload));
    process.exit(0);
  }
};
