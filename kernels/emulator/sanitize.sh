#!/usr/bin/env bash
# Runs the emulator's own tests and the rooms' device tests with kernels compiled with a sanitizer:
# address (overruns of global and shared memory), undefined, or thread (races between threads of a
# block and between blocks, whatever the results). Needs g++ with its sanitizer libraries.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "kernels/emulator/sanitize.sh: $*" >&2
    exit 1
}

case ${1:-} in
    address) library=asan ;;
    undefined) library=ubsan ;;
    thread) library=tsan ;;
    *) fail "expected address, undefined or thread, then arguments for cargo test" ;;
esac
path=$("${CXX:-g++}" -print-file-name="lib$library.so")
[[ $path == /* ]] || fail "${CXX:-g++} has no lib$library.so"

export ANNEAL_EMULATOR_SANITIZE=$1
# One schedule, the one with the most going on: a sanitizer does not depend on luck.
export ANNEAL_TEST_SCHEDULES=1
# What Rust leaves behind is not in question. A report ends the process.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
# Rust is not compiled with the sanitizer, so its own order of memcpy and the like is not known.
export TSAN_OPTIONS=halt_on_error=1:ignore_interceptors_accesses=1:report_bugs=1
# The library must come before all others in the tests, and must not be in cargo and rustc.
run=(cargo test --config "target.'cfg(all())'.runner = ['env', 'LD_PRELOAD=$path']")
threads=(--test-threads=1)

"${run[@]}" -p emulator -- "${threads[@]}"
"${run[@]}" -p kernels --lib "${@:2}" -- "${threads[@]}" cuda conformance
