/** The way in to an agent in a Cloudflare Sandbox that moltinit keeps alive. Which request goes where is all that is here. */
import { guard } from "./access";
import { administer, status } from "./admin";
import { receive } from "./callbacks";
import { relay } from "./cdp";
import { type Env, missing } from "./env";
import { problem } from "./problem";
import { proxy } from "./proxy";
import { sandbox } from "./sandbox";

export { ContainerProxy } from "@cloudflare/sandbox";
export { Journal } from "./journal";
export { Sandbox } from "./sandbox";

export default {
  async fetch(request: Request, env: Env, ctx: ExecutionContext): Promise<Response> {
    const { pathname } = new URL(request.url);
    // Public: each has a secret of its own.
    if (pathname === "/cdp") return relay(request, env, ctx);
    if (pathname === "/_moltinit/events") return receive(request, env);

    const refused = await guard(request, env);
    if (refused) return refused;
    const unset = missing(env);
    if (unset.length > 0) {
      return problem(503, "Not set up", `Set ${unset.join(" and ")}, with \`npx wrangler secret put NAME\`.`);
    }
    if (pathname === "/api/status") return status(env);
    if (pathname === "/_admin" || pathname.startsWith("/_admin/")) return administer(request, env);
    return proxy(request, env);
  },

  /** Once a minute: a container that the platform has taken away, or that hangs, comes back, whether or not anybody asks. */
  async scheduled(_: ScheduledController, env: Env): Promise<void> {
    if (!env.SLEEP_AFTER && missing(env).length === 0) await sandbox(env).tend();
  },
} satisfies ExportedHandler<Env>;
