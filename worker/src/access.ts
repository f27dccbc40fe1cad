import type { Env } from "./env";
import { ALGORITHM, Keyring } from "./keys";
import { problem } from "./problem";

/** Why a token is refused. */
export class Refused extends Error {}

/** Clocks differ: so many seconds are forgiven either way. */
const SKEW = 60;
const rings = new Map<string, Keyring>();

/** Every request that is not for a public route: `undefined` lets it pass. */
export async function guard(request: Request, env: Env): Promise<Response | undefined> {
  const url = new URL(request.url);
  if (fromElsewhere(request, url)) return problem(403, "This request comes from another site");
  // On Cloudflare no request has this hostname, so the flag opens nothing there.
  if (env.DEV_MODE === "true" && ["localhost", "127.0.0.1"].includes(url.hostname)) return undefined;
  if (!env.CF_ACCESS_TEAM_DOMAIN || !env.CF_ACCESS_AUD) {
    return problem(503, "Not set up", "Set CF_ACCESS_TEAM_DOMAIN and CF_ACCESS_AUD, with `npx wrangler secret put NAME`.");
  }
  const token = tokenOf(request);
  if (!token) return problem(401, "No login", "Put Cloudflare Access in front of this Worker.");
  try {
    await verify(token, env.CF_ACCESS_TEAM_DOMAIN, env.CF_ACCESS_AUD);
    return undefined;
  } catch (error) {
    if (error instanceof Refused) return problem(401, "Login refused", error.message);
    console.error("Cloudflare Access:", error);
    return problem(503, "Login cannot be checked now", "Cloudflare Access does not say its keys.", { "Retry-After": "5" });
  }
}

/** A page of another site acts with this site's cookie: browsers say so for everything but plain navigation. */
function fromElsewhere(request: Request, url: URL): boolean {
  const origin = request.headers.get("Origin");
  const reads = ["GET", "HEAD"].includes(request.method) && !request.headers.has("Upgrade");
  return origin !== null && !reads && origin !== url.origin;
}

function tokenOf(request: Request): string | undefined {
  const header = request.headers.get("Cf-Access-Jwt-Assertion");
  const cookie = /(?:^|;\s*)CF_Authorization=([^;]+)/.exec(request.headers.get("Cookie") ?? "");
  return header ?? cookie?.[1];
}

/** For the container: an agent that was talked into it could use its owner's login for `/_admin`. */
export function withoutLogin(given: Headers): Headers {
  const headers = new Headers(given);
  for (const name of [...headers.keys()]) if (/^cf-access-/i.test(name)) headers.delete(name);
  const cookies = (headers.get("Cookie") ?? "").split(/;\s*/).filter((cookie) => cookie && !/^CF_(Authorization|AppSession|Binding|Session)/i.test(cookie));
  if (cookies.length > 0) headers.set("Cookie", cookies.join("; "));
  else headers.delete("Cookie");
  return headers;
}

/**
 * Checks an Access token: signature (RS256 and nothing else), issuer, audience, and time. `now` is in seconds.
 *
 * https://developers.cloudflare.com/cloudflare-one/identity/authorization-cookie/validating-json/
 *
 * @throws Refused when the token is not good; anything else when that cannot be told.
 */
export async function verify(token: string, team: string, audience: string, now = Date.now() / 1000): Promise<void> {
  const [head, body, signature, rest] = token.split(".");
  if (!head || !body || !signature || rest !== undefined) throw new Refused("It is not a token.");
  const header = decode(head);
  if (header.alg !== "RS256") throw new Refused("It is not signed with RS256.");
  const issuer = issuerOf(team);
  const key = typeof header.kid === "string" ? await keysOf(issuer).key(header.kid) : undefined;
  if (!key) throw new Refused("It is signed with a key that Cloudflare Access does not have.");
  const signed = new TextEncoder().encode(`${head}.${body}`);
  if (!(await crypto.subtle.verify(ALGORITHM, key, bytes(signature), signed))) throw new Refused("Its signature is wrong.");

  const claims = decode(body);
  if (claims.iss !== issuer) throw new Refused("It is from another team.");
  if (![claims.aud].flat().includes(audience)) throw new Refused("It is for another application.");
  if (typeof claims.exp !== "number" || claims.exp + SKEW <= now) throw new Refused("It has expired.");
  for (const start of [claims.nbf, claims.iat]) {
    if (start !== undefined && !(typeof start === "number" && start - SKEW <= now)) throw new Refused("It is not valid yet.");
  }
  if (typeof claims.sub !== "string") throw new Refused("It names nobody.");
}

/** The team may be given as `myteam`, as its domain, or as its URL. */
function issuerOf(team: string): string {
  const domain = team.trim().replace(/^https:\/\//, "").replace(/\/+$/, "");
  return `https://${domain.includes(".") ? domain : `${domain}.cloudflareaccess.com`}`;
}

function keysOf(issuer: string): Keyring {
  const ring = rings.get(issuer) ?? new Keyring(`${issuer}/cdn-cgi/access/certs`);
  rings.set(issuer, ring);
  return ring;
}

function decode(part: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes(part)));
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw new Refused("It is not a token.");
}

function bytes(base64url: string): Uint8Array {
  try {
    return Uint8Array.from(atob(base64url.replace(/-/g, "+").replace(/_/g, "/")), (char) => char.charCodeAt(0));
  } catch {
    throw new Refused("It is not a token.");
  }
}
