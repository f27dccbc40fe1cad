import type { Sandbox } from "@cloudflare/sandbox";
import { type Env, STORE_PATH } from "./env";
import { times } from "./times";

/**
 * Keeps the bucket mounted in the container. Asked only when moltinit misses its store: a mount that works is never
 * touched, for mounting again would take it away first.
 */
export class Mount {
  /** Why it could not be mounted. */
  error?: string;
  private attempt?: Promise<void>;
  /** When the last attempt ended. */
  private tried = 0;
  /** Since when moltinit has missed it. */
  private missed?: number;
  /** Mounted by the object in its present life. */
  private holds = false;

  constructor(private readonly sandbox: Sandbox<Env>) {}

  /** moltinit has its store. */
  isFine(): void {
    this.missed = this.error = undefined;
  }

  /** moltinit misses its store: something is done about it, to be waited for by nobody but the runtime. */
  isMissed(): Promise<void> {
    this.missed ??= Date.now();
    if (Date.now() - this.tried < times.mountGap) return Promise.resolve();
    this.attempt ??= this.mend(Date.now() - this.missed >= times.mountGrace)
      .then(() => void (this.error = undefined))
      .catch((error: unknown) => void (this.error = `The bucket cannot be mounted: ${error}`))
      .finally(() => ((this.attempt = undefined), (this.tried = Date.now())));
    return this.attempt;
  }

  private async mend(isLasting: boolean): Promise<void> {
    if ((await this.run(`mountpoint -q ${STORE_PATH}`)) === 0) {
      // An object that is reset while its container runs loses what answers the mount's requests: the kernel lists the
      // mount, and all that is done on it fails until it is made anew. https://github.com/cloudflare/sandbox-sdk/issues/912
      if (this.holds || !isLasting) return;
    }
    await this.clear();
    await this.sandbox.mountBucket("STORE", STORE_PATH, {});
    this.holds = true;
    this.missed = undefined;
  }

  /** Takes away what is left of an earlier mount, in the container and in the SDK's book. */
  private async clear(): Promise<void> {
    if (this.holds) {
      this.holds = false;
      await this.sandbox.unmountBucket(STORE_PATH).catch(() => {
        // Busy, or gone by itself. The SDK would hold on to it, and mount nothing there ever again.
        (this.sandbox as unknown as { activeMounts: Map<string, unknown> }).activeMounts.delete(STORE_PATH);
      });
    }
    await this.run(`fusermount -uz ${STORE_PATH}`);
  }

  private async run(command: string): Promise<number> {
    return (await this.sandbox.exec(command, { timeout: 10_000 })).exitCode;
  }
}
