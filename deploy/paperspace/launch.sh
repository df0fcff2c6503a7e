#!/usr/bin/env bash
# One machine of Paperspace's that trains the job, and deletes itself:
# launch.sh TYPE TEMPLATE REGION
# Needs curl, jq and ssh. TEMPLATE: one with Docker and NVIDIA's container toolkit, as
# https://api.paperspace.com/v1/os-templates lists them.
set -euo pipefail
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}"
: "${PAPERSPACE_API_KEY:?}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"

api() {
    curl -fsS "https://api.paperspace.com/v1/$1" \
        -H "Authorization: Bearer $PAPERSPACE_API_KEY" "${@:2}"
}
# autoShutdown is Paperspace's own limit, above the agent's.
machine=$(jq -n --arg type "$1" --arg template "$2" --arg region "$3" --arg name "anneal" '{
        name: $name, machineType: $type, templateId: $template, region: $region, diskSize: 50,
        publicIpType: "dynamic", startOnCreate: true,
        autoShutdownEnabled: true, autoShutdownTimeout: 7
    }' | api machines -X POST -H 'Content-Type: application/json' -d @-)
id=$(jq -er '.data.id // .id' <<<"$machine")
echo "machine $id"
# Until the agent has the machine, nobody else would end it.
trap 'api "machines/$id" -X DELETE' ERR

address=null
for _ in {1..60}; do
    address=$(api "machines/$id" | jq -r .publicIp)
    [[ $address == null ]] || break
    sleep 10
done
env=(-e "AGENT_PROVIDER=paperspace" -e "AGENT_INSTANCE_ID=$id" -e "AGENT_LISTEN=0.0.0.0:8080")
for name in PAPERSPACE_API_KEY AGENT_STORE AGENT_JOB AGENT_TOKEN \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION; do
    env+=(-e "$name=${!name}")
done
# ssh joins its words with spaces: quote them for the shell at the other end.
printf -v command '%q ' docker run -d --restart on-failure --gpus all -p 127.0.0.1:8080:8080 \
    "${env[@]}" "$ANNEAL_IMAGE" \
    run --max-wall 6h --budget 5 -- trainer --config=shakespeare_char
ssh -o StrictHostKeyChecking=accept-new -o ConnectionAttempts=30 "paperspace@$address" "$command"
