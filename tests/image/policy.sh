#!/usr/bin/env bash
# The policy of docs/guides/s3.md: enough for the agent, too little for anything else. A real agent
# runs a job, is preempted, resumes, prunes and is looked at through a gate (policy.py) that
# enforces the policy as AWS documents it, in front of a real S3 server; then what it forbids is tried.
#
#     tests/image/policy.sh          programs in ANNEAL_BIN (default: target/release)
#
# What was proven is therefore the policy against documentation, not against AWS. Needs root on
# Debian; takes half a minute.
set -euo pipefail
# shellcheck source=tests/image/container.sh
. "$(dirname "${BASH_SOURCE[0]}")/container.sh"
need curl=curl radosgw=radosgw ceph-mon=ceph-mon ceph-osd=ceph-osd ceph-mgr=ceph-mgr \
    ceph=ceph-common uuidgen=uuid-runtime python3=python3
bin=$(realpath "${ANNEAL_BIN:-$repo/target/release}")
work=$(mktemp -d)
gate='' first=''
finish() {
    [[ -z $first ]] || kill -KILL "$first" 2>/dev/null || true
    [[ -z $gate ]] || kill "$gate" 2>/dev/null || true
    [[ ! -e $work/ceph ]] || "$repo/tests/servers/ceph.sh" stop "$work/ceph"
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

server=$("$repo/tests/servers/ceph.sh" start "$work/ceph")
eval "$server"
name=${ANNEAL_TEST_S3#s3://}
name=${name%%/*}
# The page's only block of JSON, with this bucket's name.
awk '/^```json$/ { inside = 1; next } /^```$/ { inside = 0 } inside' "$repo/docs/guides/s3.md" |
    sed "s/BUCKET/$name/g" >"$work/policy.json"
python3 "$repo/tests/image/policy.py" "$work/policy.json" "$name" "$AWS_ENDPOINT_URL" \
    >"$work/gate" &
gate=$!
until_said "$work/gate" '^[0-9]+$' 20
direct=$AWS_ENDPOINT_URL
AWS_ENDPOINT_URL=http://127.0.0.1:$(head -n 1 "$work/gate")
store=s3://$name/jobs

agent() {
    "$bin/agent" "$@" >>"$work/output" 2>&1
}
run=(run --store "$store" --provider local --listen off --keep-last 2)
tiny=("$bin/trainer" --config quickstart --max_iters=60 --lr_decay_iters=60 --warmup_iters=5
    --eval_interval=10 --eval_iters=1)
agent probe-store "$store" || fail "probe-store: $(tail -n 5 "$work/output")"
agent "${run[@]}" --job j --run-dir "$work/one" -- "${tiny[@]}" ||
    fail "$(tail -n 5 "$work/output")"
status=0
"$bin/agent" "${run[@]}" --job k --run-dir "$work/two" -- "${tiny[@]}" --max_iters=100000 \
    >>"$work/output" 2>&1 &
first=$!
until_said "$work/two/events.jsonl" '"step":30' 60
kill -TERM "$first"
wait "$first" || status=$?
first=
[[ $status -eq 12 ]] || fail "preempted: exit status $status, expected 12"
agent "${run[@]}" --job k --run-dir "$work/three" -- "${tiny[@]}" --max_iters=400 ||
    fail "resumed: $(tail -n 5 "$work/output")"
for look in "verify --deep" status logs artifacts; do
    read -ra words <<<"$look"
    agent "${words[@]}" --store "$store" --job k || fail "$look: $(tail -n 5 "$work/output")"
done
# Whether the bucket is there it asks only for a better word, and takes a no for an answer.
grep 'denied\|by nothing' "$work/gate" |
    grep -v '^HEAD [^ ]* s3:ListBucket ' >"$work/refused" || true
[[ ! -s $work/refused ]] || fail "the agent was refused: $(head -n 5 "$work/refused")"
for action in ListBucket GetObject PutObject DeleteObject; do
    grep -q "s3:$action allowed" "$work/gate" || fail "the agent never asked for s3:$action"
done
say "the agent: $(grep -c ' allowed$' "$work/gate") requests, all allowed"

# ask STATUS METHOD KEY [HEADER]: the gate's answer to somebody with the agent's credentials.
ask() {
    local got body=()
    [[ $2 != PUT ]] || body=(--data-binary x)
    got=$(curl --silent --noproxy '*' --aws-sigv4 "aws:amz:$AWS_REGION:s3" \
        --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" --output /dev/null "${body[@]}" \
        --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' ${4:+--header "$4"} \
        --write-out '%{http_code}' --request "$2" "$endpoint/$3")
    [[ $got == "$1" ]] || fail "$2 $3 ${4:-}: $got, expected $1"
}
endpoint=$AWS_ENDPOINT_URL
commit=$(grep -oE "jobs/k/commit/[^ ]+" "$work/gate" | tail -n 1)
for key in jobs/k/lease/00000001.json jobs/k/lease/00000001.released.json \
    jobs/k/final/00000002.json "$commit" jobs/sweeps/s/budget/00000001.json jobs/sweeps/s/trials/t/lease/00000001.json; do
    ask 403 PUT "$name/$key"
done
ask 412 PUT "$name/jobs/k/lease/00000001.json" 'If-None-Match: *'
ask 403 DELETE "$name/jobs/k/lease/00000001.json"
ask 403 DELETE "$name/jobs/k/final/00000002.json"
ask 200 PUT "$name/jobs/k/lease/00000001.beat.json"
ask 403 PUT "$name/elsewhere"
ask 403 GET "$name/elsewhere"
ask 403 GET "$name?list-type=2"
ask 403 DELETE "$name"
# It is the gate that refuses: the server alone would have let the lease be overwritten.
endpoint=$direct
ask 200 PUT "$name/jobs/k/lease/00000001.json"
say "overwriting, deleting and looking elsewhere: refused"
