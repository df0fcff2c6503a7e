#!/usr/bin/env bash
# All that has to be learnt on a GPU, in one script: what can be built without one is built here,
# and run there, where there is neither Rust nor a network. See bench/README.md.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dist=${DIST:-$root/dist/gpu}
out=${OUT:-$root/bench/out}
stages=(conformance kernels parity ceilings products peer ours train profile)
run_s_max=60
figures_s_max=150
train_s_max=170
trainer_device=${TRAINER_DEVICE:-cuda}
tests_device=cuda
# Which tests each stage runs, by a part of their paths.
rooms=cuda
recorded=_cuda::
steps_against_cpu=engine::tests::device
contract=on_cuda
peer_compile=${PEER_COMPILE:-true}
read -r -a train_flags <<<"${TRAIN_FLAGS:-}"
steps=${STEPS:-50}
python=${PEER_PYTHON:-python3}
# Shapes of peer, ours and profile: nanoGPT's character model, and GPT-2 124M in batches of three
# sizes. An iteration is one micro-step.
declare -A shapes=(
    [char]="--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --vocab_size=65 --batch_size=64
        --dropout=0.2"
    [gpt2-16]="--n_layer=12 --n_head=12 --n_embd=768 --block_size=1024 --vocab_size=50304
        --batch_size=16 --dropout=0.0"
)
shapes[gpt2-32]=${shapes[gpt2-16]/=16/=32}
shapes[gpt2-64]=${shapes[gpt2-16]/=16/=64}
read -r -a shape_names <<<"${SHAPES:-char gpt2-16 gpt2-32 gpt2-64}"

