#!/usr/bin/env bash
# What it costs to be watched: an agent over a real tiny run, or over a trainer that prints 1 MB/s,
# with 20 pollers at 1 Hz, 5 readers of the stream and a scraper every 5 s. Prints the agent's part of
# one core, its memory, the API's p99 and how the watchers change the time of a step. See
# bench/README.md.
#     bench/agent_load.sh [--seconds=30] [--rounds=3] [FOLDER WITH agent AND trainer]
# Needs wrk (as root it is installed from Debian).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
words=()
programs=
for word in "$@"; do
    case $word in
        -h | --help) sed -n '2,7s/^# \?//p' "${BASH_SOURCE[0]}" && exit 0 ;;
        --*) words+=("$word") ;;
        *) programs=$word ;;
    esac
done
if ! command -v wrk >/dev/null; then
    if [[ $(id -u) != 0 ]]; then
        echo "bench/agent_load.sh: no wrk: install Debian's package wrk" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends wrk >&2
fi
if [[ -z $programs ]]; then
    cargo build --release --bin agent --bin trainer --manifest-path "$root/Cargo.toml" >&2
    programs=${CARGO_TARGET_DIR:-$root/target}/release
fi
programs=$(realpath "$programs")
exec python3 "$root/bench/agent_load.py" --programs="$programs" ${words[@]+"${words[@]}"}
