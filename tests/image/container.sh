# shellcheck shell=bash
# What a container engine does, where there is none: makes the image's root from Dockerfile and
# deploy/image/root.sh, and runs containers on it with Linux's own tools. Read by the scripts of
# this folder and by tests/story.sh; needs root on Linux, debootstrap, python3.
#
# A container is a mount namespace and a process namespace in which the image's entry point is
# process 1. All its mounts are in there, so they are gone with it, however it ends.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
suite=bookworm
mirror=${ANNEAL_DEB_MIRROR:-http://deb.debian.org/debian}
# What Docker leaves to root in a container; nobody else has any.
docker_capabilities=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap
docker_capabilities+=,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

say() {
    printf '%4d s  %s\n' "$SECONDS" "$*"
}

# need PROGRAM=PACKAGE...: installs what is missing, as root on Debian.
need() {
    local item packages=()
    for item in "$@"; do
        command -v "${item%%=*}" >/dev/null || packages+=("${item#*=}")
    done
    [[ ${#packages[@]} -gt 0 ]] || return 0
    [[ $(id -u) -eq 0 ]] || fail "needs root, or these packages: ${packages[*]}"
    command -v apt-get >/dev/null || fail "needs these packages of Debian's: ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
        "${packages[@]}" >/dev/null
}

# What Dockerfile says of its last stage, as assignments for bash.
image_configuration() {
    python3 - "$repo/Dockerfile" <<'PYTHON'
import json, re, shlex, sys

text = open(sys.argv[1], encoding="utf-8").read()
text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
lines = [line.strip() for line in text[text.rindex("\nFROM "):].splitlines() if line.strip()]
said = {}
for line in lines:
    word, rest = line.split(None, 1)
    said.setdefault(word, []).append(rest.strip())
environment = [pair for line in said.get("ENV", []) for pair in shlex.split(line)]
probe = said["HEALTHCHECK"][-1].split("CMD", 1)[1]
for name, values in [
    ("image_env", environment),
    ("image_entrypoint", json.loads(said["ENTRYPOINT"][-1])),
    ("image_workdir", [said["WORKDIR"][-1]]),
    ("image_health", json.loads(probe)),
    ("image_base", [said["FROM"][-1].split()[0]]),
]:
    print(f"{name}=({' '.join(map(shlex.quote, values))})")
PYTHON
}

image_env=() image_entrypoint=() image_workdir=() image_health=() image_base=()
eval "$(image_configuration)"

# make_base DIR: a bare Debian, of the release that Dockerfile names.
make_base() {
    local dir=$1
    [[ ! -e $dir/.complete ]] || return 0
    rm -rf "$dir"
    mkdir -p "$dir"
    debootstrap --variant=minbase "$suite" "$dir" "$mirror" >"$dir.log" 2>&1 || {
        tail -n 20 "$dir.log" >&2
        fail "debootstrap failed"
    }
    # As in Debian's slim images.
    rm -rf "$dir"/var/cache/apt/* "$dir"/var/lib/apt/lists/* "$dir"/usr/share/{man,info,locale}/*
    find "$dir/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
    touch "$dir/.complete"
}

# make_image BASE PARTS DIR: the runtime stage of Dockerfile, carried out on a copy of BASE.
make_image() {
    local base=$1 parts=$2 dir=$3
    [[ ${image_base[0]} == "debian:$suite-slim" ]] || fail "Dockerfile is based on ${image_base[0]}"
    cp -a "$base" "$dir"
    mkdir "$dir/mnt/parts"
    cp -a "$parts/." "$dir/mnt/parts"
    cp "$repo/deploy/image/root.sh" /etc/resolv.conf "$dir/mnt/"
    cp --remove-destination "$dir/mnt/resolv.conf" "$dir/etc/resolv.conf"
    touch "$dir/etc/hosts"
    # shellcheck disable=SC2016 # the inner shell expands it
    unshare --mount --pid --fork --kill-child bash -euc '
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/dev"
        for device in null zero full random urandom; do
            touch "$1/dev/$device"
            mount --bind "/dev/$device" "$1/dev/$device"
        done
        exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            chroot "$1" sh /mnt/root.sh /mnt/parts' bash "$dir" >"$dir.log" 2>&1 || {
        tail -n 20 "$dir.log" >&2
        fail "root.sh failed"
    }
    rm -rf "${dir:?}"/mnt/*
}

# container_start DIR [--image DIR] [--read-only] [--user UID] [--env NAME=VALUE]... -- ARGUMENT...
# Starts `docker run --network=host` of the image; DIR, which must not exist, is the container.
# Its output is DIR/output, its process 1 is DIR/pid; sets `container` to what `wait` takes.
container_start() {
    local dir=$1 image=${image_root:-} mode=overlay user=0 variables=()
    shift
    while [[ $1 != -- ]]; do
        case $1 in
        --image) image=$2 && shift 2 ;;
        --read-only) mode=read-only && shift ;;
        --user) user=$2 && shift 2 ;;
        --env) variables+=("$2") && shift 2 ;;
        *) fail "container_start: unknown option $1" ;;
        esac
    done
    shift
    local privileges=(--bounding-set="$docker_capabilities" --inh-caps=-all)
    local home=/root
    [[ $user == 0 ]] || home=$(awk -F: -v id="$user" '$3 == id { print $6 }' "$image/etc/passwd")
    [[ $user == 0 ]] || privileges=(--reuid "$user" --regid "$user" --clear-groups
        --bounding-set=-all --inh-caps=-all --no-new-privs)
    local name
    name=$(basename "$dir")
    mkdir -p "$dir"/{upper,scratch,root,volume}
    chmod 1777 "$dir/volume"
    # shellcheck disable=SC2016 # the inner shell expands it
    unshare --mount --pid --fork --kill-child --uts --ipc bash -euc '
        dir=$1 image=$2 mode=$3 root=$1/root
        shift 3
        if [[ $mode == read-only ]]; then
            mount --bind "$image" "$root"
            mount -o remount,bind,ro "$root"
            mount --bind "$dir/volume" "$root/work"
            mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        else
            mount -t overlay -o "lowerdir=$image,upperdir=$dir/upper,workdir=$dir/scratch" \
                overlay "$root"
            mount --bind "$dir/volume" "$root/work"
        fi
        mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
        mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
        [[ ! -d /sys/fs/cgroup ]] || mount --rbind -o ro /sys/fs/cgroup "$root/sys/fs/cgroup"
        mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
        for device in null zero full random urandom tty; do
            touch "$root/dev/$device"
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        mkdir -m 1777 "$root/dev/shm"
        mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/dev/shm"
        ln -s /proc/self/fd "$root/dev/fd"
        for file in resolv.conf hosts; do
            mount --bind "/etc/$file" "$root/etc/$file"
        done
        hostname "$(basename "$dir")"
        exec chroot "$root" "$@"' bash "$dir" "$image" "$mode" \
        setpriv "${privileges[@]}" \
        env -i --chdir="${image_workdir[0]}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="${home:-/}" \
        HOSTNAME="$name" "${image_env[@]}" "${variables[@]}" \
        "${image_entrypoint[@]}" "$@" </dev/null >"$dir/output" 2>&1 &
    container=$!
    local outer=$container
    containers+=("$outer")
    for _ in {1..200}; do
        # Before that it is a shell, whose children are not the container.
        if [[ $(cat "/proc/$outer/comm" 2>/dev/null) == unshare ]]; then
            pgrep -P "$outer" >"$dir/pid" && return
        fi
        kill -0 "$outer" 2>/dev/null || return 0
        sleep 0.05
    done
    fail "the container $dir did not start"
}

# container_exec DIR COMMAND...: `docker exec`, as root, with the container's environment.
container_exec() {
    local dir=$1 pid environment
    shift
    pid=$(<"$dir/pid")
    mapfile -d '' environment <"/proc/$pid/environ"
    nsenter --target "$pid" --mount --pid --uts --ipc --root --wd -- \
        env -i "${environment[@]}" "$@"
}

# The image's health check, as an engine runs it.
container_healthy() {
    container_exec "$1" timeout 5 "${image_health[@]}"
}

# container_wait NUMBER SECONDS: waits for its end and sets `status` to its exit status.
# shellcheck disable=SC2034 # the caller reads it
container_wait() {
    local number=$1 limit=$2
    for ((waited = 0; waited < limit * 10; waited += 1)); do
        if ! kill -0 "$number" 2>/dev/null; then
            status=0 # read by the caller
            wait "$number" || status=$?
            return
        fi
        sleep 0.1
    done
    fail "a container did not end within $limit s"
}

# until_said FILE PATTERN SECONDS
until_said() {
    for ((waited = 0; waited < $3 * 5; waited += 1)); do
        ! grep -qE "$2" "$1" 2>/dev/null || return 0
        sleep 0.2
    done
    tail -n 20 "$1" >&2
    fail "$1: nothing like \"$2\" within $3 s"
}

containers=()

# Ends the containers that are left: process 1 of a namespace takes all others with it.
containers_kill() {
    local number
    for number in "${containers[@]}"; do
        kill -KILL "$number" 2>/dev/null || true
        wait "$number" 2>/dev/null || true
    done
    containers=()
}
