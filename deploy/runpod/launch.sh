#!/usr/bin/env bash
# One pod of RunPod's that trains the job, and terminates itself. Needs curl and envsubst.
set -euo pipefail
cd "$(dirname "$0")"
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}" "${RUNPOD_API_KEY:?}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"

# shellcheck disable=SC2016  # envsubst wants the names
envsubst '$ANNEAL_IMAGE $AGENT_STORE $AGENT_JOB $AGENT_TOKEN
    $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_REGION' <pod.json |
    curl -fsS https://api.runpod.io/v2/pods -H "Authorization: Bearer $RUNPOD_API_KEY" \
        -H 'Content-Type: application/json' -d @-
