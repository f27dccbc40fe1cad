import type { Journal } from "./journal";
import type { Sandbox } from "./sandbox";

/** What `wrangler.jsonc` binds, and the secrets. `README.md` explains each. */
export interface Env {
  Sandbox: DurableObjectNamespace<Sandbox>;
  Journal: DurableObjectNamespace<Journal>;
  /** The bucket that holds the snapshots. */
  STORE: R2Bucket;
  /** Browser Rendering. */
  BROWSER?: Fetcher;

  /** Where this Worker is, for the container to call back: `https://…`. */
  WORKER_URL?: string;
  CF_ACCESS_TEAM_DOMAIN?: string;
  CF_ACCESS_AUD?: string;
  OPENCLAW_GATEWAY_TOKEN?: string;
  /** moltworker's name for the same token. */
  MOLTBOT_GATEWAY_TOKEN?: string;
  /** The bearer of moltinit's own routes; the gateway token if it is not set. */
  MOLTINIT_ADMIN_TOKEN?: string;
  MOLTINIT_CALLBACK_SECRET?: string;
  CDP_SECRET?: string;
  /** `s3fs`: moltinit mounts the bucket by itself, and this Worker does not. */
  MOLTINIT_MOUNT?: string;
  /** Let the container sleep after so long without a request, such as `30m`; it never does if this is not set. */
  SLEEP_AFTER?: string;
  /** `true`: no login on localhost. */
  DEV_MODE?: string;
}

/** Where the bucket is in the container: nowhere else, for anywhere else moltinit would take a plain directory for the store. */
export const STORE_PATH = "/data/moltbot";

/** Of no use to the container, and so none of its business; and the store's place, which is not to be chosen. */
const WORKER_ONLY = new Set(["CF_ACCESS_TEAM_DOMAIN", "CF_ACCESS_AUD", "SLEEP_AFTER", "DEV_MODE", "MOLTBOT_GATEWAY_TOKEN", "MOLTINIT_STORE"]);

export const gatewayToken = (env: Env) => env.OPENCLAW_GATEWAY_TOKEN || env.MOLTBOT_GATEWAY_TOKEN;

export const adminToken = (env: Env) => env.MOLTINIT_ADMIN_TOKEN || gatewayToken(env);

/**
 * The container's environment: every variable and secret of this Worker, so that a provider's key that is set here
 * reaches the agent without a change of code, but for the Worker's own.
 */
export function containerEnv(env: Env): Record<string, string> {
  const texts = Object.entries(env).filter(
    (entry): entry is [string, string] => typeof entry[1] === "string" && entry[1] !== "" && !WORKER_ONLY.has(entry[0]),
  );
  const token = gatewayToken(env);
  return {
    ...Object.fromEntries(texts),
    // Named, it is required: moltinit never starts the gateway on empty state because the mount is late.
    MOLTINIT_STORE: STORE_PATH,
    ...(token && { OPENCLAW_GATEWAY_TOKEN: token }),
    ...(env.DEV_MODE && { OPENCLAW_DEV_MODE: env.DEV_MODE }),
  };
}

/** What must be set before anything but the public routes can work. */
export function missing(env: Env): string[] {
  const needed = { WORKER_URL: env.WORKER_URL, OPENCLAW_GATEWAY_TOKEN: gatewayToken(env) };
  return Object.entries(needed).flatMap(([name, value]) => (value ? [] : [name]));
}
