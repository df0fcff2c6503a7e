#!/usr/bin/env bash
# Once an account: the role that the machines get. Needs aws, envsubst and the right to make roles.
set -euo pipefail
cd "$(dirname "$0")"
: "${AGENT_STORE:?s3://bucket/prefix}" "${AWS_REGION:?}"
# Both versions of aws know this one.
export AWS_DEFAULT_REGION=$AWS_REGION

path=${AGENT_STORE#s3://}
BUCKET=${path%%/*}
PREFIX=${path#"$BUCKET"}
PREFIX=${PREFIX#/}
PREFIX=${PREFIX:+${PREFIX%/}/}
export BUCKET PREFIX

aws iam create-role --role-name anneal --assume-role-policy-document file://trust.json
# shellcheck disable=SC2016  # envsubst wants the names
aws iam put-role-policy --role-name anneal --policy-name anneal \
    --policy-document "$(envsubst '$BUCKET $PREFIX' <policy.json)"
aws iam create-instance-profile --instance-profile-name anneal
aws iam add-role-to-instance-profile --instance-profile-name anneal --role-name anneal
