import { type Env, gatewayToken } from "./env";
import { page } from "./page";
import loading from "./pages/loading.html";
import { problem } from "./problem";
import { sandbox } from "./sandbox";

/** Everything else is for the gateway. Until it can be reached, a person sees how far it is; a program is told to come back. */
export async function proxy(request: Request, env: Env): Promise<Response> {
  const container = sandbox(env);
  const { open, pending, failing } = await container.probe();
  if (open) return container.fetch(withToken(request, env));
  const navigates = request.method === "GET" && request.headers.get("Accept")?.includes("text/html");
  if (navigates) return page(loading, 503);
  return problem(503, "The gateway is not up yet", pending ?? failing.join(", "), { "Retry-After": "2" });
}

/**
 * A login by Access loses the query, and with it the `?token=` that the gateway asks of a WebSocket. Whoever got here
 * has logged in, so the token is put back.
 */
function withToken(request: Request, env: Env): Request {
  const url = new URL(request.url);
  const token = gatewayToken(env);
  if (!token || !request.headers.has("Upgrade") || url.searchParams.has("token")) return request;
  url.searchParams.set("token", token);
  return new Request(url, request);
}
