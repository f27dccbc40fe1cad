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
/** So many of one boot may have come past a gap; of what is missing then no more is expected. */
const AHEAD = 1_000;

/**
 * Every event that was posted here, once each, in the order they came. Of each boot it is known up to where all have come,
 * and which have come past the first gap: so a repetition is known as one however old it is.
 */
export class Journal extends DurableObject<Env> {
  private readonly sql = this.ctx.storage.sql;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.sql.exec(`
      CREATE TABLE IF NOT EXISTS events (n INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL);
      CREATE TABLE IF NOT EXISTS boots (
        boot TEXT PRIMARY KEY, whole INTEGER NOT NULL, last INTEGER NOT NULL, received INTEGER NOT NULL, dropped INTEGER NOT NULL,
        late INTEGER NOT NULL
      ) WITHOUT ROWID;
      CREATE TABLE IF NOT EXISTS ahead (boot TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (boot, seq)) WITHOUT ROWID`);
  }

  /** Keeps an event; `false` if it has been here already. Durable when this returns: a 2xx is a promise. */
  receive(event: Event): boolean {
    return this.ctx.storage.transactionSync(() => {
      const { boot, seq } = event;
      this.sql.exec("INSERT INTO boots VALUES (?, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING", boot);
      const fresh = this.sql.exec(
        `INSERT INTO ahead SELECT ?1, ?2 WHERE ?2 > (SELECT whole FROM boots WHERE boot = ?1) ON CONFLICT DO NOTHING RETURNING seq`, boot, seq);
      if (fresh.toArray().length === 0) return false;
      const { n } = this.sql.exec("INSERT INTO events (event) VALUES (?) RETURNING n", JSON.stringify(event)).one();
      const dropped = event.type === "events.dropped" ? Number(event.data.count) || 0 : 0;
      this.sql.exec(
        `UPDATE boots SET received = received + 1, dropped = dropped + ?3, late = late + (?2 < last), last = max(last, ?2)
         WHERE boot = ?1`, boot, seq, dropped);
      this.advance(boot);
      this.sql.exec("DELETE FROM events WHERE n <= ?", Number(n) - KEPT);
      this.sql.exec("DELETE FROM boots WHERE boot NOT IN (SELECT boot FROM boots ORDER BY boot DESC LIMIT ?)", BOOTS);
      this.sql.exec("DELETE FROM ahead WHERE boot NOT IN (SELECT boot FROM boots)");
      return true;
    });
  }

  /** Moves the place up to where all have come. */
  private advance(boot: string): void {
    const number = (query: string) => Number(this.sql.exec(query, boot).one().n);
    let whole = number("SELECT whole AS n FROM boots WHERE boot = ?");
    if (number("SELECT count(*) AS n FROM ahead WHERE boot = ?") > AHEAD) whole = number("SELECT min(seq) - 1 AS n FROM ahead WHERE boot = ?");
    const past = this.sql.exec("SELECT seq FROM ahead WHERE boot = ? AND seq > ? ORDER BY seq", boot, whole);
    for (const { seq } of past) {
      if (seq !== whole + 1) break;
      whole += 1;
    }
    this.sql.exec("UPDATE boots SET whole = ? WHERE boot = ?", whole, boot);
    this.sql.exec("DELETE FROM ahead WHERE boot = ? AND seq <= ?", boot, whole);
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
