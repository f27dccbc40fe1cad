export const ALGORITHM = { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" };

/** Milliseconds for which keys are used without asking again. */
export const FRESH = 3_600_000;
/** And so long if they cannot be had again: they are not withdrawn within hours, and an outage need not lock users out. */
export const STALE = 86_400_000;
/** A key that is not known is asked for, but not more often than this, whoever makes tokens up. */
export const PATIENCE = 30_000;
/** After asking in vain. */
export const BACK_OFF = 5_000;
/** An answer is waited for so long. */
const DEADLINE = 10_000;

type Jwks = { keys: (JsonWebKey & { kid: string })[] };

/** The keys that a team of Cloudflare Access signs with, as it publishes them. They are changed every few weeks. */
export class Keyring {
  private known?: { at: number; byId: Map<string, CryptoKey> };
  private asking?: { since: number; answer: Promise<void> };
  /** Why it could not be had the last time. */
  private failure?: unknown;
  /** No sooner is it asked again. */
  private next = -Infinity;

  constructor(
    private readonly url: string,
    private readonly fetchIt: (url: string) => Promise<Response> = (url) => fetch(url, { signal: AbortSignal.timeout(DEADLINE) }),
    private readonly clock: () => number = Date.now,
  ) {}

  /**
   * The key of that name, if there is one.
   *
   * @throws Error when no keys can be had that are recent enough.
   */
  async key(id: string): Promise<CryptoKey | undefined> {
    if (!this.known || this.age() > FRESH || !this.known.byId.has(id)) await this.ask().catch((error: unknown) => (this.failure = error));
    if (this.known && this.age() <= STALE) return this.known.byId.get(id);
    throw this.failure;
  }

  private age(): number {
    return this.known ? this.clock() - this.known.at : Infinity;
  }

  /** Once for all who wait for it. Whoever asked may be gone, and the answer with it: nobody waits for ever. */
  private async ask(): Promise<void> {
    const now = this.clock();
    if (this.asking && now - this.asking.since < DEADLINE) return within(DEADLINE, this.asking.answer);
    if (now < this.next) return;
    this.next = now + BACK_OFF;
    const asking = { since: now, answer: this.renew().finally(() => this.asking === asking && (this.asking = undefined)) };
    this.asking = asking;
    return asking.answer;
  }

  private async renew(): Promise<void> {
    const answer = await this.fetchIt(this.url);
    if (!answer.ok) throw new Error(`${this.url} answers ${answer.status}`);
    const { keys } = (await answer.json()) as Jwks;
    const imported = keys
      .filter((key) => key.kty === "RSA")
      .map(async ({ kid, kty, n, e }) => {
        const key = await crypto.subtle.importKey("jwk", { kty, n, e, alg: "RS256" } as JsonWebKey, ALGORITHM, false, ["verify"]);
        return [kid, key] as const;
      });
    this.known = { at: this.clock(), byId: new Map(await Promise.all(imported)) };
    this.next = this.known.at + PATIENCE;
  }
}

async function within(patience: number, answer: Promise<void>): Promise<void> {
  let timer: number | undefined;
  const late = new Promise<never>((_, fail) => (timer = setTimeout(() => fail(new Error("no answer in time")), patience)));
  try {
    await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer ?? null);
  }
}
