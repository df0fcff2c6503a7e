#!/usr/bin/env bash
# One virtual machine of JarvisLabs' that trains the job, and destroys itself: launch.sh [GPU]
# Needs jl (pip install jarvislabs), an SSH key registered there, and jq.
set -euo pipefail
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}" "${JL_API_KEY:?}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"
: "${AGENT_PRICE:?dollars an hour that the machine costs: JarvisLabs does not tell it}"

id=$(jl create --vm --gpu "${1:-L4}" --name anneal --yes --json | jq -er .machine_id)
echo "machine $id"
# Until the agent has the machine, nobody else would end it.
trap 'jl destroy "$id" --yes' ERR

# The machine is not told its id, nor whose it is.
env=(-e "AGENT_PROVIDER=jarvislabs" -e "AGENT_INSTANCE_ID=$id" -e "AGENT_LISTEN=0.0.0.0:8080")
for name in JL_API_KEY AGENT_STORE AGENT_JOB AGENT_TOKEN AGENT_PRICE \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION; do
    env+=(-e "$name=${!name}")
done
jl exec "$id" -- docker run -d --restart on-failure --gpus all -p 127.0.0.1:8080:8080 \
    "${env[@]}" "$ANNEAL_IMAGE" \
    run --max-wall 6h --budget 5 -- trainer --config=shakespeare_char
