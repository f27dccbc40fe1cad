/** Seconds by which a callback may be early or late: an older one is somebody's replay. */
const TOLERANCE = 300;

/** Why a callback is refused. */
export class Unproven extends Error {}

/**
 * Checks a Standard Webhooks v1 signature over exactly these bytes. `now` is in seconds.
 *
 * https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 *
 * @throws Unproven when it is not from whoever has the secret, or not fresh.
 */
export async function prove(body: string, headers: Headers, secret: string, now = Date.now() / 1000): Promise<{ id: string }> {
  const id = headers.get("webhook-id");
  const timestamp = headers.get("webhook-timestamp");
  const signatures = headers.get("webhook-signature");
  if (!id || !timestamp || !signatures) throw new Unproven("webhook-id, webhook-timestamp and webhook-signature are needed.");
  // NaN is refused too.
  if (!/^\d+$/.test(timestamp) || !(Math.abs(now - Number(timestamp)) <= TOLERANCE)) {
    throw new Unproven("Its time is not now.");
  }
  const key = await crypto.subtle.importKey("raw", keyOf(secret), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  const signed = new TextEncoder().encode(`${id}.${timestamp}.${body}`);
  for (const signature of signatures.split(" ")) {
    const [version, text] = signature.split(",", 2);
    const given = version === "v1" && text ? base64(text) : undefined;
    if (given && (await crypto.subtle.verify("HMAC", key, given, signed))) return { id };
  }
  throw new Unproven("Its signature is wrong.");
}

function keyOf(secret: string): Uint8Array {
  const key = base64(secret.trim().replace(/^whsec_/, ""));
  if (!key || key.length < 24) throw new Error("MOLTINIT_CALLBACK_SECRET must be `whsec_` and the base64 of 24 to 64 random bytes");
  return key;
}

function base64(text: string): Uint8Array | undefined {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}
