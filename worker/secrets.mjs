// Prints fresh random secrets as `wrangler secret bulk` reads them. Nobody needs to know them but the Worker and the
// container; the gateway's token, which a client is asked for once, is shown on the side.
import { randomBytes } from "node:crypto";

const secrets = {
  OPENCLAW_GATEWAY_TOKEN: randomBytes(32).toString("hex"),
  MOLTINIT_ADMIN_TOKEN: randomBytes(32).toString("hex"),
  MOLTINIT_CALLBACK_SECRET: `whsec_${randomBytes(32).toString("base64")}`,
  CDP_SECRET: randomBytes(32).toString("hex"),
};
console.error(`The gateway's token is ${secrets.OPENCLAW_GATEWAY_TOKEN}`);
console.log(JSON.stringify(secrets));
