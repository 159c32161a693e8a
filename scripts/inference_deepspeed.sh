#!/usr/bin/env bash
# Generate with DeepSpeed's launcher; what comes before `--` is for it (--include, --hostfile, ...):
#   bash scripts/inference_deepspeed.sh --include="localhost:0,2" -- --config configs/inference.yaml
set -euo pipefail
before=(); while [ "${1---}" != -- ]; do before+=("$1"); shift; done
exec deepspeed "${before[@]}" --no_local_rank --module demo_t2v generate "${@:2}"
