#!/usr/bin/env bash
# Checks everything in deploy/ that can be checked without an account: deploy/check.sh [FOLDER...]
# Files against the providers' own schemas and clients; launches and containers for real, against
# fakes on loopback. Needs python3, jq, envsubst, PyPI, and target/release/{agent,trainer}, or
# ANNEAL_BIN for another folder of them. Installs below target/ only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$PWD/target/tools/deploy
wanted=$(sha256sum deploy/check/requirements.txt | cut -d' ' -f1)
if [[ $(cat "$tools/wanted" 2>/dev/null) != "$wanted" ]]; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q uv
    export SSL_CERT_FILE=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    uv=("$tools/bin/uv" pip install -q --python "$tools/bin/python" --cache-dir "$tools/cache")
    "${uv[@]}" -r deploy/check/requirements.txt
    # Its command line wants another version of click than SkyPilot does; its models want neither.
    "${uv[@]}" --no-deps lambda-ai-cloud-api-client==2.4.1
    rm -rf "$tools/cache"

    # Unpacked, not installed: cloud-init for its schema, sbatch for its parser.
    mkdir "$tools/debian"
    (
        cd "$tools/debian"
        apt-get download -qq cloud-init slurm-client slurm-wlm-basic-plugins 2>/dev/null || true
        for package in *.deb; do
            [[ ! -e $package ]] || dpkg -x "$package" .
        done
        rm -f ./*.deb
    )
    echo "$wanted" >"$tools/wanted"
fi

found() {
    find "$tools/debian" -path "$1" -print -quit
}
CLOUD_INIT_SCHEMA=$(found '*/schema-cloud-config-v1.json')
SBATCH=$(found '*/bin/sbatch')
SLURM_PLUGINS=$(dirname "$(found '*/libslurmfull.so')")
export CLOUD_INIT_SCHEMA SBATCH SLURM_PLUGINS
export VIRTUAL_ENV=$tools PATH=$tools/bin:$PATH PYTHONPYCACHEPREFIX=$PWD/target/pycache

rm -rf target/deploy-check
mkdir -p target/deploy-check
exec "$tools/bin/python" deploy/check/main.py "$@"
