# moltinit as PID 1 of a Cloudflare Sandbox container, with the gateway. README.md says how to build, run and extend it.

# What the Worker's @cloudflare/sandbox wants to talk to: the same version.
ARG BASE=docker.io/cloudflare/sandbox:0.12.10
# Its glibc is no newer than the base's, which is Ubuntu 22.04.
ARG BUILDER=docker.io/library/rust:1.95-bullseye
# The stage, or any image, that has /moltinit: one that is built already spares the compiling.
ARG BINARY=build

FROM ${BUILDER} AS build
WORKDIR /src
ARG TARGETARCH
ENV CARGO_PROFILE_DIST_STRIP=debuginfo
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY docs docs
COPY skills skills
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin moltinit --target-dir "target/$TARGETARCH" \
    && cp "target/$TARGETARCH/dist/moltinit" /moltinit

FROM ${BINARY} AS binary

# With a Node of its own: the base's may be older than the gateway needs.
FROM ${BASE} AS openclaw
# `latest` and `pinned` are what moltinit is tested with; a version of npm's goes as well.
ARG OPENCLAW=latest
COPY scripts/install-openclaw /build/scripts/
COPY scripts/lib/cache.sh /build/scripts/lib/
RUN --mount=type=cache,target=/root/.npm \
    mv "$(MOLTINIT_DEV_CACHE=/opt /build/scripts/install-openclaw "$OPENCLAW")" /opt/openclaw
# Compiled once here, and not at the start of each container.
COPY scripts/warm-openclaw /build/scripts/
RUN /build/scripts/warm-openclaw /opt/openclaw

FROM ${BASE}
ARG DEBIAN_FRONTEND=noninteractive
RUN command -v s3fs >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends ca-certificates s3fs && rm -rf /var/lib/apt/lists/*; }
COPY --from=openclaw /opt/openclaw /opt/openclaw
ENV NODE_COMPILE_CACHE=/opt/openclaw/compile-cache
COPY image/bin/ /usr/local/bin/
COPY --from=binary /moltinit /usr/local/bin/moltinit
# Both run here, or the image is not built. The gateway went by another name when moltworker's Worker learnt to call it.
RUN ln -s /opt/openclaw/bin/openclaw /usr/local/bin/openclaw \
    && ln -s openclaw /usr/local/bin/clawdbot \
    && ln -s start-openclaw.sh /usr/local/bin/start-moltbot.sh \
    && { [ ! -d /opt/openclaw/jiti ] || ln -s /opt/openclaw/jiti /tmp/jiti; } \
    && mkdir -p /root/clawd \
    && moltinit --version \
    && openclaw --version

# Not /root/clawd, where moltworker has the workspace: a restore puts another directory in its place, and whoever runs
# in the old one runs nowhere.
WORKDIR /root
# The Sandbox SDK's server, the gateway, moltinit's probes and status.
EXPOSE 3000 18789 9180
# By its socket, which it finds wherever the configuration has it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["moltinit", "status"]
ENTRYPOINT ["/usr/local/bin/moltinit"]

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="moltinit" \
      org.opencontainers.image.description="A personal AI agent that outlives its container: restore, supervise, snapshot, tunnel, report" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
