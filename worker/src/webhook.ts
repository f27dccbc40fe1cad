/** Seconds by which a callback may be early or late: an older one is somebody's replay. */
const TOLERANCE = 300;

/** Why a callback is refused. */
export class Unproven extends Error {}

/** What the headers of a callback claim; nothing of it is proven yet. */
export interface Claim {
  id: string;
  timestamp: string;
  signatures: string[];
}

/**
 * What must be so of a Standard Webhooks v1 callback before its body is worth reading. `now` is in seconds.
 *
 * https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 *
 * @throws Unproven when headers are missing, or it is not fresh.
 */
export function claim(headers: Headers, now = Date.now() / 1000): Claim {
  const [id, timestamp, signatures] = ["id", "timestamp", "signature"].map((name) => headers.get(`webhook-${name}`));
  if (!id || !timestamp || !signatures) throw new Unproven("webhook-id, webhook-timestamp and webhook-signature are needed.");
  // NaN is refused too.
  if (!/^\d+$/.test(timestamp) || !(Math.abs(now - Number(timestamp)) <= TOLERANCE)) {
    throw new Unproven("Its time is not now.");
  }
  return { id, timestamp, signatures: signatures.split(" ") };
}

/**
 * Checks the claim's signature over exactly these bytes.
 *
 * @throws Unproven when it is not from whoever has the secret.
 */
export async function prove({ id, timestamp, signatures }: Claim, body: Uint8Array, secret: string): Promise<void> {
  const key = await crypto.subtle.importKey("raw", keyOf(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + body.length);
  signed.set(head);
  signed.set(body, head.length);
  const right = await crypto.subtle.sign("HMAC", key, signed);
  const isRight = (signature: string) => {
    const [version, text] = signature.split(",", 2);
    const given = version === "v1" && text ? base64(text) : undefined;
    return given?.byteLength === right.byteLength && crypto.subtle.timingSafeEqual(given, right);
  };
  if (!signatures.some(isRight)) throw new Unproven("Its signature is wrong.");
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
