import { withoutLogin } from "./access";
import { type Env, gatewayToken } from "./env";
import { page } from "./page";
import loading from "./pages/loading.html";
import { problem } from "./problem";
import { sandbox } from "./sandbox";

/** Everything else is for the gateway. Until it can be reached, a person sees how far it is; a program is told to come back. */
export async function proxy(request: Request, env: Env): Promise<Response> {
  const container = sandbox(env);
  const { open, pending, failing } = await container.probe();
  if (open) return container.fetch(forGateway(request, env));
  const navigates = request.method === "GET" && request.headers.get("Accept")?.includes("text/html");
  if (navigates) return page(loading, 503);
  return problem(503, "The gateway is not up yet", pending ?? failing.join(", "), { "Retry-After": "2" });
}

/** The request as the gateway is to see it: from whom it really is, with its token, and without the login. */
function forGateway(request: Request, env: Env): Request {
  const url = new URL(request.url);
  // A login by Access loses the query, and with it the `?token=` that older gateways ask of a WebSocket. Whoever got
  // here has logged in, so it is put back.
  const token = gatewayToken(env);
  if (token && request.headers.has("Upgrade") && !url.searchParams.has("token")) url.searchParams.set("token", token);

  const headers = withoutLogin(request.headers);
  // Anybody can send these; here only this Worker's word counts.
  for (const name of [...headers.keys()]) if (/^(forwarded$|x-real-ip$|x-forwarded-)/i.test(name)) headers.delete(name);
  const client = headers.get("CF-Connecting-IP");
  // The gateway refuses a proxy that does not say for whom it asks.
  if (client) {
    headers.set("X-Forwarded-For", client);
    headers.set("X-Forwarded-Host", url.host);
    headers.set("X-Forwarded-Proto", url.protocol.slice(0, -1));
  }
  return new Request(new Request(url, request), { headers });
}
