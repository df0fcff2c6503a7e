#!/usr/bin/env bash
# Times the agent's publish and restore of a checkpoint against boto3 and the aws cli on a Ceph
# server on this machine, in turn; and a trainer's steps while one is published. See
# bench/README.md.
set -euo pipefail

usage() {
    cat <<TEXT
usage: bench/upload.sh transfer|steps [options]
  --rounds N      alternations (default: 3; of transfer)
  --bytes N       size of the checkpoint (default: 2147483648; of transfer)
  --clients LIST  of agent,boto3,boto3-default,aws (default: all; of transfer)
  --saves N       checkpoints of the run (default: 3; of steps)
  --folder        publish to a folder in memory instead of Ceph, so that no server shares the
                  processors (of steps)
  --realtime      run server and clients before any other process (needs root)
  --json FILE     append every figure to FILE
environment: PEER_PYTHON, the python of a venv that has boto3 and awscli (default: python3);
AGENT and TRAINER, the programs (default: built here)
TEXT
}

fail() {
    echo "bench/upload.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PEER_PYTHON:-python3}
action=${1:-}
prefix=()
folder=
rounds=3
json=
case $action in
    -h | --help) usage && exit 0 ;;
    transfer) words=(--bytes=2147483648) ;;
    steps) words=(--saves=3) rounds=1 ;;
    *) usage >&2 && exit 64 ;;
esac
shift
while [[ $# -gt 0 ]]; do
    case $1 in
        --folder) folder=1 && shift ;;
        --realtime) prefix=(chrt -r 20) && shift ;;
        --rounds=*) rounds=${1#*=} && shift ;;
        --rounds) rounds=$2 && shift 2 ;;
        --json=*) json=${1#*=} && shift ;;
        --json) json=$2 && shift 2 ;;
        --*=*) words+=("$1") && shift ;;
        --*) words+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
        *) fail "unknown word $1 (see --help)" ;;
    esac
done
[[ -z $folder || $action == steps ]] || fail "--folder: expected with steps, got $action"

"$python" -c 'import boto3, awscli' ||
    fail "$python lacks the peers: python3 -m venv ~/peer && ~/peer/bin/pip install boto3 awscli," \
        "then PEER_PYTHON=~/peer/bin/python"
target=${CARGO_TARGET_DIR:-$root/target}/release
if [[ -z ${AGENT:-} ]]; then
    cargo build --release -p agent --manifest-path "$root/Cargo.toml" >&2
fi
words+=("--agent=${AGENT:-$target/agent}")
if [[ $action == steps ]]; then
    if [[ -z ${TRAINER:-} ]]; then
        cargo build --release -p trainer --manifest-path "$root/Cargo.toml" >&2
    fi
    words+=("--trainer=${TRAINER:-$target/trainer}")
fi

# Memory, so that no disk is measured: up to five times the checkpoint, the server's share included.
work=$(mktemp -d /dev/shm/upload.XXXXXX)
server=$work/ceph
stop() {
    [[ ! -e $server ]] || "$root/tests/servers/ceph.sh" stop "$server"
}
trap 'stop; rm -rf "$work"' EXIT
processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
read -r load _ </proc/loadavg
echo "device: ${processor:-unknown processor}, $(nproc) threads, load $load before the start" >&2
for ((round = 0; round < rounds; round++)); do
    echo "round $((round + 1)) of $rounds" >&2
    # A server of its own for each: Ceph frees what was deleted late, and memory is all that it has.
    here=(--work="$work" --json="$work/rows")
    if [[ -n $folder ]]; then
        export ANNEAL_TEST_S3=$work/store
    else
        environment=$("${prefix[@]}" "$root/tests/servers/ceph.sh" start "$server")
        eval "$environment"
        here+=(--after="radosgw-admin -c $server/ceph.conf gc process --include-all")
    fi
    [[ $action == steps ]] || here+=(--round="$round")
    "${prefix[@]}" "$python" "$root/bench/upload.py" "$action" "${words[@]}" "${here[@]}"
    stop
done
[[ -z $json ]] || cat "$work/rows" >>"$json"
[[ $action == steps ]] || "$python" "$root/bench/upload.py" table --json="$work/rows"
