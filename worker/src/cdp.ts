import type { Env } from "./env";
import { problem } from "./problem";
import { same } from "./secret";

/** Milliseconds for which a browser outlives its last command: an agent thinks between two. */
const KEEP_ALIVE = 600_000;

/**
 * `GET /cdp`: a browser of Browser Rendering. The WebSocket is handed through as it is, so all of the Chrome DevTools
 * Protocol works, sessions, targets and binary data included. Public: the secret is in a header or in the query.
 */
export async function relay(request: Request, env: Env): Promise<Response> {
  if (!env.CDP_SECRET || !env.BROWSER) return problem(503, "Not set up", "CDP_SECRET and the BROWSER binding are needed.");
  const header = request.headers.get("Authorization")?.replace(/^Bearer /i, "") ?? request.headers.get("X-CDP-Secret");
  const given = header ?? new URL(request.url).searchParams.get("secret");
  if (!given || !(await same(given, env.CDP_SECRET))) return problem(401, "The CDP secret is wrong or missing");
  if (request.headers.get("Upgrade")?.toLowerCase() !== "websocket") {
    // A probe may ask; only a connection launches a browser, which somebody pays for.
    return problem(426, "Connect with a WebSocket", undefined, { Upgrade: "websocket" });
  }
  const answer = await env.BROWSER.fetch(`https://browser.internal/v1/devtools/browser?keep_alive=${KEEP_ALIVE}`, {
    headers: { Upgrade: "websocket" },
  });
  if (answer.webSocket) return answer;
  const why = (await answer.text()).slice(0, 500);
  console.error("Browser Rendering answers", answer.status, why);
  const busy = answer.status === 429;
  const headers: HeadersInit = busy ? { "Retry-After": answer.headers.get("Retry-After") ?? "10" } : {};
  return problem(busy ? 429 : 503, "Browser Rendering gives no browser", why, headers);
}
