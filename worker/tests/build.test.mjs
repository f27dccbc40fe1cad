// What `wrangler deploy` does, up to the door: the configuration is taken, the Worker bundled, the image named.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { scratch } from "./harness.mjs";

const source = fileURLToPath(new URL("..", import.meta.url));

test("wrangler bundles it, with everything bound that it uses", async (t) => {
  const dir = scratch(t);
  const worker = join(dir, "worker");
  mkdirSync(worker);
  for (const name of ["src", "wrangler.jsonc", "package.json", "tsconfig.json"]) cpSync(join(source, name), join(worker, name), { recursive: true });
  symlinkSync(join(source, "node_modules"), join(worker, "node_modules"));
  // The image is built elsewhere: here it only has to be where the configuration says.
  writeFileSync(join(dir, "Dockerfile"), "FROM scratch\n");
  // It is given the Dockerfile on its stdin, and must not be gone before.
  writeFileSync(join(dir, "docker"), '#!/bin/sh\n[ "$1" != build ] || cat >/dev/null\n', { mode: 0o755 });
  const env = { ...process.env, HOME: dir, CI: "1", WRANGLER_SEND_METRICS: "false", WRANGLER_DOCKER_BIN: join(dir, "docker") };
  const { stdout } = await promisify(execFile)(join(source, "node_modules/.bin/wrangler"), ["deploy", "--dry-run", "--outdir", "dist"], { cwd: worker, env });
  for (const bound of ["env.Sandbox", "env.Journal", "env.STORE", "env.BROWSER", join(dir, "Dockerfile")]) {
    assert.ok(stdout.includes(bound), `${bound} in ${stdout}`);
  }
  assert.ok(readdirSync(join(worker, "dist")).includes("index.js"));
});
