#!/bin/bash
# Builds what the image is made of: Dockerfile's first stage runs it, anybody else may.
#
#     deploy/image/build.sh PARTS          PARTS/bin: programs, PARTS/doc: licences and the SBOM
#
# ANNEAL_FEATURES (default: trainer/cuda, which needs nvcc) are the features to build with; with
# ANNEAL_BIN, a folder that holds `agent` and `trainer`, nothing is compiled. Lists of what is in
# the programs are made by cargo-cyclonedx and cargo-about, where these are installed. Fails if the
# programs that it compiled are larger than the image's share of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
parts=$1
features=${ANNEAL_FEATURES-trainer/cuda}
target=x86_64-unknown-linux-gnu
program_bytes_max=40000000
mkdir -p "$parts"/{bin,doc}

bin=${ANNEAL_BIN:-}
if [[ -z $bin ]]; then
    cargo build --locked --profile dist -p agent -p trainer --features "$features"
    bin=${CARGO_TARGET_DIR:-target}/dist
fi
for program in agent trainer; do
    strip --strip-all -o "$parts/bin/$program" "$bin/$program"
done
bytes=$(cat "$parts"/bin/{agent,trainer} | wc -c)
if [[ -z ${ANNEAL_BIN:-} && $bytes -gt $program_bytes_max ]]; then
    echo "agent and trainer: $bytes bytes, expected at most $program_bytes_max" >&2
    echo "hint: what grew? \`[profile.dist]\` in Cargo.toml says what is built for size" >&2
    exit 1
fi
install -m 755 deploy/image/healthy.sh "$parts/bin/healthy"

cp LICENSE-MIT LICENSE-APACHE "$parts/doc/"
if cargo about --version >/dev/null 2>&1; then
    # Fails if a dependency's licence is none of those that about.toml accepts.
    cargo fetch --locked --quiet
    cargo about generate --workspace --offline --fail --config deploy/image/about.toml \
        --output-file "$parts/doc/THIRD-PARTY.html" deploy/image/about.hbs
else
    echo "cargo-about is not installed: PARTS/doc has no list of licences" >&2
fi
if cargo cyclonedx --version >/dev/null 2>&1; then
    for program in agent trainer; do
        own=()
        [[ $program == agent || -z $features ]] || own=(--features "${features//trainer\//}")
        cargo cyclonedx --manifest-path "$program/Cargo.toml" --format json --spec-version 1.5 \
            --target "$target" --describe binaries --quiet "${own[@]}"
        # It writes beside Cargo.toml and nowhere else.
        mv "$program/${program}_bin.cdx.json" "$parts/doc/$program.cdx.json"
    done
else
    echo "cargo-cyclonedx is not installed: PARTS/doc has no SBOM" >&2
fi
