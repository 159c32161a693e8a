#!/usr/bin/env bash
# Generate with DeepSpeed's launcher, on all GPUs or else on the CPU. Options before `--` are the launcher's
# (--include, --hostfile, ...), those behind it are for `demo-t2v generate`; without any it runs configs/inference.yaml:
#   bash scripts/inference_deepspeed.sh
#   bash scripts/inference_deepspeed.sh --include="localhost:0,2" -- --config configs/inference.yaml
exec bash "$(dirname "$0")/deepspeed.sh" generate configs/inference.yaml "$@"
