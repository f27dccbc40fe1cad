import { DurableObject } from "cloudflare:workers";
import type { Env } from "./env";

/** An event as moltinit posts it; `docs/status.md` lists the types. */
export interface Event {
  id: string;
  /** A ULID: boots sort by it. */
  boot: string;
  /** From 1, without a gap within a boot. */
  seq: number;
  type: string;
  time: string;
  instance: string;
  data: Record<string, unknown>;
}

/** What has come of one boot's events. */
export interface Boot {
  boot: string;
  last: number;
  received: number;
  /** Numbers up to `last` that have not come. */
  missing: number;
  /** Of the missing ones, those that moltinit says it had to drop. */
  dropped: number;
  /** Came after one with a higher number. */
  late: number;
}

/** So many events are kept; what is known of their boots stays. */
const KEPT = 5_000;
const BOOTS = 100;

/** Every event that was posted here, once each, in the order they came. */
export class Journal extends DurableObject<Env> {
  private readonly sql = this.ctx.storage.sql;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.sql.exec(`
      CREATE TABLE IF NOT EXISTS events (
        n INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seq INTEGER NOT NULL, event TEXT NOT NULL,
        UNIQUE (boot, seq));
      CREATE TABLE IF NOT EXISTS boots (
        boot TEXT PRIMARY KEY, last INTEGER NOT NULL, received INTEGER NOT NULL, dropped INTEGER NOT NULL, late INTEGER NOT NULL
      ) WITHOUT ROWID`);
  }

  /** Keeps an event; `false` if it is here already. Durable when this returns: a 2xx is a promise. */
  receive(event: Event): boolean {
    return this.ctx.storage.transactionSync(() => {
      const { boot, seq } = event;
      const added = this.sql.exec(
        "INSERT INTO events (boot, seq, event) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING n", boot, seq, JSON.stringify(event));
      const row = added.toArray()[0];
      if (!row) return false;
      const dropped = event.type === "events.dropped" ? Number(event.data.count) || 0 : 0;
      this.sql.exec(
        `INSERT INTO boots VALUES (?1, ?2, 1, ?3, 0) ON CONFLICT (boot) DO UPDATE SET
           received = received + 1, dropped = dropped + ?3, late = late + (?2 < last), last = max(last, ?2)`, boot, seq, dropped);
      this.sql.exec("DELETE FROM events WHERE n <= ?", Number(row.n) - KEPT);
      this.sql.exec("DELETE FROM boots WHERE boot NOT IN (SELECT boot FROM boots ORDER BY boot DESC LIMIT ?)", BOOTS);
      return true;
    });
  }

  /** The events that came before the `before`th, newest first, each with its place. */
  events(limit = 50, before = Number.MAX_SAFE_INTEGER): (Event & { n: number })[] {
    const rows = this.sql.exec("SELECT n, event FROM events WHERE n < ? ORDER BY n DESC LIMIT ?", before, limit);
    return rows.toArray().map((row) => ({ n: Number(row.n), ...(JSON.parse(String(row.event)) as Event) }));
  }

  /** Newest first. */
  boots(): Boot[] {
    return this.sql
      .exec("SELECT boot, last, received, last - received AS missing, dropped, late FROM boots ORDER BY boot DESC")
      .toArray() as unknown as Boot[];
  }
}
