#!/usr/bin/env bash
# The image without an engine: its root is made by deploy/image/root.sh, and in it, as process 1,
# the agent and the trainer do what they promise, against a real S3 server on loopback.
#
#     tests/image/check.sh [FOLDER]
#
# FOLDER (default: a new one, removed at the end) keeps the bare Debian for the next time. Needs
# root on Debian, 2 GB of disk and programs in ANNEAL_BIN (default: target/release); installs what is
# missing. Takes a minute and a half.
set -euo pipefail
# shellcheck source=tests/image/container.sh
. "$(dirname "${BASH_SOURCE[0]}")/container.sh"
ours_mib_max=${ANNEAL_OURS_MIB_MAX:-46}
image_mib_max=700

need debootstrap=debootstrap unshare=util-linux python3=python3 strip=binutils curl=curl \
    radosgw=radosgw ceph-mon=ceph-mon ceph-osd=ceph-osd ceph-mgr=ceph-mgr ceph=ceph-common \
    uuidgen=uuid-runtime pgrep=procps
work=$(mktemp -d)
base=${1:-$work/base}
finish() {
    containers_kill
    [[ ! -e $work/ceph ]] || "$repo/tests/servers/ceph.sh" stop "$work/ceph"
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

# A run that takes a second, and one that only a signal ends.
tiny=(--config quickstart --max_iters=40 --lr_decay_iters=40 --warmup_iters=5 --eval_interval=20
    --eval_iters=2)
long=(--config quickstart --max_iters=100000 --eval_interval=100000)

expect_status() {
    [[ $status -eq $2 ]] || {
        tail -n 30 "$1/output" >&2
        fail "$1: exit status $status, expected $2"
    }
}

mib() {
    du -s --apparent-size -m "$@" | awk '{ n += $1 } END { print n }'
}

make_base "$base"
say "a bare Debian"
ANNEAL_BIN=${ANNEAL_BIN:-$repo/target/release} "$repo/deploy/image/build.sh" "$work/parts" \
    2>"$work/build.log" || fail "$(<"$work/build.log")"
make_image "$base" "$work/parts" "$work/image"
# shellcheck disable=SC2034 # container_start reads it
image_root=$work/image
ours=$(mib "$work/image/usr/local") all=$(mib "$work/image")
say "the image: $all MiB, of which $ours are ours and the rest is Debian's"
[[ $ours -le $ours_mib_max ]] || fail "ours: $ours MiB, expected $ours_mib_max at most"
[[ $all -le $image_mib_max ]] || fail "the image: $all MiB, expected $image_mib_max at most"

container_start "$work/version" -- --version
container_wait "$container" 10
expect_status "$work/version" 0
grep -q '^agent ' "$work/version/output" || fail "--version: $(<"$work/version/output")"

# An argument that is no command of the agent's goes to the trainer, for any user.
container_start "$work/trainer" --user 4321 --read-only -- "${tiny[@]}"
container_wait "$container" 60
expect_status "$work/trainer" 0
grep -q '^step 40: train loss' "$work/trainer/output" || fail "the trainer alone did not train"
[[ $(stat -c %u "$work/trainer/volume/runs/quickstart") == 4321 ]] || fail "not its user's files"
say "trainer alone: user 4321, read-only root"

server=$("$repo/tests/servers/ceph.sh" start "$work/ceph")
eval "$server"
store=$ANNEAL_TEST_S3/image-check
secrets=()
for name in AWS_ENDPOINT_URL AWS_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    secrets+=(--env "$name=${!name}")
done
say "a real S3 server: $AWS_ENDPOINT_URL"

# agent NAME COMMAND...: in a fresh container, to its end.
agent() {
    local name=$1
    shift
    container_start "$work/$name" "${secrets[@]}" -- "$@"
    container_wait "$container" 60
}

port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
for variant in root user read-only; do
    options=()
    [[ $variant == root ]] || options+=(--user 1000)
    [[ $variant != read-only ]] || options+=(--read-only)
    dir=$work/$variant
    container_start "$dir" "${options[@]}" "${secrets[@]}" --env "AGENT_LISTEN=127.0.0.1:$port" \
        -- run --store "$store" --job "$variant" -- trainer "${long[@]}"
    running=$container
    until_said "$dir/output" '^iter 10:' 60
    # Process 1 is the switch that survives the agent; it has no rights that it needs not.
    [[ $(container_exec "$dir" cat /proc/1/comm) == agent ]] || fail "process 1 is no agent"
    rights=$(awk '/^(Uid|CapEff):/ { print $2 }' "/proc/$(<"$dir/pid")/status" | tr '\n' ' ')
    [[ $variant == root || $rights == "1000 0000000000000000 " ]] || fail "rights: $rights"
    container_healthy "$dir" || fail "$variant: the health check says no"
    # The agent proper is the switch's child.
    guarded=$(pgrep -P "$(<"$dir/pid")" -f under-guard)
    kill -STOP "$guarded"
    ! container_healthy "$dir" || fail "$variant: an agent that stands still counts as healthy"
    kill -CONT "$guarded"
    kill -TERM "$(<"$dir/pid")"
    container_wait "$running" 60
    expect_status "$dir" 12
    agent "verify-$variant" verify --store "$store" --job "$variant" --deep
    expect_status "$work/verify-$variant" 0
    say "$variant: trained, healthy, stopped by SIGTERM with 12, its checkpoint is in the bucket"
done

# The same job to its end, in a container that has nothing of the former.
agent resumed run --store "$store" --job user -- trainer "${tiny[@]}" --max_iters=60
expect_status "$work/resumed" 0
grep -qE 'has the lease: epoch 2, from' "$work/resumed/output" || fail "it did not resume"
say "another container finished the job"
! grep -q "$work" /proc/mounts || fail "mounts are left: $(grep "$work" /proc/mounts)"
