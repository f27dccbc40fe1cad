import type { Env } from "./env";
import { problem } from "./problem";
import { same } from "./secret";

const BROWSERS = "https://browser.internal/v1/devtools/browser";
/** Milliseconds for which a browser outlives its last command: an agent thinks between two. It is closed with its connection. */
const KEEP_ALIVE = 600_000;

/**
 * `GET /cdp`: a browser of Browser Rendering for as long as the WebSocket is open. Messages go through as they are, so all
 * of the Chrome DevTools Protocol works, sessions and targets included. Public: the secret is in a header or in the query.
 */
export async function relay(request: Request, env: Env, ctx: ExecutionContext): Promise<Response> {
  if (!env.CDP_SECRET || !env.BROWSER) return problem(503, "Not set up", "CDP_SECRET and the BROWSER binding are needed.");
  const header = request.headers.get("Authorization")?.replace(/^Bearer /i, "") ?? request.headers.get("X-CDP-Secret");
  const given = header ?? new URL(request.url).searchParams.get("secret");
  if (!given || !(await same(given, env.CDP_SECRET))) return problem(401, "The CDP secret is wrong or missing");
  if (request.headers.get("Upgrade")?.toLowerCase() !== "websocket") {
    // A probe may ask; only a connection launches a browser, which somebody pays for.
    return problem(426, "Connect with a WebSocket", undefined, { Upgrade: "websocket" });
  }
  let answer: Response;
  try {
    answer = await env.BROWSER.fetch(`${BROWSERS}?keep_alive=${KEEP_ALIVE}`, { headers: { Upgrade: "websocket" } });
  } catch (error) {
    console.error("Browser Rendering cannot be reached:", error);
    return problem(503, "Browser Rendering cannot be reached", undefined, { "Retry-After": "10" });
  }
  if (!answer.webSocket) return refused(answer);
  const { 0: client, 1: server } = new WebSocketPair();
  ctx.waitUntil(through(server, answer.webSocket).then(() => end(env.BROWSER!, answer.headers.get("cf-browser-session-id"))));
  return new Response(null, { status: 101, webSocket: client });
}

async function refused(answer: Response): Promise<Response> {
  const why = (await answer.text()).slice(0, 500);
  console.error("Browser Rendering answers", answer.status, why);
  const busy = answer.status === 429;
  const headers: HeadersInit = busy ? { "Retry-After": answer.headers.get("Retry-After") ?? "10" } : {};
  return problem(busy ? 429 : 503, "Browser Rendering gives no browser", why, headers);
}

/** Hands every message over, until either side is closed or lost; then both are. */
function through(one: WebSocket, other: WebSocket): Promise<void> {
  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  for (const [from, to] of [[one, other], [other, one]] as const) {
    from.binaryType = "arraybuffer";
    from.accept();
    from.addEventListener("message", ({ data }) => attempt(() => to.send(data)));
    const close = (code?: number, reason?: string) => {
      // These two say that there was no code.
      attempt(() => (code && ![1005, 1006].includes(code) ? to.close(code, reason) : to.close()));
      attempt(() => from.close());
      end();
    };
    from.addEventListener("close", ({ code, reason }) => close(code, reason));
    from.addEventListener("error", () => close(1011, "the other side is lost"));
  }
  return ended;
}

/** On a socket that may have closed meanwhile, which it then says by itself. */
function attempt(act: () => void): void {
  try {
    act();
  } catch {
    // Its `close` is on its way.
  }
}

/** A browser that nobody is connected to would be paid for until it has been idle for long. */
async function end(browsers: Fetcher, session: string | null): Promise<void> {
  if (!session) return;
  try {
    const answer = await browsers.fetch(`${BROWSERS}/${session}`, { method: "DELETE" });
    if (!answer.ok && answer.status !== 404) console.error("Browser Rendering does not close a browser:", answer.status);
    await answer.body?.cancel();
  } catch (error) {
    console.error("Browser Rendering does not close a browser:", error);
  }
}
