#!/usr/bin/env bash
# Train the built-in model and measure the full size, on one GPU, without network, within LIMIT
# seconds:
#   bash scripts/gpu_wheels.sh                 # before, where there is a network
#   bash scripts/gpu_run.sh OUT                # there; OUT gets a few files of less than 16 MiB
# Each part is a process of its own with a limit of its own: one that fails or is cut loses no other,
# and what is known is written to OUT after each. These variables can be set, for the defaults below
# are for a large GPU; PARTS names the parts to run, of those that are listed at the end.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${1:-${OUT:-outputs/gpu}}
LIMIT=${LIMIT:-540}          # seconds in all
TRAINING=${TRAINING:-240}    # seconds of it, of which the pace of the stages is measured first
REST=${REST:-120}            # seconds for its start, the scores and the cards, at most
DEVICE=${DEVICE:-cuda}
PARTS=${PARTS:-all}
SCORE=${SCORE:-72 36}        # prompts of trained and of held-out pairs
MODEL=${MODEL:-}             # for the full size; empty: the published size, random weights
STEPS=${STEPS:-50}           # of a video
TRAIN_STEPS=${TRAIN_STEPS:-8}
TRAIN=${TRAIN:-batch_size=4} # KEY=VALUE ... of the full-size training step
RECIPE=${RECIPE:-}           # [STAGE.]KEY=VALUE ... of the recipe
WHEELS=${WHEELS:-.whl}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=$WORK/compiled
[ "$DEVICE" = cuda ] || export CUDA_VISIBLE_DEVICES=

# Run a part for at most so many seconds, and never beyond the end; then write down what is known.
part() {
    local name=$1 limit=$2 left=$((LIMIT - SECONDS - 10)) began=$SECONDS ended
    shift 2
    [ "$PARTS" = all ] || [[ " $PARTS " = *" $name "* ]] || return 0
    if [ $left -lt 5 ]; then
        ended='not begun: no time left'
    else
        [ $limit -lt $left ] || limit=$left
        echo "== $name, for at most $limit s" >&2
        timeout --kill-after=5 $limit "$@" >"$WORK/$name.log" 2>&1
        local code=$?
        case $code in
            0) ended=well ;;
            124 | 137) ended="cut after $limit s" ;;
            *) ended="failed with code $code: $(grep -v '^\s*$' "$WORK/$name.log" | tail -1 | cut -c1-200)" ;;
        esac
    fi
    printf '%s\t%s\t%s\n' "$name" $((SECONDS - began)) "$ended" >>"$WORK/parts.tsv"
    echo "   $ended" >&2
    keep
    [ "$ended" = well ]
}

# All small results as two files, whole whenever this is stopped.
keep() {
    "$PYTHON" scripts/gpu_report.py "$WORK" >"$WORK/report.txt"
    (
        shopt -s nullglob
        cd "$WORK" && tar -czf results.tar.gz *.json *.log *.tsv report.txt run/*.json \
            run/*/metrics.jsonl run/final/README.md*
    )
    cp "$WORK/results.tar.gz" "$WORK/report.txt" "$OUT"
}

install() {
    [ -n "$(compgen -G "$WHEELS/*.whl")" ] || return 0
    timeout 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$WORK/site" "$WHEELS"/*.whl
}

full_size() { # NAME WORD...
    part "$1" "$2" "$PYTHON" benchmarks/full_size.py --model "$MODEL" --steps "$STEPS" \
        --out "$WORK/full_size-$1.json" "${@:3}"
}

# The model in half precision, as files that are small enough: the denoiser, and the rest.
pack() {
    part pack 40 "$PYTHON" - "$WORK/run/final" "$WORK/half" <<'END' || return
import sys
import torch
from demo_t2v.pipeline import DemoPipeline
DemoPipeline.from_pretrained(sys.argv[1], dtype=torch.float16).save_pretrained(sys.argv[2])
END
    [ ! -f "$WORK/run/final/README.md" ] || cp "$WORK/run/final/README.md" "$WORK/half"
    tar -cf "$OUT/model-unet.tar" -C "$WORK/half" unet
    tar -cf "$OUT/model-rest.tar" --exclude=./unet -C "$WORK/half" .
}

install >"$WORK/install.log" 2>&1 || cat "$WORK/install.log" >&2
export PYTHONPATH=$PYTHONPATH:$WORK/site
# No video is read or written here, and the wheel of PyAV is 34 MiB: something stands in for it.
if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("av"))'; then
    for module in container packet stream video/reformatter; do
        mkdir -p "$WORK/site/av/$module"
        for file in "$WORK/site/av" "$WORK/site/av/video" "$WORK/site/av/$module"; do
            mkdir -p "$file"
            echo 'from unittest.mock import MagicMock
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()' >"$file/__init__.py"
        done
    done
fi
part environment 60 bash -c '"$0" scripts/gpu_check.py "$1" | tee "$2"; exit "${PIPESTATUS[0]}"' \
    "$PYTHON" "$DEVICE" "$WORK/environment.json"
if [ -z "$MODEL" ]; then
    MODEL=$WORK/full
    part full-model 90 "$PYTHON" benchmarks/full_size.py --make "$MODEL"
fi
full_size fp16 60 --dtype float16
full_size bf16 60 --dtype bfloat16
full_size 8GB 60 --max-memory 8GB
part train-step 100 "$PYTHON" scripts/train_pace.py --steps "$TRAIN_STEPS" --unsaved \
    --out "$WORK/full_size-train-step.json" -- configs/train.yaml log_dir="$WORK/full-train" \
    autoencoder="$MODEL" clip="$MODEL" base="$MODEL" 'train_dataset={type: sprites}' \
    deepspeed_config=null regularization_weight=0 $TRAIN
seconds=$((LIMIT - SECONDS - 90)) # the score, and packing
[ $seconds -lt $TRAINING ] || seconds=$TRAINING
part training $((seconds + REST)) "$PYTHON" scripts/train_sprites.py --out "$WORK/run" \
    --device "$DEVICE" --minutes "$(awk "BEGIN { print $seconds / 60 }")" --score $SCORE $RECIPE
[ ! -d "$WORK/run/final" ] || pack
full_size compiled-bf16 150 --dtype bfloat16 --compile
full_size compiled-fp16 150 --dtype float16 --compile
cat "$OUT/report.txt"
