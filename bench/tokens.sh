#!/usr/bin/env bash
# Times `trainer prepare` with GPT-2's tokenizer against tiktoken on the same text, in turn, and
# compares the tokens. See bench/README.md.
set -euo pipefail

usage() {
    cat <<TEXT
usage: bench/tokens.sh [options] FILE...
  FILE            texts; several are joined to one
  --rounds N      alternations (default: 5)
  --threads N     of either (default: as many as there are processors)
  --copies N      repeat the text, for one that is over too soon (default: 1)
  --realtime      run both before any other process (needs root)
environment: PEER_PYTHON, the python of a venv that has tiktoken (default: python3); TRAINER, the
program (default: built here); TMPDIR, where the text and the tokens go
TEXT
}

fail() {
    echo "bench/tokens.sh: $*" >&2
    exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PEER_PYTHON:-python3}
prefix=()
rounds=5
threads=$(nproc)
copies=1
files=()
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --realtime) prefix=(chrt -r 20) && shift ;;
        --rounds=* | --threads=* | --copies=*)
            name=${1%%=*}
            printf -v "${name#--}" %s "${1#*=}"
            shift
            ;;
        --rounds | --threads | --copies)
            printf -v "${1#--}" %s "${2:?$1 needs a value}"
            shift 2
            ;;
        --*) fail "unknown word $1 (see --help)" ;;
        *) files+=("$1") && shift ;;
    esac
done
[[ ${#files[@]} -gt 0 ]] || { usage >&2 && exit 64; }

"$python" -c 'import tiktoken' ||
    fail "$python lacks the peer: python3 -m venv ~/peer && ~/peer/bin/pip install tiktoken," \
        "then PEER_PYTHON=~/peer/bin/python"
if [[ -z ${TRAINER:-} ]]; then
    (cd "$root" && cargo build --quiet --release --workspace --bin trainer)
    TRAINER=${CARGO_TARGET_DIR:-$root/target}/release/trainer
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ((copy = 0; copy < copies; copy++)); do
    cat "${files[@]}"
done >"$work/text.txt"
"${prefix[@]}" "$python" "$root/bench/tokens.py" --trainer="$TRAINER" --work="$work" \
    --rounds="$rounds" --threads="$threads"
