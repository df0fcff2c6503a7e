#!/usr/bin/env bash
# One spot machine that trains the job, and ends itself. Prints its id. After setup.sh.
# Needs aws and envsubst; another type of machine: --instance-type g6.xlarge, and any other flag of
# `aws ec2 run-instances`.
set -euo pipefail
cd "$(dirname "$0")"
: "${ANNEAL_IMAGE:?}" "${AGENT_STORE:?}" "${AGENT_JOB:?}" "${AGENT_TOKEN:?}" "${AWS_REGION:?}"
: "${AGENT_PRICE:?dollars an hour that the machine costs: EC2 does not tell it}"
# Both versions of aws know this one.
export AWS_DEFAULT_REGION=$AWS_REGION

# shellcheck disable=SC2016  # envsubst wants the names
USER_DATA=$(envsubst '$ANNEAL_IMAGE $AGENT_STORE $AGENT_JOB $AGENT_TOKEN $AGENT_PRICE' \
    <cloud-init.yaml | base64 | tr -d '\n')
export USER_DATA
# shellcheck disable=SC2016
data=$(envsubst '$USER_DATA $AGENT_JOB' <launch-template.json)

name=anneal
template=(--launch-template-name "$name" --launch-template-data "$data")
version=$(aws ec2 create-launch-template-version "${template[@]}" \
    --query LaunchTemplateVersion.VersionNumber --output text 2>/dev/null ||
    aws ec2 create-launch-template "${template[@]}" \
        --query LaunchTemplate.LatestVersionNumber --output text)
aws ec2 run-instances --launch-template "LaunchTemplateName=$name,Version=$version" "$@" \
    --query 'Instances[0].InstanceId' --output text
