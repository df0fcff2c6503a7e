#!/usr/bin/env bash
# What Google's machine does at every boot, as root: one container, then the end of the machine.
set -uo pipefail

ask() {
    curl -fsS -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/$1"
}
# The agent deletes the machine. If it cannot, or the image cannot be had, the machine goes off, and
# only its disk costs money.
trap 'shutdown -h now' EXIT

if ! command -v nvidia-ctk >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    key=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
    from=https://nvidia.github.io/libnvidia-container
    curl -fsSL "$from/gpgkey" | gpg --dearmor -o "$key"
    curl -fsSL "$from/stable/deb/nvidia-container-toolkit.list" |
        sed "s#deb https://#deb [signed-by=$key] https://#" \
            >/etc/apt/sources.list.d/nvidia-container-toolkit.list
    apt-get update -qq
    apt-get install -qq docker.io nvidia-container-toolkit
    nvidia-ctk runtime configure --runtime=docker
    systemctl restart docker
fi
umask 077
ask instance/attributes/anneal-env >/etc/anneal.env
image=$(ask instance/attributes/anneal-image)
docker run --rm --gpus all -p 8080:8080 --env-file /etc/anneal.env "$image" \
    run --max-wall 6h --budget 5 --grace 25s -- trainer --config=shakespeare_char
