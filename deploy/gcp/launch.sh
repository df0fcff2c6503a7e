#!/usr/bin/env bash
# One spot machine of Google's that trains the job, and deletes itself. Needs gcloud, with a project
# and a zone configured; any flag of `gcloud compute instances create` may follow.
set -euo pipefail
cd "$(dirname "$0")"
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_REGION:?}"
: "${AGENT_PRICE:?dollars an hour that the machine costs: Google does not tell it}"

env=$(mktemp)
trap 'rm -f "$env"' EXIT
echo "AGENT_LISTEN=0.0.0.0:8080" >"$env"
for name in AGENT_STORE AGENT_JOB AGENT_TOKEN AGENT_PRICE \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION AWS_ENDPOINT_URL; do
    [[ -z ${!name:-} ]] || echo "$name=${!name}" >>"$env"
done
# --max-run-duration is Google's own limit, above the agent's: at its end the machine is deleted.
gcloud compute instances create "anneal-$(date +%s)" \
    --machine-type=g2-standard-4 \
    --image-family=ubuntu-accelerator-2204-amd64-with-nvidia-580 \
    --image-project=ubuntu-os-accelerator-images \
    --boot-disk-size=60GB \
    --provisioning-model=SPOT \
    --instance-termination-action=DELETE \
    --max-run-duration=7h \
    --maintenance-policy=TERMINATE \
    --scopes=compute-rw \
    --metadata="anneal-image=$ANNEAL_IMAGE" \
    --metadata-from-file="startup-script=startup.sh,anneal-env=$env" \
    "$@"
