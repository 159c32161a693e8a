#!/usr/bin/env bash
# Train with DeepSpeed's launcher; what comes before `--` is for it (--include, --hostfile, ...):
#   bash scripts/train_deepspeed.sh --include="localhost:0,1" -- --config FILE deepspeed_config=JSON
set -euo pipefail
before=(); while [ "${1---}" != -- ]; do before+=("$1"); shift; done
exec deepspeed "${before[@]}" --no_local_rank --module demo_t2v train "${@:2}"
