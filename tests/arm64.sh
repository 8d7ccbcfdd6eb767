#!/usr/bin/env bash
# `cargo test ARGUMENTS` for arm64 under QEMU, as if the processor had everything (NEON with dot products included).
# Exits with 77 where Rust's target, Debian's gcc-aarch64-linux-gnu or qemu-user cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
skip() { echo "SKIPPED: arm64 ($1)" >&2; exit 77; }
command -v aarch64-linux-gnu-gcc >/dev/null || skip 'no aarch64-linux-gnu-gcc'
command -v qemu-aarch64 >/dev/null || skip 'no qemu-aarch64'
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || rustup target add $target >/dev/null 2>&1 ||
    skip "no Rust for $target"

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max'
exec cargo test --target $target "$@"
