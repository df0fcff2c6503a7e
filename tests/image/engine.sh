#!/usr/bin/env bash
# Dockerfile's last stage by a real builder, and its image under a real runtime: buildah and podman
# stand for Docker, a bare Debian for debian:*-slim, and programs in ANNEAL_BIN (default:
# target/release) for the first stage, whose base is too large to be had here.
#
#     tests/image/engine.sh [FOLDER]       FOLDER keeps the bare Debian, as in check.sh
#
# Needs root on Debian; installs what is missing. Takes a minute.
set -euo pipefail
# shellcheck source=tests/image/container.sh
. "$(dirname "${BASH_SOURCE[0]}")/container.sh"

need debootstrap=debootstrap python3=python3 strip=binutils buildah=buildah podman=podman runc=runc
work=$(mktemp -d)
base=${1:-$work/base}
store=(--root "$work/storage" --runroot "$work/run" --storage-driver overlay)
# Docker's limits are more than a container may have that has an engine within.
printf '[containers]\ndefault_ulimits=["nofile=%s:%s","nproc=1024:1024"]\n' \
    "$(ulimit -Hn)" "$(ulimit -Hn)" >"$work/containers.conf"
export CONTAINERS_CONF=$work/containers.conf
podman() {
    # Below fatal it tells of missing timers: health checks are asked for here, not timed.
    command podman "${store[@]}" --log-level fatal --runtime runc --cgroup-manager cgroupfs "$@"
}
finish() {
    podman kill --all >/dev/null 2>&1 || true
    podman rm --all --force >/dev/null 2>&1 || true
    podman image rm --all --force >/dev/null 2>&1 || true
    umount "$work/storage/overlay" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

make_base "$base"
tar -C "$base" -c . | podman import - "docker.io/library/${image_base[0]}" >/dev/null
mkdir -p "$work/context/deploy"
ANNEAL_BIN=${ANNEAL_BIN:-$repo/target/release} "$repo/deploy/image/build.sh" "$work/context/parts" \
    2>"$work/build.log" || fail "$(<"$work/build.log")"
cp -R "$repo/deploy/image" "$work/context/deploy/"
{
    printf 'FROM scratch AS build\nCOPY parts /parts\n'
    sed -n '/^FROM debian/,$p' "$repo/Dockerfile"
} >"$work/context/Dockerfile"
buildah "${store[@]}" bud --isolation chroot --pull-never --format docker --quiet \
    --build-arg REVISION=abc123 --tag anneal "$work/context" >/dev/null
say "built"

inspect() {
    podman image inspect --format "$1" anneal
}
[[ $(inspect '{{json .Config.Entrypoint}}') == '["/usr/local/bin/agent"]' ]] || fail "entry point"
[[ $(inspect '{{.Config.WorkingDir}}') == /work ]] || fail "working directory"
[[ $(inspect '{{json .Config.Healthcheck.Test}}') == '["CMD","/usr/local/bin/healthy"]' ]] ||
    fail "health check: $(inspect '{{json .Config.Healthcheck}}')"
[[ $(inspect '{{index .Config.Labels "org.opencontainers.image.revision"}}') == abc123 ]] ||
    fail "labels: $(inspect '{{json .Config.Labels}}')"
say "its configuration is as Dockerfile says: $(($(inspect '{{.Size}}') / 1000000)) MB"

run() {
    podman run --network host "$@"
}
run --rm anneal --version
run --rm anneal | grep -q '^Usage: agent' || fail "no help without arguments"
# shellcheck disable=SC2016 # the container's shell expands it
asked=$(run --rm --entrypoint bash anneal -c 'echo $NVIDIA_DRIVER_CAPABILITIES')
[[ $asked == compute,utility ]] ||
    fail "the driver's libraries are not asked for"
tiny=(--config quickstart --max_iters=20 --lr_decay_iters=20 --warmup_iters=5 --eval_interval=20
    --eval_iters=2)
run --rm --read-only --tmpfs /work --user 4321 --cap-drop all --security-opt no-new-privileges \
    anneal "${tiny[@]}" | grep '^step 20: train loss'
say "the trainer trains: any user, read-only root"

port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
run --detach --name job --read-only --tmpfs /work --user 1000 --cap-drop all \
    --env "AGENT_LISTEN=127.0.0.1:$port" \
    anneal run -- trainer "${tiny[@]}" --max_iters=100000 --eval_interval=100000 >/dev/null
podman logs --follow job >"$work/log" 2>&1 &
until_said "$work/log" '^iter 10:' 60
podman healthcheck run job >/dev/null || fail "the health check says no"
podman stop --time 60 job >/dev/null
[[ $(podman inspect --format '{{.State.ExitCode}}' job) == 12 ]] || {
    tail -n 20 "$work/log"
    fail "stopped: not with status 12"
}
say "the agent: healthy, and stopped with 12"
