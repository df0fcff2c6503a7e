# syntax=docker/dockerfile:1
# The image: agent and trainer on a slim Debian.
#
#     docker build -t anneal --build-arg REVISION="$(git rev-parse HEAD)" .
#     docker run --gpus all anneal --config shakespeare_char
#     docker run --gpus all -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY -e AWS_REGION anneal \
#         run --store s3://bucket/jobs --job J -- trainer --config gpt2_124m
#
# What the last stage does beyond what stands here is deploy/image/root.sh, which tests/image runs
# in a chroot too.

# CUDA 12.8 is the oldest compiler that knows every GPU that kernels/build.rs compiles for.
FROM nvidia/cuda:12.8.1-devel-ubuntu22.04 AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends ca-certificates curl g++ pkg-config \
    && rm -rf /var/lib/apt/lists/*
ARG RUST=stable
ENV CARGO_HOME=/opt/cargo RUSTUP_HOME=/opt/rustup
RUN curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs \
    | sh -s -- -y -q --profile minimal --default-toolchain "$RUST"
ENV PATH=/opt/cargo/bin:$PATH
RUN cargo install --quiet --locked cargo-cyclonedx@0.5.9 \
    && cargo install --quiet --locked --features cli cargo-about@0.9.3
WORKDIR /src
COPY . .
# Empty: the engine for CPUs only, for which any base with a C++ compiler will do.
ARG ANNEAL_FEATURES=trainer/cuda
ARG REVISION=unknown
RUN --mount=type=cache,target=/opt/cargo/registry --mount=type=cache,target=/src/target \
    ANNEAL_COMMIT="$REVISION" deploy/image/build.sh /parts

FROM debian:bookworm-slim AS image
RUN --mount=type=bind,from=build,source=/parts,target=/mnt/parts \
    --mount=type=bind,source=deploy/image/root.sh,target=/mnt/root.sh \
    sh /mnt/root.sh /mnt/parts
# Read by the container toolkit of NVIDIA, which brings the driver's libraries in.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
# A word that is no command of the agent's goes to the trainer, with all that follows.
ENTRYPOINT ["/usr/local/bin/agent"]
CMD ["--help"]
EXPOSE 8080
# Docker only marks what is unhealthy; the agent's own dead-man's switch acts.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/healthy"]
STOPSIGNAL SIGTERM
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anneal" \
    org.opencontainers.image.description="A GPT trainer, and the agent that looks after it" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
