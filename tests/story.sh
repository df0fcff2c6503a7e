#!/usr/bin/env bash
# The whole story, on this machine alone: rented machines that run the image, a bucket, a
# preemption, a budget, the results. What is not real is said: the machines are containers made of Linux's own
# tools (tests/image/container.sh), and the two providers that they are given back to are
# tests/image/providers.py. The bucket is a real S3 server (tests/servers/ceph.sh).
#
#     cargo build --release -p agent -p trainer && sudo tests/story.sh [FOLDER]
#
# FOLDER (default: a new one, removed at the end) keeps the bare Debian for the next time. Needs
# root on Debian, 2 GB of disk; takes 4 minutes on 2 cores. Programs come from ANNEAL_BIN (default:
# target/release).
set -euo pipefail
# shellcheck source=tests/image/container.sh
. "$(dirname "${BASH_SOURCE[0]}")/image/container.sh"

need debootstrap=debootstrap unshare=util-linux python3=python3 strip=binutils curl=curl \
    radosgw=radosgw ceph-mon=ceph-mon ceph-osd=ceph-osd ceph-mgr=ceph-mgr ceph=ceph-common \
    uuidgen=uuid-runtime pgrep=procps
work=$(mktemp -d)
base=${1:-$work/base}
providers=
finish() {
    local status=$?
    containers_kill
    [[ -z $providers ]] || kill "$providers" 2>/dev/null || true
    [[ ! -e $work/ceph ]] || "$repo/tests/servers/ceph.sh" stop "$work/ceph"
    rm -rf "$work"
    [[ $status -eq 0 ]] || echo "the story ended badly"
}
trap finish EXIT
trap 'exit 130' INT TERM

expect() {
    grep -qE "$2" "$work/$1/output" || {
        tail -n 40 "$work/$1/output" >&2
        fail "$1: expected a line like: $2"
    }
}

# ended MACHINE STATUS SECONDS: waits for the machine's end, and for that it ended so.
ended() {
    container_wait "$container" "$3"
    [[ $status -eq $2 ]] || {
        tail -n 40 "$work/$1/output" >&2
        fail "$1: exit status $status, expected $2"
    }
}

# machine NAME ARGUMENT...: a rented machine starts the image. What providers set in a container is
# in `rented`; of the tenant's there are the bucket's credentials.
machine() {
    local name=$1
    shift
    container_start "$work/$name" "${bucket[@]}" "${rented[@]}" --env AGENT_LISTEN=off -- "$@"
}

on_vast() {
    rented=(--env CONTAINER_ID="$1" --env VAST_CONTAINERLABEL="C.$1"
        --env CONTAINER_API_KEY="the-machine's-own-key" --env AGENT_VAST_URL="$api/vast")
}

on_runpod() {
    rented=(--env RUNPOD_POD_ID="$1" --env RUNPOD_API_KEY="the-machine's-own-key"
        --env AGENT_RUNPOD_V2_URL="$api/runpod")
}

at_home() {
    rented=(--env AGENT_PROVIDER=local)
}

given_back() {
    until_said "$work/providers" "^$1 given back$" 20
}

# The tenant's laptop: any of the image's commands, and what it prints.
laptop() {
    at_home
    looks=$((looks + 1))
    machine "laptop$looks" "$@"
    ended "laptop$looks" 0 60
    cat "$work/laptop$looks/output"
}
looks=0

# fetch JOB FOLDER: the last checkpoint of a quickstart, as the laptop brings it home.
fetch() {
    laptop artifacts get checkpoints/step_0000001500 --store "$store" --job "$1"
    mv "$work/laptop$looks/volume/step_0000001500" "$2"
}

make_base "$base"
ANNEAL_BIN=${ANNEAL_BIN:-$repo/target/release} "$repo/deploy/image/build.sh" "$work/parts" \
    2>"$work/build.log" || fail "$(<"$work/build.log")"
make_image "$base" "$work/parts" "$work/image"
# shellcheck disable=SC2034 # container_start reads it
image_root=$work/image
say "the image is made"

