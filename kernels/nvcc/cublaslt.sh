#!/usr/bin/env bash
# Holds kernels/src/cuda/cublaslt to NVIDIA's cuBLASLt without a GPU: installs the library and its
# headers from PyPI into one folder (580 MB to download, once), then runs that room's tests on them.
#
#     kernels/nvcc/cublaslt.sh [FOLDER] [CARGO'S OPTIONS...]       default: target/cublaslt
#
# Needs python3 with venv, a C++ compiler, and what install.sh has installed: the headers of the
# runtime, which those of cuBLASLt include.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(realpath -m "${1:-$root/target/cublaslt}")
package=nvidia-cublas-cu12==12.9.3.13

if [[ ! -f $folder/installed || $(<"$folder/installed") != "$package" ]]; then
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-cache-dir \
        --only-binary=:all: "$package"
    echo "$package" >"$folder/installed"
fi
wheel=("$folder"/lib/python3*/site-packages)
headers=${CUDA_HOME:-$root/target/nvcc/cuda}/include
[[ -f $headers/driver_types.h ]] || {
    echo "$headers/driver_types.h is missing: run kernels/nvcc/install.sh, or set CUDA_HOME" >&2
    exit 1
}
cd "$root"
ANNEAL_CUBLASLT_WHEEL=${wheel[0]} ANNEAL_CUDA_HEADERS=$headers \
    cargo test --release -p kernels "${@:2}" --lib -- cuda::cublaslt
