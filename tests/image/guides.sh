#!/usr/bin/env bash
# The commands of guides, as they stand there: every block marked ```sh ci, in order, in an empty
# folder, with `agent` and `trainer` in the path, STORE a bucket of a real S3 server, and JOB a job
# that an agent is at. Blocks marked ```sh account need one and are not run; no other mark is known.
#
#     tests/image/guides.sh          programs in ANNEAL_BIN (default: target/release)
#
# Needs root on Debian for the S3 server; takes a minute.
set -euo pipefail
# shellcheck source=tests/image/container.sh
. "$(dirname "${BASH_SOURCE[0]}")/container.sh"
need curl=curl radosgw=radosgw ceph-mon=ceph-mon ceph-osd=ceph-osd ceph-mgr=ceph-mgr \
    ceph=ceph-common uuidgen=uuid-runtime python3=python3
bin=$(realpath "${ANNEAL_BIN:-$repo/target/release}")
work=$(mktemp -d)
running=
finish() {
    [[ -z $running ]] || kill -KILL "$running" 2>/dev/null || true
    [[ ! -e $work/ceph ]] || "$repo/tests/servers/ceph.sh" stop "$work/ceph"
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

server=$("$repo/tests/servers/ceph.sh" start "$work/ceph")
eval "$server"
export STORE=${ANNEAL_TEST_S3%/*}/guides JOB=live AGENT_LISTEN=off AGENT_PROVIDER=local
export PATH=$bin:$PATH
mkdir "$work/live" "$work/here"
(
    cd "$work/live"
    exec agent run --store "$STORE" --job "$JOB" --ttl 10s -- trainer --config quickstart \
        --max_iters=1000000 --eval_interval=1000000 --checkpoint_minutes=0.05
) >"$work/live/output" 2>&1 &
running=$!
until_said "$work/live/output" 'published step' 120
for guide in data rented_gpu operations s3; do
    file=$repo/docs/guides/$guide.md
    ! grep -nE '^```sh' "$file" | grep -vE '```sh (ci|account)$' ||
        fail "$guide.md: an unknown mark"
    awk '/^```sh ci$/ { inside = 1; next } /^```$/ { inside = 0 } inside' "$file" >"$work/commands"
    [[ -s $work/commands ]] || continue
    (cd "$work/here" && bash -euxo pipefail "$work/commands") >"$work/said" 2>&1 || {
        tail -n 20 "$work/said" >&2
        fail "$guide.md: a command failed"
    }
    say "$guide.md: $(grep -c '^+ \(agent\|trainer\)' "$work/said") commands"
done
# The last command of operations.md was a drill.
status=0
wait "$running" || status=$?
running=
[[ $status -eq 12 ]] || fail "the drill: exit status $status, expected 12"
say "the drill preempted the live job"
