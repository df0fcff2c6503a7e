#!/usr/bin/env bash
# A Ceph object gateway on this machine's loopback, in memory, for tests. As root on Debian:
#     apt-get update && apt-get install --no-install-recommends \
#         radosgw ceph-mon ceph-osd ceph-mgr ceph-common uuid-runtime curl
#     eval "$(tests/servers/ceph.sh start DIR)"     DIR must not exist; takes 20 s, 0.7 GB
#     tests/servers/ceph.sh stop DIR
# `start` prints the environment in which tests find the server and an empty bucket.
set -euo pipefail

ready_s_max=90
key=ANNEALTESTKEY0000001
secret=anneal-test-secret-of-a-loopback-server
bucket=anneal-test

fail() {
    echo "ceph.sh: $*" >&2
    exit 1
}

usage() {
    fail "expected start DIR or stop DIR, got: $*"
}

free_port() {
    python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# Ends what `start` began: each daemon left its process id.
stop() {
    local pid_file pid
    for pid_file in "$1"/*.pid; do
        [[ -e $pid_file ]] || continue
        pid=$(<"$pid_file")
        kill "$pid" 2>/dev/null || continue
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$1"
}

configure() {
    local dir=$1 fsid=$2 mon_port=$3 port=$4
    # Without cephx the gateway hangs; one copy of each object, in memory; a disk that is nearly
    # full is none of ours.
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = 127.0.0.1:$mon_port
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $dir/keyring
run dir = $dir
admin socket = $dir/\$name.asok
pid file = $dir/\$name.pid
log file = $dir/\$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 12884901888
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
mon data = $dir/mon
osd data = $dir/osd
mgr data = $dir/mgr
[client.rgw]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
CONF
    mkdir "$dir"/{mon,osd,mgr,rgw}
    local keyring=$dir/keyring name
    ceph-authtool -C "$keyring" -n mon. --gen-key --cap mon 'allow *'
    for name in client.admin client.rgw mgr.x; do
        ceph-authtool "$keyring" -n "$name" --gen-key \
            --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    done
    monmaptool --create --clobber --add a "127.0.0.1:$mon_port" --fsid "$fsid" "$dir/monmap"
}

launch() {
    local dir=$1 conf=$1/ceph.conf uuid secret_key
    ceph-mon -c "$conf" --mkfs --keyring "$dir/keyring" -i a --monmap "$dir/monmap"
    ceph-mon -c "$conf" -i a
    # The monitor and the store on disk must know the daemon by the same id, or it never boots.
    uuid=$(uuidgen)
    secret_key=$(ceph-authtool --gen-print-key)
    echo "{\"cephx_secret\":\"$secret_key\"}" |
        timeout "$ready_s_max" ceph -c "$conf" osd new "$uuid" -i -
    ceph-authtool "$dir/keyring" -n osd.0 --add-key "$secret_key"
    ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$uuid"
    ceph-osd -c "$conf" -i 0
    ceph-mgr -c "$conf" -i x
    radosgw -c "$conf" -n client.rgw --setuser root --setgroup root
    timeout "$ready_s_max" radosgw-admin -c "$conf" user create --uid=test --display-name=test \
        --access-key="$key" --secret-key="$secret"
}

wait_until_ready() {
    local bucket_url=$1
    for ((waited = 0; waited < ready_s_max; waited += 1)); do
        if curl --silent --show-error --fail-with-body --noproxy '*' --max-time 10 \
            --aws-sigv4 aws:amz:us-east-1:s3 --user "$key:$secret" \
            --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --request PUT "$bucket_url"; then
            return
        fi
        sleep 1
    done
    return 1
}

start() {
    local dir port status
    [[ ! -e $1 ]] || fail "$1 is there already"
    for tool in ceph-mon ceph-osd ceph-mgr ceph radosgw radosgw-admin uuidgen curl; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
    mkdir -p "$1"
    dir=$(realpath "$1")
    port=$(free_port)
    # Not as a condition, which would ignore failures on the way.
    set +e
    (
        set -e
        configure "$dir" "$(uuidgen)" "$(free_port)" "$port"
        launch "$dir"
        wait_until_ready "http://127.0.0.1:$port/$bucket"
    ) >"$dir/start.log" 2>&1
    status=$?
    set -e
    if [[ $status -ne 0 ]]; then
        tail -n 20 "$dir/start.log" >&2
        stop "$dir"
        fail "it did not start; above is the end of what it said"
    fi
    # What this release does: a wrong checksum of a part goes unnoticed, and none is kept.
    cat <<ENVIRONMENT
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=$key
export AWS_SECRET_ACCESS_KEY=$secret
export ANNEAL_TEST_S3=s3://$bucket/tests
export ANNEAL_TEST_S3_PROMISES=checks_keys,lists_uploads
ENVIRONMENT
}

[[ $# -eq 2 ]] || usage "$@"
case $1 in
start) start "$2" ;;
stop) stop "$2" ;;
*) usage "$@" ;;
esac
