import { getSandbox, Sandbox as SandboxSdk } from "@cloudflare/sandbox";
import { withoutLogin } from "./access";
import { adminToken, containerEnv, type Env } from "./env";
import { Mount } from "./mount";
import { times } from "./times";

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
  /** Where the gateway stands, if it is the gateway that is missing. */
  gateway?: { state: string; why?: string };
  /** What went wrong when it was started, or when its bucket was mounted. */
  error?: string;
}

interface Startup {
  ok: boolean;
  pendingReason?: Pending;
  progress?: Progress;
}

interface Readiness {
  ready: boolean;
  failing?: string[];
}

/** Since when moltinit has not answered: kept, since this object may be forgotten between two looks. */
const SILENT_SINCE = "moltinit:silentSince";

/** The container: started with its environment, its bucket mounted when moltinit says that it misses it. */
export class Sandbox extends SandboxSdk<Env> {
  private last?: { at: number; probe: Probe };
  private looking?: Promise<Probe>;
  private starting?: Promise<void>;
  private error?: string;
  /** None if moltinit mounts the bucket itself. */
  private readonly mount?: Mount;

  constructor(ctx: DurableObjectState<{}>, env: Env) {
    super(ctx, env);
    this.envVars = { ...this.envVars, ...containerEnv(env) };
    if (!env.MOLTINIT_MOUNT) this.mount = new Mount(this);
  }

  /** How it is now; a container that is not up is started, without waiting for it. */
  async probe(): Promise<Probe> {
    if (this.last && Date.now() - this.last.at <= times.probe) return this.last.probe;
    this.looking ??= this.look()
      .then((probe) => (this.last = { at: Date.now(), probe }).probe)
      .finally(() => (this.looking = undefined));
    return this.looking;
  }

  private async look(): Promise<Probe> {
    if (!(await this.isUp())) return { state: "starting", open: false, pending: "container", failing: [], error: this.error };
    try {
      const [{ ok, pendingReason: pending, progress }, { ready, failing = [] }] = await Promise.all([
        this.ask<Startup>("/startupz"),
        this.ask<Readiness>("/readyz"),
      ]);
      const storeless = pending === "store" || failing.includes("store");
      if (this.mount && storeless) this.ctx.waitUntil(this.mount.isMissed());
      else this.mount?.isFine();
      const error = this.mount?.error;
      const gateway = failing.includes("gateway") && (ok || pending === "services") ? await this.gateway() : undefined;
      if (!ok) return { state: "starting", open: false, pending, progress, failing: [], gateway, error };
      // Without its store the gateway can be used all the same.
      const open = ready || (failing.length > 0 && failing.every((what) => what === "store"));
      return { state: ready ? "ready" : "failing", open, failing, gateway, error };
    } catch (error) {
      return { state: "failing", open: false, failing: ["moltinit"], error: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Whether it is up; if it is not, it is started, without waiting for it. */
  private async isUp(): Promise<boolean> {
    const { status } = await this.getState();
    if (status === "healthy" && this.ctx.container?.running) return true;
    this.starting ??= this.startAndWaitForPorts({ ports: CONTROL, cancellationOptions: { portReadyTimeoutMS: 60_000 } })
      .then(() => void (this.error = undefined))
      .catch((error: unknown) => void (this.error = `The container does not start: ${error}`))
      .finally(() => (this.starting = undefined));
    this.ctx.waitUntil(this.starting);
    return false;
  }

  private async ask<T>(route: string, headers?: HeadersInit): Promise<T> {
    const answer = await this.containerFetch(`http://moltinit${route}`, { headers, signal: AbortSignal.timeout(5_000) }, CONTROL);
    // Whoever else answers in its place, the SDK for one, has no part in it.
    if (![200, 503].includes(answer.status)) throw new Error(`moltinit does not answer: ${await answer.text()}`);
    return answer.json<T>();
  }

  /** What there is to say of a gateway that is not there; nothing, if even that cannot be had. */
  private async gateway(): Promise<Probe["gateway"]> {
    try {
      const { services } = await this.ask<{ services?: Record<string, { state: string; why?: string }> }>("/status", this.bearer());
      const { state, why } = services?.gateway ?? {};
      return state ? { state, ...(why && { why }) } : undefined;
    } catch {
      return undefined;
    }
  }

  private bearer(): { Authorization: string } {
    return { Authorization: `Bearer ${adminToken(this.env)}` };
  }

  /** Everything that is for the gateway, HTTP and WebSocket: whatever a request says, it gets at no other port. */
  override fetch(request: Request): Promise<Response> {
    return this.containerFetch(request, GATEWAY);
  }

  /** A request to moltinit's own routes, with its token. */
  async control(request: Request): Promise<Response> {
    if (!(await this.isUp())) {
      return Response.json({ title: "The container is starting", status: 503 }, { status: 503, headers: { "Retry-After": "2" } });
    }
    const headers = withoutLogin(request.headers);
    for (const [name, value] of Object.entries(this.bearer())) headers.set(name, value);
    return this.containerFetch(new Request(request, { headers }), CONTROL);
  }

  /** Ends the container in order, with a last snapshot; the next probe starts another. */
  async restart(): Promise<void> {
    this.last = undefined;
    await this.stop("SIGTERM");
  }

  /**
   * From time to time: a container that is away is started, and one whose moltinit has not been heard of for long is
   * ended, however it is. What it had committed is in the bucket.
   */
  async tend(): Promise<void> {
    await this.probe();
    if (!this.ctx.container?.running || (await this.isWell())) {
      await this.ctx.storage.delete(SILENT_SINCE);
      return;
    }
    const since = await this.ctx.storage.get<number>(SILENT_SINCE);
    if (since === undefined) await this.ctx.storage.put(SILENT_SINCE, Date.now());
    else if (Date.now() - since >= times.silence) {
      console.error(`moltinit has not answered since ${new Date(since).toISOString()}: the container is ended`);
      this.last = undefined;
      await this.destroy();
      await this.ctx.storage.delete(SILENT_SINCE);
    }
  }

  private async isWell(): Promise<boolean> {
    try {
      return (await this.getState()).status === "healthy" && (await this.ask<{ ok: boolean }>("/healthz")).ok;
    } catch {
      return false;
    }
  }
}

/** The one container there is. */
export function sandbox(env: Env) {
  // The SDK remembers either for good, so each undoes the other.
  const sleep = env.SLEEP_AFTER ? { keepAlive: false, sleepAfter: env.SLEEP_AFTER } : { keepAlive: true };
  return getSandbox(env.Sandbox, "moltbot", sleep);
}
