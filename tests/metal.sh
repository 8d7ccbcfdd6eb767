#!/usr/bin/env bash
# Type-checks the Metal backend for Macs with Apple's processors, from any machine, or does what it is told: `tests/metal.sh clippy
# --package frugal --features metal` looks at the whole binary. No code is generated, nothing is linked; the C and assembly in
# dependencies is left out by a stand-in compiler. Three minutes of processor time from nothing. Exits with 77 where Rust's target cannot
# be had.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-apple-darwin
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || rustup target add $target >/dev/null 2>&1 ||
    { echo "SKIPPED: Metal (no Rust for $target)" >&2; exit 77; }

if [ "$(uname)" != Darwin ]; then
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    # Whatever is asked of it, the file behind -o becomes an empty one.
    cat >"$tools/cc" <<'CC'
#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && : >"$2"
    shift
done
CC
    # `ar cq LIBRARY OBJECT...`
    printf '#!/bin/sh\n[ $# -lt 2 ] || : >"$2"\n' >"$tools/ar"
    chmod +x "$tools"/*
    export CC_aarch64_apple_darwin="$tools/cc" AR_aarch64_apple_darwin="$tools/ar"
fi
[ $# -gt 0 ] || set -- check --package frugal-models --features metal
cargo "$1" --target $target "${@:2}"
