#!/usr/bin/env bash
# Times the trainer against PyTorch on a CPU: the two run in turn, so that what else the machine
# does falls on both. See bench/README.md.
set -euo pipefail

usage() {
    cat <<TEXT
usage: bench/cpu.sh [options]
  --shape NAME         small, char, gpt2 or all; may be given again (default: small)
  --rounds N           alternations (default: 5)
  --steps N            timed iterations of a round (default: by shape)
  --warmup_steps N     iterations before them (default: by shape)
  --mode NAME          train: a whole step; eval: the forward pass alone; sample: text from GPT-2
                       124M with random weights, --steps tokens after the first --warmup_steps
                       (default: train)
  --threads N          threads of each (default: all that this process may use)
  --engine NAME        our engine (default: the trainer's own choice)
  --recompute NAME     what our engine computes again (default: the trainer's own choice)
  --peer-compile       run the peer under torch.compile, too
  --realtime           run all of them before any other process (needs root)
  --json FILE          append every figure to FILE, one JSON object a round
environment: PEER_PYTHON, the python that has torch (default: python3)
TEXT
}

fail() {
    echo "bench/cpu.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PEER_PYTHON:-python3}
shapes=()
rounds=5
steps=
warmup_steps=
mode=train
threads=$(nproc)
json=
compile=
ours_extra=()
prefix=()

while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --peer-compile) compile=1 && shift && continue ;;
        --realtime) prefix=(chrt -f 20) && shift && continue ;;
    esac
    option=${1%%=*}
    if [[ $1 == *=* ]]; then
        value=${1#*=}
        shift
    else
        [[ $# -ge 2 ]] || fail "$1 needs a value, or is not an option (see --help)"
        value=$2
        shift 2
    fi
    case $option in
        --shape) if [[ $value == all ]]; then shapes+=(small char gpt2); else shapes+=("$value"); fi ;;
        --rounds) rounds=$value ;;
        --steps) steps=$value ;;
        --warmup_steps) warmup_steps=$value ;;
        --mode) mode=$value ;;
        --threads) threads=$value ;;
        --engine) ours_extra+=("--engine=$value") ;;
        --recompute) ours_extra+=("--recompute=$value") ;;
        --json) json=$value ;;
        *) fail "unknown option $option (see --help)" ;;
    esac
done
[[ ${#shapes[@]} -gt 0 ]] || shapes=(small)
[[ $mode =~ ^(train|eval|sample)$ ]] || fail "--mode: expected train, eval or sample, got $mode"
[[ $mode != sample ]] || shapes=(gpt2)
for number in "$rounds" "$threads" "${steps:-1}"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "expected a count of at least 1, got $number"
done
[[ ${warmup_steps:-0} =~ ^[0-9]+$ ]] || fail "--warmup_steps: expected a count, got $warmup_steps"

# Sets `keys` (the model, in nanoGPT's names), `batch`, `block` and the default lengths of a round.
choose() {
    case $1 in
        small) # nanoGPT's settings for a CPU
            keys=(--n_layer=4 --n_head=4 --n_embd=128 --vocab_size=65 --dropout=0.0)
            batch=12 block=64 default_steps=100 default_warmup=10
            ;;
        char) # train_shakespeare_char
            keys=(--n_layer=6 --n_head=6 --n_embd=384 --vocab_size=65 --dropout=0.2)
            batch=64 block=256 default_steps=5 default_warmup=1
            ;;
        gpt2) # GPT-2 124M
            keys=(--n_layer=12 --n_head=12 --n_embd=768 --vocab_size=50304 --dropout=0.0)
            batch=1 block=1024 default_steps=3 default_warmup=1
            ;;
        *) fail "--shape: expected small, char, gpt2 or all, got $1" ;;
    esac
    keys+=(--batch_size="$batch" --block_size="$block" --gradient_accumulation_steps=1)
    keys+=(--bias=False --device=cpu --dtype=float32 --threads="$threads")
    [[ $mode != sample ]] || default_steps=96 default_warmup=16
    steps_here=${steps:-$default_steps} warmup_here=${warmup_steps:-$default_warmup}
    lengths=(--steps "$steps_here" --warmup_steps "$warmup_here" --mode "$mode")
}

