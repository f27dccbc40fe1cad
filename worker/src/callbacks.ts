import type { Env } from "./env";
import type { Event } from "./journal";
import { problem } from "./problem";
import { claim, prove, Unproven } from "./webhook";

/** An event is a few hundred bytes. */
const LARGEST = 1 << 20;

/** `POST /_moltinit/events`: public, since only what is signed with the callback secret counts. */
export async function receive(request: Request, env: Env): Promise<Response> {
  if (request.method !== "POST") return problem(405, "POST an event", undefined, { Allow: "POST" });
  const secret = env.MOLTINIT_CALLBACK_SECRET;
  if (!secret) return problem(503, "Not set up", "MOLTINIT_CALLBACK_SECRET is not set.");
  try {
    const claimed = claim(request.headers);
    const body = await bounded(request.body, LARGEST);
    if (!body) return problem(413, "An event is not that large");
    await prove(claimed, body, secret);
    const { id } = claimed;
    const event = parse(new TextDecoder().decode(body), id);
    if (!event) return problem(400, "This is signed, but it is no event");
    const fresh = await journal(env).receive(event);
    return Response.json({ id, received: fresh ? "first" : "again" });
  } catch (error) {
    if (error instanceof Unproven) return problem(401, "Refused", error.message);
    throw error;
  }
}

/** All of a body; `undefined`, and not all of it is read, if it is larger than it may be. */
async function bounded(stream: ReadableStream<Uint8Array> | null, largest: number): Promise<Uint8Array | undefined> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of stream ?? []) {
    size += chunk.byteLength;
    if (size > largest) return undefined;
    chunks.push(chunk);
  }
  const body = new Uint8Array(size);
  chunks.reduce((at, chunk) => (body.set(chunk, at), at + chunk.byteLength), 0);
  return body;
}

export const journal = (env: Env) => env.Journal.getByName("events");

/** The signature covers the id in the header: the one in the body must be the same, or a repetition would not show. */
function parse(body: string, id: string): Event | undefined {
  try {
    const event = JSON.parse(body) as Partial<Event>;
    const whole =
      event.id === id && typeof event.boot === "string" && Number.isSafeInteger(event.seq) && Number(event.seq) > 0 &&
      typeof event.type === "string" && typeof event.time === "string" && typeof event.data === "object" && event.data !== null;
    return whole ? (event as Event) : undefined;
  } catch {
    return undefined;
  }
}
