#!/usr/bin/env bash
# The cheapest machine of Vast's that fits, rented for the job: launch.sh [QUERY [BID]]
# With BID, dollars an hour, it is interruptible. Needs vastai (pip install vastai) and jq.
set -euo pipefail
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"

query=${1:-gpu_name=RTX_4090 num_gpus=1 cuda_vers>=12.8 reliability>0.98 disk_space>40}
kind=on-demand
bid=()
if [[ -n ${2:-} ]]; then
    kind=bid
    bid=(--bid_price "$2")
fi
offer=$(vastai search offers "$query" --type "$kind" --order dph_total --raw | jq -er '.[0].id')

env="-p 8080:8080 -e AGENT_LISTEN=0.0.0.0:8080"
for name in AGENT_STORE AGENT_JOB AGENT_TOKEN \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION; do
    env+=" -e $name=${!name}"
done
# `vastai` takes no "--" among --args, so a shell holds the command; exec makes the agent the
# container's first process all the same.
vastai create instance "$offer" --image "$ANNEAL_IMAGE" --label "anneal-$AGENT_JOB" --disk 40 \
    --cancel-unavail "${bid[@]}" --env "$env" --entrypoint bash \
    --args -c 'exec agent run --max-wall 6h --budget 2 -- trainer --config=shakespeare_char'
