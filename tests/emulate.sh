#!/usr/bin/env bash
# Runs our CUDA kernels on this processor: own.cu, compiled by g++ with sanitizers, beside references (tests/emulate/kernels.cpp). Finds
# wrong results, reads and writes out of bounds, misaligned ones, and barriers that are missing or that not all reach. Takes a minute.
# Exits with 77 where there is no g++ with sanitizers for x86-64.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
skip() { echo "SKIPPED: the CUDA kernels on a processor ($1)" >&2; exit 77; }

# Of `undefined` what kernels can do: all of it doubles the time that compiling takes.
checks=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero
compile() { g++ -std=c++17 -O1 -g1 -fsanitize=$checks -fno-sanitize-recover=all -fsanitize-sections=shared_memory "$@"; }

command -v g++ >/dev/null || skip 'no g++'
case $(g++ -dumpmachine) in x86_64*linux*) ;; *) skip 'its fibers are for Linux on x86-64' ;; esac
echo 'int main() {}' | compile -x c++ -o "$work/probe" - 2>/dev/null && "$work/probe" 2>/dev/null || skip 'no sanitizers'

compile -o "$work/kernels" tests/emulate/kernels.cpp
# Frames of fibers must lie on the fibers' stacks.
ASAN_OPTIONS=detect_stack_use_after_return=0:detect_leaks=0 "$work/kernels" >"$work/ran" || { cat "$work/ran" >&2; exit 1; }

# Every function in the section of kernels must have run.
nm --format=sysv "$work/kernels" | awk -F'|' '$4 ~ /FUNC/ && $7 ~ /kernels/ { gsub(/ /, "", $1); print $1 }' | sort >"$work/all"
cut -d' ' -f1 "$work/ran" | sort | diff "$work/all" - >&2 || { echo 'kernels without a test, or none at all' >&2; exit 1; }
echo "$(wc -l <"$work/all") kernels of own.cu run on a processor"
