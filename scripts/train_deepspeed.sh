#!/usr/bin/env bash
# Train with DeepSpeed's launcher, on all GPUs or else on the CPU. Options before `--` are the launcher's
# (--include, --hostfile, ...), those behind it are for `demo-t2v train`; without any it runs configs/train.yaml:
#   bash scripts/train_deepspeed.sh
#   bash scripts/train_deepspeed.sh --include="localhost:0,1" -- --config FILE deepspeed_config=JSON
exec bash "$(dirname "$0")/deepspeed.sh" train configs/train.yaml "$@"
