import { getSandbox, Sandbox as SandboxSdk } from "@cloudflare/sandbox";
import { withoutLogin } from "./access";
import { adminToken, containerEnv, type Env, STORE_PATH } from "./env";

/** moltinit's probes and control. */
const CONTROL = 9180;
const GATEWAY = 18789;

/** What is in the container's way to the gateway, in the order in which it goes. */
export type Pending = "container" | "store" | "restore" | "prepare" | "services";

/** How much of the state is back. */
export interface Progress {
  doneBytes: number;
  totalBytes: number;
}

/** How the container is, by its own probes. */
export interface Probe {
  state: "starting" | "ready" | "failing";
  /** Requests can be given to the gateway. */
  open: boolean;
  /** While starting: what it waits for. */
  pending?: Pending;
  /** While the state is restored. */
  progress?: Progress;
  /** What moltinit's `/readyz` complains of. */
  failing: string[];
  /** What went wrong when it was started, or when its bucket was mounted. */
  error?: string;
}

interface Startup {
  ok: boolean;
  pendingReason?: Pending;
  progress?: Progress;
}

/** Milliseconds for which an answer of the probes is good enough for the next request. */
const FRESH = 1_000;
/** Milliseconds between two attempts to mount. */
const MOUNT_GAP = 5_000;

/** The container: started with its environment, its bucket mounted when moltinit says that it waits for it. */
export class Sandbox extends SandboxSdk<Env> {
  private last?: { at: number; probe: Probe };
  private starting?: Promise<void>;
  private mounting?: Promise<void>;
  /** When it was last tried to. */
  private mounted = 0;
  /** Mounted by this object in its present life. */
  private holds = false;
  private error?: string;

  constructor(ctx: DurableObjectState<{}>, env: Env) {
    super(ctx, env);
    this.envVars = { ...this.envVars, ...containerEnv(env) };
  }

  /** How it is now; a container that is not up is started, without waiting for it. */
  async probe(): Promise<Probe> {
    if (!this.last || Date.now() - this.last.at > FRESH) this.last = { at: Date.now(), probe: await this.look() };
    return this.last.probe;
  }

  private async look(): Promise<Probe> {
    const { status } = await this.getState();
    if (status !== "healthy" || !this.ctx.container?.running) {
      this.begin();
      return { state: "starting", open: false, pending: "container", failing: [], error: this.error };
    }
    try {
      const { ok, pendingReason: pending, progress } = await this.ask<Startup>("/startupz");
      if (!ok) {
        if (pending === "store") this.mount();
        return { state: "starting", open: false, pending, progress, failing: [], error: this.error };
      }
      const { ready, failing = [] } = await this.ask<{ ready: boolean; failing?: string[] }>("/readyz");
      if (failing.includes("store")) this.mount();
      else this.error = undefined;
      // Without its store the gateway can be used all the same.
      const open = ready || (failing.length > 0 && failing.every((what) => what === "store"));
      return { state: ready ? "ready" : "failing", open, failing, error: this.error };
    } catch (error) {
      return { state: "failing", open: false, failing: ["moltinit"], error: error instanceof Error ? error.message : String(error) };
    }
  }

  private async ask<T>(probe: string): Promise<T> {
    const answer = await this.containerFetch(`http://moltinit${probe}`, { signal: AbortSignal.timeout(5_000) }, CONTROL);
    // Whoever else answers in its place, the SDK for one, has no part in it.
    if (![200, 503].includes(answer.status)) throw new Error(`moltinit does not answer: ${await answer.text()}`);
    return answer.json<T>();
  }

  private begin(): void {
    this.starting ??= this.startAndWaitForPorts({ ports: CONTROL, cancellationOptions: { portReadyTimeoutMS: 60_000 } })
      .then(() => void (this.error = undefined))
      .catch((error: unknown) => void (this.error = `The container does not start: ${error}`))
      .finally(() => (this.starting = undefined));
    this.ctx.waitUntil(this.starting);
  }

  private mount(): void {
    if (this.env.MOLTINIT_MOUNT || this.mounting || Date.now() - this.mounted < MOUNT_GAP) return;
    this.mounting = this.mountStore()
      .then(() => void (this.error = undefined))
      .catch((error: unknown) => void (this.error = `The bucket cannot be mounted: ${error}`))
      .finally(() => ((this.mounting = undefined), (this.mounted = Date.now())));
    this.ctx.waitUntil(this.mounting);
  }

  /** Mounts the bucket; one that is mounted is left alone, for mounting it again would take it away first. */
  private async mountStore(): Promise<void> {
    const path = this.env.MOLTINIT_STORE || STORE_PATH;
    const quoted = `'${path.replaceAll("'", `'\\''`)}'`;
    if ((await this.exec(`mountpoint -q ${quoted}`, { timeout: 10_000 })).exitCode === 0) return;
    // A dead s3fs leaves its mount behind: one that this object holds, or that it held in an earlier life.
    if (this.holds) await this.unmountBucket(path).catch(() => {});
    await this.exec(`fusermount -uz ${quoted}`, { timeout: 10_000 });
    await this.mountBucket("STORE", path, {});
    this.holds = true;
  }

  /** Everything that is for the gateway, HTTP and WebSocket. */
  override fetch(request: Request): Promise<Response> {
    return this.containerFetch(request, GATEWAY);
  }

  /** A request to moltinit's own routes, with its token. */
  async control(request: Request): Promise<Response> {
    const { status } = await this.getState();
    if (status !== "healthy" || !this.ctx.container?.running) {
      this.begin();
      return Response.json({ title: "The container is starting", status: 503 }, { status: 503, headers: { "Retry-After": "2" } });
    }
    const headers = withoutLogin(request.headers);
    headers.set("Authorization", `Bearer ${adminToken(this.env)}`);
    return this.containerFetch(new Request(request, { headers }), CONTROL);
  }

  /** Ends the container in order, with a last snapshot; the next probe starts another. */
  async restart(): Promise<void> {
    this.last = undefined;
    await this.stop("SIGTERM");
  }
}

/** The one container there is. */
export function sandbox(env: Env) {
  const sleep = env.SLEEP_AFTER ? { sleepAfter: env.SLEEP_AFTER } : { keepAlive: true };
  return getSandbox(env.Sandbox, "moltbot", sleep);
}
