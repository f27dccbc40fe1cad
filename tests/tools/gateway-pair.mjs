// gateway-pair.mjs PORT TOKEN: asks to be paired as a new device from afar; prints the id of the request.
import { createHash, generateKeyPairSync, sign } from "node:crypto";

const [port, token] = process.argv.slice(2);
const { publicKey, privateKey } = generateKeyPairSync("ed25519");
const raw = publicKey.export({ type: "spki", format: "der" }).subarray(-32);
const id = createHash("sha256").update(raw).digest("hex");
const client = { id: "cli", version: "0.1", platform: "linux", mode: "cli" };
const scopes = ["operator.read"];
// What comes through a trusted proxy is not taken for the owner's own machine.
const socket = new WebSocket(`ws://127.0.0.1:${port}/`, { headers: { "X-Forwarded-For": "203.0.113.9" } });
const fail = (why) => { console.error(why); process.exit(1); };
setTimeout(() => fail("no answer within 20 s"), 20_000);
socket.onerror = () => fail("the connection failed");
socket.onclose = (event) => fail(`closed: ${event.code} ${event.reason}`);
socket.onmessage = ({ data }) => {
  const frame = JSON.parse(data);
  if (frame.event === "connect.challenge") {
    const { nonce, ts } = frame.payload;
    const signed = ["v2", id, client.id, client.mode, "operator", scopes.join(","), ts, token, nonce].join("|");
    const device = {
      id, nonce, signedAt: ts, publicKey: raw.toString("base64url"),
      signature: sign(null, Buffer.from(signed), privateKey).toString("base64url"),
    };
    const params = { minProtocol: 3, maxProtocol: 4, client, role: "operator", scopes, device, auth: { token } };
    socket.send(JSON.stringify({ type: "req", id: "connect", method: "connect", params }));
  } else if (frame.id === "connect") {
    const request = frame.error?.details?.requestId;
    if (!request) fail(`no request for pairing: ${data}`);
    console.log(request);
    process.exit(0);
  }
};