server=$("$repo/tests/servers/ceph.sh" start "$work/ceph")
eval "$server"
store=${ANNEAL_TEST_S3%/*}/story
bucket=()
for name in AWS_ENDPOINT_URL AWS_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    bucket+=(--env "$name=${!name}")
done
python3 "$repo/tests/image/providers.py" >"$work/providers" &
providers=$!
until_said "$work/providers" '^[0-9]+$' 20
api=http://127.0.0.1:$(head -n 1 "$work/providers")
laptop probe-store "$store" | tail -n 1
say "there is a bucket: $store at $AWS_ENDPOINT_URL"

# 1. The quickstart on a rented machine, from the first step to the last. The same job, started at
# another provider too: the first has it, and the other machine is given back before it trains.
train=(run --store "$store" --terminate destroy)
on_vast 1001
machine first "${train[@]}" --job calm -- trainer --config quickstart
first=$container
until_said "$work/first/output" 'has the lease: epoch 1' 60
on_runpod pod1
machine rival "${train[@]}" --job calm -- trainer --config quickstart
ended rival 13 60
! grep -q '^iter ' "$work/rival/output" || fail "the rival trained"
given_back 'runpod pod1'
say "RunPod's pod1 came second to the same job and was given back"
container=$first
ended first 0 900
expect first 'validation loss [0-9.]+ reached'
given_back 'vast 1001'
say "Vast's machine 1001 trained to the end and was given back"

# 2. The same once more, but the machine is taken away in the middle...
on_vast 1002
machine second "${train[@]}" --job stormy -- trainer --config quickstart
until_said "$work/second/output" '^iter [5-9][0-9]0:' 600
kill -TERM "$(<"$work/second/pid")"
ended second 12 60
say "Vast's machine 1002 was taken: $(grep '^stopped at' "$work/second/output" | cut -d' ' -f1-4)"

# 3. ...and another, of another provider, with nothing of the first, goes on.
on_runpod pod3
machine third "${train[@]}" --job stormy -- trainer --config quickstart
ended third 0 900
expect third 'has the lease: epoch 2, from'
expect third 'validation loss [0-9.]+ reached'
given_back 'runpod pod3'
fetch calm "$work/calm"
fetch stormy "$work/stormy"
for file in model.safetensors optimizer.safetensors; do
    cmp "$work/calm/$file" "$work/stormy/$file" || fail "$file: not the same bits"
done
say "RunPod's pod3 finished; weights and moments are, bit for bit, those of the calm run"
laptop verify --store "$store" --job stormy --deep | tail -n 1

# 4. A job that would cost more than it may. It ends early enough to save and upload, for which as
# long as half the budget is kept free before either was measured.
at_home
machine fourth run --store "$store" --job dear --price 720 --budget 16 -- \
    trainer --config quickstart --max_iters=100000 --eval_interval=100000
ended fourth 14 120
laptop status --store "$store" --job dear --json >"$work/status.json"
python3 - "$work/status.json" <<'PYTHON'
import json, sys

status = json.load(open(sys.argv[1], encoding="utf-8"))
cost, step = status["cost_so_far"], status["checkpoint"]["step"]
if not 0 < cost <= 16:
    sys.exit(f"the job cost {cost} dollars, expected at most 16")
if not step:
    sys.exit("the job left no checkpoint")
print(f"        it cost {cost:.2f} of 16 dollars, and step {step} is in the bucket")
PYTHON
say "the budget of the job ended it, with a checkpoint"

# 5. The results, at home.
mkdir -p "$work/results/volume/run/checkpoints/step_0000001500"
cp "$work"/stormy/*.* "$work/results/volume/run/checkpoints/step_0000001500/"
at_home
machine results sample --out_dir=run --num_samples=1 --max_new_tokens=80 --start=a
ended results 0 60
expect results '[a-z]{2,}'
say "a sample of what was learned: $(tail -n 2 "$work/results/output" | head -n 1 | cut -c 1-60)"
! grep -q "$work" /proc/mounts || fail "mounts are left"
