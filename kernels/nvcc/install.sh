#!/usr/bin/env bash
# Installs NVIDIA's CUDA compiler 13.0 and the tools that read what it makes (cuobjdump, nvdisasm)
# from PyPI into one folder: no driver, no GPU, no root. Does nothing if they are there already.
#
#     kernels/nvcc/install.sh [FOLDER]        default: target/nvcc, where kernels/build.rs looks
#
# Needs python3 with venv, and a C++ compiler for nvcc to call (gcc 15 or older).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/target/nvcc}

# cuobjdump and nvdisasm have no 13.0 release; 13.2's read what 13.0 writes. cuda_fp16.h includes
# cccl's nv/target.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.51
    nvidia-cuda-nvdisasm==13.2.51
)

installed=$folder/installed
if [[ -f $installed && $(<"$installed") == "${packages[*]}" ]]; then
    echo "already installed: $folder/cuda"
else
    rm -f "$installed"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: "${packages[@]}"
    # The one place that later commands name, whatever Python's version is called.
    top=("$folder"/lib/python3*/site-packages/nvidia/cu13)
    ln -sfn "${top[0]#"$folder"/}" "$folder/cuda"
    for tool in nvcc ptxas fatbinary cuobjdump nvdisasm; do
        "$folder/cuda/bin/$tool" --version >/dev/null || {
            echo "$folder/cuda/bin/$tool does not run: expected it from ${packages[*]}" >&2
            exit 1
        }
    done
    echo "${packages[*]}" >"$installed"
    echo "installed: $folder/cuda"
fi

if [[ $folder -ef $root/target/nvcc ]]; then
    echo "use it:    cargo build --release -p kernels --features cuda"
else
    echo "use it:    CUDA_HOME=$folder/cuda cargo build --release -p kernels --features cuda"
fi
