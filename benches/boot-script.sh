#!/bin/sh
# What a container's start script does without moltinit, as moltworker's does it: bring the state back with rclone,
# onboard where there is none, patch the configuration with node, start the gateway in the foreground.
# Wants STATE, REMOTE (rclone's name of the bucket), PORT, OPENCLAW_GATEWAY_TOKEN, ANTHROPIC_API_KEY.
set -e
flags="--transfers 16 --fast-list"
# shellcheck disable=SC2086
if rclone ls "$REMOTE/openclaw/openclaw.json" $flags 2>/dev/null | grep -q openclaw.json; then
    rclone copy "$REMOTE/openclaw" "$STATE" $flags
fi
for part in workspace skills; do
    # shellcheck disable=SC2086
    if [ "$(rclone ls "$REMOTE/$part" $flags 2>/dev/null | wc -l)" -gt 0 ]; then
        rclone copy "$REMOTE/$part" "$STATE/$part" $flags
    fi
done
if [ ! -f "$STATE/openclaw.json" ]; then
    began=$(date +%s%N)
    openclaw onboard --non-interactive --accept-risk --mode local --gateway-port "$PORT" --gateway-bind loopback \
        --skip-channels --skip-skills --skip-health --auth-choice apiKey --anthropic-api-key "$ANTHROPIC_API_KEY"
    echo "$(($(date +%s%N) - began))e-9" >"$HOME/onboarding"
fi
node - "$STATE/openclaw.json" <<'PATCH'
const fs = require("fs");
const file = process.argv[2];
const config = JSON.parse(fs.readFileSync(file, "utf8"));
config.gateway = { ...config.gateway, port: Number(process.env.PORT), mode: "local", trustedProxies: ["10.1.0.0"] };
config.gateway.auth = { ...config.gateway.auth, token: process.env.OPENCLAW_GATEWAY_TOKEN };
fs.writeFileSync(file, JSON.stringify(config, null, 2));
PATCH
rm -f "$STATE/gateway.lock" /tmp/openclaw-gateway.lock
exec openclaw gateway --port "$PORT" --bind loopback --token "$OPENCLAW_GATEWAY_TOKEN" --allow-unconfigured
