// Who gets in: only with a token that Cloudflare Access signed, for this application, now.
import assert from "node:assert/strict";
import { createHmac, generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import { access, AUDIENCE, Engine, eventually, start, TEAM } from "./harness.mjs";

const nobody = () => new Engine(() => assert.fail("nothing may start a container"));
/** A route behind the login that asks nothing of the container. */
const ROUTE = "/_admin/events";

test("tokens", async (t) => {
  const worker = await start(t, { engine: nobody() });
  const { login } = worker;
  const status = async (token, headers = {}) => (await worker.ask(ROUTE, { headers: { ...(token && { "Cf-Access-Jwt-Assertion": token }), ...headers } })).status;
  const now = login.now();
  const [head, body, signature] = login.token().split(".");
  const stranger = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
  const publicKey = JSON.stringify(login.jwks.keys[0]);
  const hmac = `${login.encode({ alg: "HS256", kid: "key-1" })}.${body}`;

  for (const [name, token] of Object.entries({
    "as it should be": login.token(),
    "one audience, not a list": login.token({ aud: AUDIENCE }),
    "a clock that is half a minute ahead": login.token({ nbf: now + 30, iat: now + 30 }),
    "a clock that is a little behind": login.token({ exp: now - 5 }),
  })) {
    await t.test(`lets in: ${name}`, async () => assert.equal(await status(token), 200));
  }
  await t.test("lets in: by the cookie", async () => {
    assert.equal(await status(undefined, { Cookie: `a=b; CF_Authorization=${login.token()}; c=d` }), 200);
  });
  for (const [name, token] of Object.entries({
    "no token": undefined,
    "no token at all": "nonsense",
    "alg none": `${login.encode({ alg: "none", kid: "key-1" })}.${body}.`,
    "alg none with a signature": `${login.encode({ alg: "none", kid: "key-1" })}.${body}.${signature}`,
    "alg HS256 with the public key as its secret": `${hmac}.${createHmac("sha256", publicKey).update(hmac).digest("base64url")}`,
    "forged: somebody else's key": login.token({}, {}, stranger),
    "forged: other claims under the same signature": `${head}.${login.encode({ ...login.claims(), sub: "admin" })}.${signature}`,
    "forged: no signature": `${head}.${body}.`,
    "an unknown key": login.token({}, { kid: "key-2" }),
    "no key named": login.token({}, { kid: undefined }),
    "expired": login.token({ exp: now - 120 }),
    "never expires": login.token({ exp: undefined }),
    "not yet valid": login.token({ nbf: now + 3600 }),
    "issued in the future": login.token({ iat: now + 3600 }),
    "another application": login.token({ aud: ["b".repeat(64)] }),
    "no audience": login.token({ aud: undefined }),
    "another team": login.token({ iss: "https://other.cloudflareaccess.com" }),
    "a team that begins alike": login.token({ iss: `https://${TEAM}.example` }),
    "names nobody": login.token({ sub: undefined }),
  })) {
    await t.test(`refuses: ${name}`, async () => assert.equal(await status(token), 401));
  }
  await t.test("whoever makes up keys does not make the Worker ask for them again and again", () => {
    assert.ok(login.asked <= 1 + (login.now() - now) / 30, `asked ${login.asked} times`);
  });
});

test("which routes need a login", async (t) => {
  const worker = await start(t, { engine: nobody() });
  for (const route of ["/", "/chat", "/api/status", "/_admin", "/_admin/", "/_admin/api/status", "/_admin/events", "/cdp/", "/cdpx", "/_moltinit/", "/_moltinit/events/"]) {
    const { status } = await worker.ask(route);
    assert.equal(status, 401, route);
  }
  assert.equal((await worker.ask("/_admin/restart", { method: "POST" })).status, 401);
});

test("another site cannot act with this site's cookie", async (t) => {
  const worker = await start(t, { engine: nobody() });
  const from = (Origin) => worker.asLogin("/_admin/restart", { method: "POST", headers: { Origin } });
  assert.equal((await from("https://evil.example")).status, 403);
  assert.equal((await from("null")).status, 403);
});

test("keys that cannot be had lock out, and keys that were had go on", async (t) => {
  const login = access();
  const { jwks } = login;
  login.jwks = undefined;
  const worker = await start(t, { engine: nobody(), login });
  assert.equal((await worker.asLogin(ROUTE)).status, 503);
  assert.equal((await worker.asLogin(ROUTE)).status, 503);
  assert.equal(login.asked, 1, "it is left in peace for a while");
  login.jwks = jwks;
  await eventually("the keys", async () => (await worker.asLogin(ROUTE)).status === 200 || undefined);
  login.jwks = undefined;
  assert.equal((await worker.asLogin(ROUTE)).status, 200);
});

test("what is not set up is named", async (t) => {
  const worker = await start(t, { engine: nobody(), env: { CF_ACCESS_AUD: "" } });
  const answer = await worker.asLogin(ROUTE);
  assert.equal(answer.status, 503);
  assert.match((await answer.json()).detail, /CF_ACCESS_AUD/);
  const other = await start(t, { engine: nobody(), env: { WORKER_URL: "", OPENCLAW_GATEWAY_TOKEN: "" } });
  assert.match((await (await other.asLogin(ROUTE)).json()).detail, /WORKER_URL and OPENCLAW_GATEWAY_TOKEN/);
});

test("DEV_MODE opens localhost and nothing else", async (t) => {
  const worker = await start(t, { engine: nobody(), env: { DEV_MODE: "true" } });
  assert.equal((await worker.ask(ROUTE)).status, 200);
  const elsewhere = await worker.miniflare.dispatchFetch(`https://agent.example.workers.dev${ROUTE}`);
  assert.equal(elsewhere.status, 401);
});
