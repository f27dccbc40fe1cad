import { journal } from "./callbacks";
import type { Env } from "./env";
import { page } from "./page";
import admin from "./pages/admin.html";
import { problem } from "./problem";
import { sandbox } from "./sandbox";

/** `/_admin`: the page, and under `/_admin/api/` what it asks: moltinit's own routes, and the few of this Worker. */
export async function administer(request: Request, env: Env): Promise<Response> {
  const url = new URL(request.url);
  const route = url.pathname.replace(/^\/_admin\/?/, "");
  if (route === "") return page(admin);
  if (route === "restart" && request.method === "POST") {
    await sandbox(env).restart();
    return Response.json({ restarting: true }, { status: 202 });
  }
  if (route === "events" && request.method === "GET") {
    const before = Number(url.searchParams.get("before")) || undefined;
    const [events, boots] = await Promise.all([journal(env).events(50, before), journal(env).boots()]);
    return Response.json({ events, boots });
  }
  if (route.startsWith("api/")) {
    url.pathname = route.slice("api".length);
    return sandbox(env).control(new Request(url, request));
  }
  return problem(404, "There is nothing here");
}

/** `GET /api/status`: how the container is, by its probes, and whether any event is missing. */
export async function status(env: Env): Promise<Response> {
  const [probe, boots] = await Promise.all([sandbox(env).probe(), journal(env).boots()]);
  return Response.json({ ...probe, events: boots[0] ?? null });
}