# The report is the last line of stdout that is a JSON object.
report() {
    local output line
    output=$("${prefix[@]}" "$@") || fail "failed: $*"
    line=$(grep '^{' <<<"$output" | tail -n 1) || fail "no report on stdout: $*"
    printf '%s' "$line"
}

# Our report of sampling: the tokens after a prompt of --warmup_steps tokens and the first one.
sample_report() {
    local prompt line
    prompt=$(printf ' a%.0s' $(seq "$warmup_here"))
    line=$("${prefix[@]}" "$trainer" sample --out_dir="$run/out" --checkpoint=latest \
        --num_samples=1 --top_k=0 --threads="$threads" --start="$prompt" --timing \
        --max_new_tokens=$((steps_here + 1)) 2>&1 >"$run/text") || fail "sampling failed: $line"
    [[ $line =~ $steps_here\ more\ ([0-9.]+)\ ms\ each\ \(([0-9.]+)\ .*,\ ([0-9]+)\ MiB ]] ||
        fail "sampling: expected the timing of $steps_here tokens, got: $line"
    printf '{"engine":"fused","ms_per_iteration":%s,"tokens_per_second":%s,"peak_rss_mib":%s}' \
        "${BASH_REMATCH[@]:1}"
}

for shape in "${shapes[@]}"; do
    choose "$shape"
done
"$python" -c 'import torch, numpy' 2>/dev/null ||
    fail "$python cannot import torch: python3 -m venv ~/peer && ~/peer/bin/pip install" \
        "torch==2.11.0 numpy safetensors, then PEER_PYTHON=~/peer/bin/python"
cargo build --release --bin trainer --manifest-path "$root/Cargo.toml" >&2

trainer=${CARGO_TARGET_DIR:-$root/target}/release/trainer
run=$(mktemp -d)
rows=$run/rows
trap 'rm -rf "$run"' EXIT
if [[ $mode == sample ]]; then
    seq 100000 >"$run/text.txt"
    (cd "$run" && "$trainer" prepare text.txt --tokenizer=gpt2 &&
        "$trainer" --dataset=text --data_dir=data/text --n_layer=12 --n_head=12 --n_embd=768 \
            --block_size=1024 --batch_size=1 --gradient_accumulation_steps=1 --bias=False \
            --max_iters=0 --eval_iters=1 --out_dir=out) >&2
fi
processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
read -r load _ </proc/loadavg 2>/dev/null || load=unknown
echo "device: ${processor:-unknown processor}, $threads threads, load $load before the start" >&2
for shape in "${shapes[@]}"; do
    choose "$shape"
    for ((round = 1; round <= rounds; round++)); do
        echo "$shape, round $round of $rounds" >&2
        peer_command=("$python" "$root/bench/peer_torch.py" "${keys[@]}" "${lengths[@]}")
        peer=$(report "${peer_command[@]}")
        compiled=null
        [[ -z $compile ]] || compiled=$(report "${peer_command[@]}" --compile)
        if [[ $mode == sample ]]; then
            ours=$(sample_report)
            tokens=1
        else
            ours=$(report "$trainer" bench --config shakespeare_char "${keys[@]}" "${lengths[@]}" \
                "${ours_extra[@]}")
            tokens=$((batch * block))
        fi
        printf '{"shape":"%s","tokens":%d,"round":%d,"peer":%s,"compiled":%s,"ours":%s}\n' \
            "$shape" "$tokens" "$round" "$peer" "$compiled" "$ours" >>"$rows"
    done
done
[[ -z $json ]] || cat "$rows" >>"$json"
"$python" "$root/bench/ratio.py" "$rows"
