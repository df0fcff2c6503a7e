#!/usr/bin/env bash
# Checks what we read and write against the real transformers and PyTorch, with random weights.
#
#   bench/interop.sh [PYTHON]     PYTHON has torch, transformers, tokenizers, safetensors
#
# Builds the trainer, then: GPT-2s of transformers' read by us, models of ours read by
# transformers (logits within 1e-4, tokens equal), nanoGPT checkpoints resumed by both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-/tmp/peer-venv/bin/python}
golden=${ANNEAL_GOLDEN:-../shared/golden}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

cargo build --quiet --release -p trainer --bin trainer --example logits
trainer=$PWD/target/release/trainer
logits=$PWD/target/release/examples/logits
interop() { "$python" bench/interop.py "$@"; }

"$python" -c 'import torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__)'

# Theirs, read by us: GPT-2's shape in small, both forms of GELU, 16-bit weights.
interop make "$work/theirs"
for model in "$work"/theirs/*/; do
    ids=$(cat "$model/ids")
    "$logits" "$model" "$ids" > "$work/ours.json"
    interop logits "$model" "$ids" > "$work/theirs.json"
    interop compare "$(basename "$model"), read by us" "$work/ours.json" "$work/theirs.json"
done

# Ours, read by them: with and without biases, both forms of GELU, characters and GPT-2's tokens.
small=(--n_layer=2 --n_head=2 --n_embd=64 --block_size=64 --batch_size=4 --max_iters=20
    --gradient_accumulation_steps=1 --eval_iters=1 --warmup_iters=2 --learning_rate=1e-2
    --min_lr=1e-3 --lr_decay_iters=20 --progress=lines --log_interval=100 --dtype=float32)
mkdir -p "$work/data"
cp ../shared/data/tinyshakespeare/input.txt "$work/data/" 2> /dev/null || true
for case in "char False erf" "char True tanh" "gpt2 False erf" "gpt2 True tanh"; do
    read -r tokens bias gelu <<< "$case"
    dataset=shakespeare
    [[ $tokens == char ]] && dataset=shakespeare_char
    run=$work/run-$tokens-$bias
    (cd "$work" && "$trainer" "${small[@]}" --dataset=$dataset --data_dir="$work/data" \
        --out_dir="$run" --bias="$bias" --gelu="$gelu" > "$work/log" 2>&1) || cat "$work/log"
    "$trainer" export "$run" "$run/hf" > /dev/null
    checkpoint=$(ls -d "$run"/checkpoints/step_*)
    ids=5,17,3,42,9,61,20,1
    "$logits" "$checkpoint" $ids > "$work/ours.json"
    interop logits "$run/hf" $ids > "$work/theirs.json"
    interop compare "$case, read by transformers" "$work/ours.json" "$work/theirs.json"
    interop generate "$run/hf"
    interop tokens "$run/hf" "$trainer" "$work/data/input.txt"
done

# PyTorch's losses after a resume; the tests hold ours to them.
for case in nobias bias; do
    printf '%s: ' "$case"
    interop resume "$golden/$case"
done
