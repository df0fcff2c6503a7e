#!/usr/bin/env bash
# All that has to be learnt on a GPU, in one script: what can be built without one is built here,
# and run there, where there is neither Rust nor a network. See bench/README.md.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dist=$root/dist/gpu
out=${OUT:-$root/bench/out}
stages=(conformance kernels engine)
run_s_max=60

usage() {
    cat <<TEXT
usage: bench/gpu.sh build           needs nvcc, no GPU: puts the programs into dist/gpu
       bench/gpu.sh run [STAGE...]  on the GPU machine; all stages if none is named
stages:
  conformance   what the wrappers of device.cuh do, against the recorded outputs
  kernels       every room's tests on the GPU; again under compute-sanitizer, if there is one
  engine        whole steps on the GPU against the CPU's engine, in every precision
environment:
  ANNEAL_CUDA_ARCHS   for build: the targets, such as 90 (default: all)
  OUT                 for run: the folder for logs and results (default: bench/out)
TEXT
}

fail() {
    echo "bench/gpu.sh: $*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------ build

build() {
    cd "$root"
    mkdir -p "$dist"
    cargo build --release -p trainer --features cuda
    strip -o "$dist/trainer" "${CARGO_TARGET_DIR:-target}/release/trainer"
    local package tests
    for package in kernels trainer; do
        tests=$(cargo test --release -p "$package" --features cuda --lib --no-run \
            --message-format=json-render-diagnostics | python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable"):
        print(message["executable"])')
        strip -o "$dist/$package-tests" "$tests"
    done
    describe_tree >"$dist/commit"
    du -h "$dist"/*
}

describe_tree() {
    git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown
}

# -------------------------------------------------------------------------------------------- run

# Rows of the table: stage, what, passed, failed, seconds, verdict, between tabs.
rows=()
failed=0

row() {
    rows+=("$(printf '%s\t%s\t%s\t%s\t%s\t%s' "$@")")
    [[ $6 == ok || $6 == skipped* ]] || failed=1
}

# A JSON string of the argument.
quote() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# Runs tests of the kernels on the GPU: stage, what, name of log and result, then the command.
# The program prints `test NAME ... ok` for each test and `test result: ...` at the end.
tests() {
    local stage=$1 what=$2 name=$3
    shift 3
    local log=$out/$name.log status=0 start=$EPOCHREALTIME
    echo "== $stage: $what"
    ANNEAL_TEST_DEVICE=cuda ANNEAL_CONFORMANCE_OUT=$out/$name \
        timeout --kill-after=10 "$run_s_max" "$@" --test-threads=1 >"$log" 2>&1 || status=$?
    local seconds passed broken verdict=ok
    seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    passed=$(grep -c '^test .* ok$' "$log" || true)
    broken=$(grep -c '^test .* FAILED$' "$log" || true)
    if [[ $status -eq 124 || $status -eq 137 ]]; then
        verdict="stopped after $run_s_max s"
    elif [[ $status -ne 0 ]]; then
        verdict="FAILED ($status)"
    elif [[ $passed -eq 0 ]]; then
        verdict="FAILED (no test ran)"
    fi
    [[ $verdict == ok ]] || grep -vE '^test .* ok$|^ +at |^ +[0-9]+: ' "$log" | tail -n 30
    {
        printf '{"stage": "%s", "what": "%s", "seconds": %s, ' "$stage" "$what" "$seconds"
        printf '"commit": %s, "device": %s, ' "$(quote "$commit")" "$(quote "$device")"
        printf '"passed": %s, "failed": %s, "status": %s, ' "$passed" "$broken" "$status"
        printf '"verdict": %s}\n' "$(quote "$verdict")"
    } >"$out/$name.json"
    row "$stage" "$what" "$passed" "$broken" "$seconds" "$verdict"
    [[ $verdict == ok ]]
}

stage_conformance() {
    tests conformance "recorded outputs" conformance "$dist/kernels-tests" conformance:: ||
        echo "the GPU's outputs, to become kernels/src/conformance/golden/outputs.txt if they are" \
            "right: $out/conformance/outputs.txt"
}

# Tests that run on a device have `cuda` in their path.
stage_kernels() {
    tests kernels "device" kernels-device "$dist/kernels-tests" \
        conformance::tests::device_is_the_one || return 0
    tests kernels "tests" kernels "$dist/kernels-tests" cuda || true
    local sanitizer tool
    if ! sanitizer=$(find_tool compute-sanitizer); then
        row kernels compute-sanitizer - - - "skipped: not found"
        return
    fi
    for tool in memcheck racecheck; do
        tests kernels "$tool" "kernels-$tool" "$sanitizer" --tool "$tool" --error-exitcode 99 \
            "$dist/kernels-tests" cuda || true
    done
}

stage_engine() {
    tests engine "device" engine-device "$dist/trainer-tests" engine::tests::device || true
    tests engine "contract" engine-contract "$dist/trainer-tests" on_cuda || true
}

find_tool() {
    command -v "$1" && return
    local home place
    for home in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda; do
        for place in "$home/bin/$1" "$home/compute-sanitizer/$1"; do
            [[ -x $place ]] && echo "$place" && return
        done
    done
    return 1
}

run() {
    local stage
    for stage in "$@"; do
        [[ " ${stages[*]} " == *" $stage "* ]] ||
            fail "no stage \`$stage\`, expected some of: ${stages[*]}"
    done
    local program
    for program in kernels-tests trainer-tests; do
        [[ -x $dist/$program ]] || fail "$dist/$program is missing: run bench/gpu.sh build"
    done
    mkdir -p "$out"
    commit=$(<"$dist/commit")
    device=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader \
        2>/dev/null | head -n 1) || device="no GPU that nvidia-smi knows"
    [[ $# -gt 0 ]] || set -- "${stages[@]}"
    for stage in "$@"; do
        "stage_$stage"
    done
    {
        printf '\n%s, commit %s\n\n' "$device" "$commit"
        printf '%s\n' $'stage\twhat\tpassed\tfailed\tseconds\tverdict' "${rows[@]}" |
            awk -F '\t' '{ printf "%-12s %-18s %6s %6s %8s  %s\n", $1, $2, $3, $4, $5, $6 }'
    } | tee "$out/summary.txt"
    exit "$failed"
}

case ${1:-} in
    build) [[ $# -eq 1 ]] || fail "build takes no arguments"
        build ;;
    run) shift
        run "$@" ;;
    -h | --help) usage ;;
    *) usage >&2
        exit 2 ;;
esac
