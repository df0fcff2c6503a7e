# `just` lists these; each is one command that works without just.

# Formatting and lints
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --release -- -D warnings

# Every test, none of which needs a GPU; `just test name` picks some
test *filter:
    cargo test --release --workspace {{filter}}

# The trainer against PyTorch on this CPU (see bench/README.md)
bench *options:
    bench/cpu.sh {{options}}

# What a change has to pass
ci:
    .ci/run
