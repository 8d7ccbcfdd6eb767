#!/usr/bin/env bash
# Runs our CUDA kernels on this processor: own.cu, compiled by g++ with sanitizers, beside references (tests/emulate/kernels.cpp). Finds
# wrong results, reads and writes out of bounds, misaligned ones, and barriers that are missing or that not all reach. Exits with 77 where
# there is no g++ for x86-64.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "SKIPPED: the CUDA kernels on a processor ($1)" >&2; exit 77; }
command -v g++ >/dev/null || skip 'no g++'
[ "$(g++ -dumpmachine | cut -d- -f1)" = x86_64 ] || skip 'fibers are written for x86-64'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Of `undefined` what kernels can do: all of it doubles the time that compiling takes.
checks=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero
flags=(-std=c++17 -O1 -fsanitize=$checks -fno-sanitize-recover=all -fsanitize-sections=shared_memory)
g++ "${flags[@]}" -o "$work/kernels" tests/emulate/kernels.cpp
"$work/kernels" >"$work/ran" || { cat "$work/ran" >&2; exit 1; }

# Every function in the section of kernels must have run.
nm --format=sysv "$work/kernels" | awk -F'|' '$4 ~ /FUNC/ && $7 ~ /kernels/ { gsub(/ /, "", $1); print $1 }' | sort >"$work/all"
cut -d' ' -f1 "$work/ran" | sort | diff "$work/all" - >&2 || { echo 'kernels without a test, or none at all' >&2; exit 1; }
echo "$(wc -l <"$work/all") kernels of own.cu run on a processor"
