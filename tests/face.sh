#!/usr/bin/env bash
# The agent's face as others use it, over real agents and real tiny runs: a Prometheus scrapes it,
# Schemathesis holds it to its own description, a Chromium looks at its page.
#     tests/face.sh [FOLDER WITH agent AND trainer]      default: target/release, built before
# Installs what is missing: Python packages into target/tools, Debian's prometheus beside them, and
# as root Debian's chromium. FACE=prometheus, api or page does one of the three.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=$(realpath "${1:-$root/target/release}")
tools=${TOOLS:-$root/target/tools}
only=${FACE:-prometheus api page}
playwright_version=1.65.2
schemathesis_version=4.32.5

fail() {
    echo "tests/face.sh: $*" >&2
    exit 1
}

for program in agent trainer; do
    [[ -x $programs/$program ]] ||
        fail "$programs/$program: not built: cargo build --release --bin agent --bin trainer"
done

# Python's packages, once for each set of versions.
python=$tools/face/bin/python
mark=$tools/face/ready-$playwright_version-$schemathesis_version
if [[ ! -e $mark ]]; then
    rm -rf "$tools/face"
    python3 -m venv "$tools/face"
    "$tools/face/bin/pip" install --quiet --disable-pip-version-check \
        "playwright==$playwright_version" "schemathesis==$schemathesis_version"
    touch "$mark"
fi

# promtool and prometheus are unpacked, not installed, so that no service is started.
if ! command -v prometheus >/dev/null && [[ ! -x $tools/prometheus/usr/bin/prometheus ]]; then
    mkdir -p "$tools/prometheus"
    (
        cd "$tools/prometheus"
        apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }
        dpkg-deb -x prometheus_*.deb .
        rm prometheus_*.deb
    )
fi
export PATH=$PATH:$tools/prometheus/usr/bin
if ! command -v chromium >/dev/null && [[ $only == *page* ]]; then
    [[ $(id -u) == 0 ]] || fail "no chromium: install Debian's package chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium
fi

check() {
    local name=$1
    shift
    [[ " $only " == *" $name "* ]] || return 0
    local began=$SECONDS
    echo "-- $name"
    "$@"
    echo "-- $name passed ($((SECONDS - began)) s)"
}

check prometheus "$root/tests/servers/prometheus.sh" "$programs/agent"
check api "$python" "$root/tests/servers/api.py" \
    --agent "$programs/agent" --trainer "$programs/trainer"
check page "$python" "$root/tests/dashboard/check.py" \
    --agent "$programs/agent" --trainer "$programs/trainer"
echo "tests/face.sh: passed: $only"