usage() {
    cat <<TEXT
usage: bench/gpu.sh build           needs nvcc, no GPU: puts the programs into dist/gpu
       bench/gpu.sh run [STAGE...]  on the GPU machine; all stages if none is named
       bench/gpu.sh rehearse PROGRAM [STAGE...]
                                    anywhere: the same commands on tiny shapes, PROGRAM being a
                                    trainer; the tests on the emulator, if DIST has them
       bench/gpu.sh link-tests      for rehearse: builds the tests and links them into DIST
stages:
  conformance   what the wrappers of device.cuh do, against the recorded outputs
  kernels       every room's tests on the GPU; again under compute-sanitizer, if there is one
  parity        whole steps on the GPU against recorded runs and the CPU's engine
  ceilings      the rates of a copy and of a product in 16 bits
  products      who computes each product, timed and kept for the stages after it; iterations with
                the program's own kernels alone
  peer, ours    iterations of nanoGPT in PyTorch under torch.compile and of the trainer, and the
                seconds to the first step; after both, their ratios
  train         shakespeare_char to its end: time and validation loss
  profile       where the time of an iteration goes, room by room; ncu, if there is one
environment:
  DIST                the folder of the programs (default: dist/gpu)
  PEER_PYTHON         the python that has torch (default: python3)
  PEER_COMPILE        for peer: false leaves torch.compile out (default: true)
  ANNEAL_CUBLASLT     libcublasLt.so or its folder (default: PEER_PYTHON's, else what is found)
  TRAINER_DEVICE      for ceilings to profile: the key device (default: cuda)
  SHAPES              for peer and ours (default: char gpt2-16 gpt2-32 gpt2-64)
  STEPS               for peer and ours: timed iterations (default: 50)
  TRAIN_ITERS         for train: iterations (default: the config's 5000)
  TRAIN_FLAGS         for train: more of the trainer's flags
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
    local package
    for package in kernels trainer; do
        strip -o "$dist/$package-tests" \
            "$(tests_of "$package" --release -p "$package" --features cuda)"
    done
    rm -rf "$dist/golden"
    cp -r ../shared/golden "$dist/golden"
    # For the stage train: tiny Shakespeare, if it can be had here.
    "$dist/trainer" prepare shakespeare_char --out="$dist/shakespeare_char" --overwrite ||
        echo "bench/gpu.sh: without it the stage train is skipped (see ANNEAL_DATA)" >&2
    describe_tree >"$dist/commit"
    du -sh "$dist"/*
}

# Builds with cargo's flags; prints where a package's tests are.
tests_of() {
    local package=$1
    shift
    cargo test "$@" --lib --no-run --message-format=json-render-diagnostics | python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$package"
}

# For `rehearse`: links to the tests as they are built for a machine without a GPU.
link_tests() {
    cd "$root"
    mkdir -p "$dist"
    local package
    for package in kernels trainer; do
        ln -sf "$(tests_of "$package" --release --workspace)" "$dist/$package-tests"
    done
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
    ANNEAL_TEST_DEVICE=$tests_device ANNEAL_CONFORMANCE_OUT=$out/$name ANNEAL_GOLDEN=$dist/golden \
        timeout --kill-after=10 "$run_s_max" "$@" --test-threads=1 >"$log" 2>&1 || status=$?
    local seconds passed broken verdict=ok
    seconds=$(seconds_since "$start")
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
    # What stands for cuBLASLt on the emulator is not carried along.
    local ours=(--skip cublaslt::tests --skip on_the_emulator)
    tests kernels "tests" kernels "$dist/kernels-tests" "$rooms" "${ours[@]}" || true
    local sanitizer tool
    if ! sanitizer=$(find_tool compute-sanitizer); then
        row kernels compute-sanitizer - - - "skipped: not found"
        return
    fi
    for tool in memcheck racecheck; do
        tests kernels "$tool" "kernels-$tool" "$sanitizer" --tool "$tool" --error-exitcode 99 \
            "$dist/kernels-tests" "$rooms" "${ours[@]}" --skip cuda_tests::products || true
    done
}

stage_parity() {
    local tests=$dist/trainer-tests
    tests parity "recorded runs" parity-golden "$tests" "$recorded" || true
    tests parity "CPU's engine" parity-device "$tests" "$steps_against_cpu" || true
    tests parity "contract" parity-contract "$tests" "$contract" || true
}

# Runs a program that prints a JSON object on its last line: stage, what, name of log and result,
# which figures to show (see gpu.py), then the command.
figures() {
    local stage=$1 what=$2 name=$3 kind=$4
    shift 4
    local log=$out/$name.log result=$out/$name.json status=0 text="" start=$EPOCHREALTIME verdict=ok
    echo "== $stage: $what"
    timeout --kill-after=10 "$figures_s_max" "$@" >"$log" 2>&1 || status=$?
    if [[ $status -eq 124 || $status -eq 137 ]]; then
        verdict="stopped after $figures_s_max s"
    elif [[ $status -ne 0 ]]; then
        verdict="FAILED ($status)"
    elif ! text=$(tail -n 1 "$log" | python3 "$root/bench/gpu.py" figures "$commit" "$device" \
        "$result" "$kind"); then
        verdict="FAILED (no figures)"
    fi
    [[ $verdict == ok ]] || tail -n 20 "$log"
    [[ -z $text ]] || echo "   $text"
    row "$stage" "$what" - - "$(seconds_since "$start")" "$verdict"
    [[ $verdict == ok ]]
}

seconds_since() {
    awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'
}

stage_ceilings() {
    # The smallest step that there is: the rates stand in what it prints.
    figures ceilings "copy and product" ceilings ceilings \
        "$dist/trainer" bench --device="$trainer_device" --steps=1 --warmup_steps=0 --n_layer=1 \
        --n_head=1 --n_embd=64 --block_size=32 --batch_size=1 --vocab_size=64 || true
}

# The first run of a shape times its products, which takes seconds; they are kept in $out/cache.
stage_products() {
    local name words
    for name in "${shape_names[@]}"; do
        read -r -d '' -a words <<<"${shapes[$name]}" || true
        words+=(--device="$trainer_device" --gradient_accumulation_steps=1)
        figures products "$name, timed" "products-$name" iteration "$dist/trainer" bench \
            --steps=1 --warmup_steps=0 --verbose=true "${words[@]}" || continue
        # A CPU has nothing to say of them.
        grep -E '^(products|tf32|  (forward|backward))' "$out/products-$name.log" |
            tee "$out/products-$name.txt" || true
        figures products "$name, own" "own-$name" iteration "$dist/trainer" bench \
            --steps="$steps" --cublaslt=off "${words[@]}" || true
    done
}

stage_peer() {
    if ! "$python" -c 'import torch' 2>/dev/null; then
        row peer torch - - - "skipped: $python has no torch"
        return
    fi
    if [[ $trainer_device == cuda ]] &&
        ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
        row peer torch - - - "skipped: $python's torch has no GPU"
        return
    fi
    local name words device=$trainer_device
    [[ $device == cuda ]] || device=cpu
    for name in "${shape_names[@]}"; do
        read -r -d '' -a words <<<"${shapes[$name]}" || true
        figures peer "$name" "peer-$name" iteration "$python" "$root/bench/peer_torch.py" \
            --device="$device" --compile="$peer_compile" --steps="$steps" "${words[@]}" || true
    done
}

stage_ours() {
    local name words
    for name in "${shape_names[@]}"; do
        read -r -d '' -a words <<<"${shapes[$name]}" || true
        figures ours "$name" "ours-$name" iteration "$dist/trainer" bench \
            --device="$trainer_device" --steps="$steps" --gradient_accumulation_steps=1 \
            "${words[@]}" || true
    done
    python3 "$root/bench/gpu.py" ratios "$out" "${shape_names[@]}" | tee "$out/ratios.txt"
}

# nanoGPT's README: 1.4697 after 5000 iterations.
stage_train() {
    local data=$dist/shakespeare_char
    if [[ ! -d $data ]]; then
        row train shakespeare_char - - - "skipped: no $data"
        return
    fi
    local run=$out/train log=$out/train.log status=0 start=$EPOCHREALTIME verdict=ok
    echo "== train: shakespeare_char"
    rm -rf "$run"
    timeout --kill-after=10 "$train_s_max" "$dist/trainer" --config shakespeare_char \
        --device="$trainer_device" --data_dir="$data" --out_dir="$run" --progress=lines \
        ${TRAIN_ITERS:+--max_iters="$TRAIN_ITERS"} "${train_flags[@]}" \
        >"$log" 2>&1 || status=$?
    [[ $status -eq 0 ]] || verdict="FAILED ($status)"
    local text
    text=$(python3 "$root/bench/gpu.py" train "$run/events.jsonl" "$out/train.json" \
        "${TRAIN_ITERS:-5000}") || verdict="FAILED ($text)"
    [[ $verdict == ok ]] || tail -n 20 "$log"
    echo "   $text"
    row train shakespeare_char - - "$(seconds_since "$start")" "$verdict"
}

stage_profile() {
    local name words
    for name in char gpt2-16; do
        read -r -d '' -a words <<<"${shapes[$name]}" || true
        figures profile "$name" "profile-$name" iteration \
            "$dist/trainer" bench --device="$trainer_device" --steps=5 \
            --gradient_accumulation_steps=1 "${words[@]}" || continue
        python3 "$root/bench/gpu.py" rooms "$out/profile-$name.json" |
            tee "$out/profile-$name.txt"
    done
    local ncu
    if ! ncu=$(find_tool ncu); then
        row profile ncu - - - "skipped: not found"
        return
    fi
    read -r -d '' -a words <<<"${shapes[gpt2-16]}" || true
    local status=0 verdict=ok start=$EPOCHREALTIME
    echo "== profile: ncu"
    timeout --kill-after=10 "$figures_s_max" "$ncu" --set basic --launch-skip 400 \
        --launch-count 60 --csv "$dist/trainer" bench --device="$trainer_device" --steps=1 \
        --warmup_steps=0 --gradient_accumulation_steps=1 "${words[@]}" \
        >"$out/ncu.csv" 2>"$out/ncu.log" || status=$?
    # Many machines keep the counters from users that are not root.
    [[ $status -eq 0 ]] || verdict="skipped: ncu ended with $status"
    row profile ncu - - "$(seconds_since "$start")" "$verdict"
}

# That of the peer, so that both have the same.
find_cublaslt() {
    "$python" - 2>/dev/null <<'PYTHON'
import glob
import sys

import nvidia

folders = [f"{top}/{folder}" for folder in ("cu13/lib", "cublas/lib") for top in nvidia.__path__]
found = [file for folder in folders for file in sorted(glob.glob(f"{folder}/libcublasLt.so.*"))]
print(found[0]) if found else sys.exit(1)
PYTHON
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

# Everything that `run` does, where there is no GPU: small enough for a CPU, the tests on the
# emulator. What it prints are no results.
rehearse() {
    local program home
    program=$(realpath -e "$1") || fail "$1: expected a trainer"
    shift
    home=${OUT:-$root/target/rehearsal}
    out=$home/out
    rm -rf "$home"
    mkdir -p "$home/dist"
    ln -s "$program" "$home/dist/trainer"
    local tests found=()
    for tests in kernels-tests trainer-tests; do
        [[ -x $dist/$tests ]] || continue
        ln -s "$(realpath "$dist/$tests")" "$home/dist/$tests"
        found+=("$tests")
    done
    dist=$home/dist
    describe_tree >"$dist/commit"
    ln -s "$(realpath "${ANNEAL_GOLDEN:-$root/../shared/golden}")" "$dist/golden"
    "$program" prepare quickstart --out="$dist/shakespeare_char" >"$home/prepare.log"

    trainer_device=${TRAINER_DEVICE:-cpu}
    tests_device=emulator
    rooms=gelu::cuda_tests
    recorded=nobias_cuda::logits
    steps_against_cpu=device::a_snapshot_that_cannot_be_pinned
    contract=on_cuda::accumulated_gradients
    peer_compile=${PEER_COMPILE:-false}
    steps=${STEPS:-2}
    export TRAIN_ITERS=${TRAIN_ITERS:-6}
    local model="--n_layer=1 --n_head=2 --n_embd=32 --block_size=16"
    read -r -a train_flags <<<"$model --batch_size=2 --eval_interval=3 --eval_iters=3
        --log_interval=1 ${TRAIN_FLAGS:-}"
    shapes[char]="$model --vocab_size=65 --batch_size=2 --dropout=0.2"
    local size
    for size in 16 32 64; do
        shapes[gpt2-$size]="$model --vocab_size=128 --batch_size=$((size / 16)) --dropout=0.0"
    done

    [[ $# -gt 0 ]] || set -- "${stages[@]}"
    local stage wanted=()
    for stage in "$@"; do
        case $stage in
            conformance | kernels) tests=kernels-tests ;;
            parity) tests=trainer-tests ;;
            *) tests="" ;;
        esac
        if [[ -n $tests && " ${found[*]} " != *" $tests "* ]]; then
            row "$stage" - - - - "skipped: DIST has no $tests"
        else
            wanted+=("$stage")
        fi
    done
    perform "${wanted[@]}"
}

run() {
    local program
    for program in trainer kernels-tests trainer-tests; do
        [[ -x $dist/$program ]] || fail "$dist/$program is missing: run bench/gpu.sh build"
    done
    [[ $# -gt 0 ]] || set -- "${stages[@]}"
    perform "$@"
}

# Stage after stage, and what came of them.
perform() {
    local stage
    for stage in "$@"; do
        [[ " ${stages[*]} " == *" $stage "* ]] ||
            fail "no stage \`$stage\`, expected some of: ${stages[*]}"
    done
    mkdir -p "$out"
    export ANNEAL_CACHE=$out/cache
    if [[ -z ${ANNEAL_CUBLASLT:-} ]] && ANNEAL_CUBLASLT=$(find_cublaslt); then
        export ANNEAL_CUBLASLT
    fi
    commit=$(<"$dist/commit")
    device=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader \
        2>/dev/null | head -n 1) || device="no GPU that nvidia-smi knows"
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
    link-tests) [[ $# -eq 1 && -n ${DIST:-} ]] || fail "link-tests: expected DIST alone"
        link_tests ;;
    run) shift
        run "$@" ;;
    rehearse) [[ $# -ge 2 ]] || fail "rehearse: expected a trainer"
        shift
        rehearse "$@" ;;
    -h | --help) usage ;;
    *) usage >&2
        exit 2 ;;
esac
