#!/usr/bin/env bash
# Our CUDA kernels through NVIDIA's compiler and assembler, for the capabilities that the README names. When the server starts they go
# through the same front end, as a library. Exits with 77 where there is no nvcc.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v nvcc >/dev/null || { echo 'SKIPPED: the CUDA kernels (no nvcc)' >&2; exit 77; }
for capability in 80 89 90; do
    nvcc --cubin --gpu-architecture "sm_$capability" --Werror all-warnings --output-file /dev/null models/src/gpu/cuda/own.cu
    echo "own.cu compiles for sm_$capability"
done
