/** The Worker with a stand-in for the platform's container binding: an engine outside starts and stops real processes. */
import { env } from "cloudflare:workers";
import worker, { Journal as RealJournal, Sandbox as Real } from "../src/index";
import type { Event } from "../src/journal";
import { times } from "../src/times";

Object.assign(times, (env as { TIMES?: object }).TIMES);

export { ContainerProxy } from "../src/index";

/** Where the platform says that this machine's requests come from: elsewhere in the world. */
const CLIENT = "203.0.113.7";

export default {
  ...worker,
  fetch(request, env, context) {
    const headers = new Headers(request.headers);
    headers.set("CF-Connecting-IP", CLIENT);
    return worker.fetch!(new Request(request, { headers }), env, context);
  },
} satisfies typeof worker;

interface EngineEnv {
  ENGINE: Fetcher;
  /** A container is there already, as after a deploy of the Worker alone. */
  ENGINE_RUNNING?: boolean;
}

export class Journal extends RealJournal {
  receiveAll(events: Event[]): boolean[] {
    return events.map((event) => this.receive(event));
  }
}

export class Sandbox extends Real {
  constructor(ctx: DurableObjectState<{}>, env: ConstructorParameters<typeof Real>[1]) {
    Object.defineProperty(ctx, "container", { value: new StandIn(env as unknown as EngineEnv) });
    super(ctx, env);
  }
}

class StandIn {
  running: boolean;
  private started: Promise<unknown> = Promise.resolve();

  constructor(private readonly env: EngineEnv) {
    this.running = env.ENGINE_RUNNING ?? false;
  }

  private call(path: string, body?: unknown): Promise<Response> {
    return this.env.ENGINE.fetch(`http://engine/${path}`, { method: "POST", body: JSON.stringify(body ?? {}) });
  }

  start({ env }: { env?: Record<string, string> }): void {
    if (this.running) throw new Error("start() cannot be called on a container that is already running.");
    this.running = true;
    this.started = this.call("start", env);
  }

  async monitor(): Promise<void> {
    await this.started;
    const code = await (await this.call("wait")).json<number>();
    this.running = false;
    if (code !== 0) throw new Error(`container exited with unexpected exit code: ${code}`);
  }

  getTcpPort(port: number): Fetcher {
    const service = (this.env as unknown as Record<string, Fetcher | undefined>)[`PORT_${port}`];
    const fetch = async (input: RequestInfo, init?: RequestInit) => {
      try {
        if (this.running && service) return await service.fetch(input, init);
      } catch {
        // Refused: said as the platform says it.
      }
      throw new Error("the container is not listening in the TCP address");
    };
    return { fetch } as unknown as Fetcher;
  }

  signal(number: number): void {
    void this.call(`signal/${number}`);
  }

  async destroy(): Promise<void> {
    await this.call("signal/9");
  }

  async interceptOutboundHttp(host: string): Promise<void> {
    await this.call("intercept", { host });
  }

  async interceptAllOutboundHttp(): Promise<void> {
    await this.call("intercept", { host: "*" });
  }
}
