#!/usr/bin/env bash
# One machine of Lambda's that trains the job, and ends itself: launch.sh TYPE REGION SSH-KEY
# Needs curl, jq and envsubst.
set -euo pipefail
cd "$(dirname "$0")"
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}" "${LAMBDA_API_KEY:?}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"

# The machine does not know its own id; the agent finds it by this name.
NAME=anneal-$(od -An -N6 -tx1 /dev/urandom | tr -d ' ')
export NAME
# shellcheck disable=SC2016  # envsubst wants the names
user_data=$(envsubst '$NAME $LAMBDA_API_KEY $ANNEAL_IMAGE $AGENT_STORE $AGENT_JOB $AGENT_TOKEN
    $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_REGION' <cloud-init.yaml)
jq -n --arg type "$1" --arg region "$2" --arg key "$3" --arg name "$NAME" \
    --arg user_data "$user_data" '{
        instance_type_name: $type, region_name: $region, ssh_key_names: [$key],
        name: $name, user_data: $user_data
    }' |
    curl -fsS https://cloud.lambda.ai/api/v1/instance-operations/launch \
        -H "Authorization: Bearer $LAMBDA_API_KEY" -H 'Content-Type: application/json' -d @-
