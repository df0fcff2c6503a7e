#!/usr/bin/env bash
# LocalStack's S3 on this machine's loopback, without containers or an account, for tests. Needs a
# Python 3.13 (or PYTHON naming one), into which nothing is installed: TOOLS gets an environment.
#     eval "$(TOOLS=target/tools tests/servers/localstack.sh start DIR)"     DIR must not exist
#     tests/servers/localstack.sh stop DIR
# `start` prints the environment in which tests find the server and an empty bucket.
set -euo pipefail

version=2026.3.0
ready_s_max=90
bucket=anneal-test
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=${TOOLS:-$here/../../target/tools}

fail() {
    echo "localstack.sh: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python; do
        if [[ -n $candidate ]] && "$candidate" -c \
            'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.13 found: name one in PYTHON"
}

# The bounds are on libraries whose later releases this one does not work with.
install() {
    [[ ! -e $tools/localstack/ready-$version ]] || return 0
    rm -rf "$tools/localstack"
    "$(find_python)" -m venv "$tools/localstack"
    "$tools/localstack/bin/pip" install --quiet "localstack-core[runtime]==$version" \
        'cbor2<6' 'pyopenssl<26' 'cryptography<47' service_identity
    touch "$tools/localstack/ready-$version"
}

stop() {
    local pid
    if [[ -e $1/pid ]]; then
        pid=$(<"$1/pid")
        kill "$pid" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -rf "$1"
}

start() {
    local dir port
    [[ ! -e $1 ]] || fail "$1 is there already"
    mkdir -p "$1"
    dir=$(realpath "$1")
    install >"$dir/install.log" 2>&1 || fail "cannot be installed: $(tail -n 5 "$dir/install.log")"
    port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
    # Nothing but S3, nothing sent home, nothing fetched.
    env GATEWAY_LISTEN="127.0.0.1:$port" SERVICES=s3 EAGER_SERVICE_LOADING=1 DISABLE_EVENTS=1 \
        SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0 FILESYSTEM_ROOT="$dir/files" \
        setsid "$tools/localstack/bin/python" -m localstack.runtime.main \
        >"$dir/localstack.log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    local url=http://127.0.0.1:$port/$bucket waited
    for ((waited = 0; waited < ready_s_max; waited += 1)); do
        if curl --silent --fail --noproxy '*' --max-time 10 \
            --aws-sigv4 aws:amz:us-east-1:s3 --user test:test \
            --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
            --request PUT --output /dev/null "$url"; then
            break
        fi
        sleep 1
    done
    if ((waited == ready_s_max)); then
        tail -n 20 "$dir/localstack.log" >&2
        stop "$dir"
        fail "not ready within $ready_s_max s"
    fi
    cat <<ENVIRONMENT
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test
export AWS_SECRET_ACCESS_KEY=test
export ANNEAL_TEST_S3=s3://$bucket/tests
export ANNEAL_TEST_S3_PROMISES=checks_parts,keeps_checksums,lists_uploads
ENVIRONMENT
}

[[ $# -eq 2 ]] || fail "expected start DIR or stop DIR, got: $*"
case $1 in
start) start "$2" ;;
stop) stop "$2" ;;
*) fail "expected start DIR or stop DIR, got: $*" ;;
esac
