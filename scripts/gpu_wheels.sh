#!/usr/bin/env bash
# Download what a GPU machine without network may lack, for Python 3.12 and the versions of
# constraints.txt: PyTorch, transformers, accelerate, huggingface_hub and tensorboard are to be
# there. scripts/gpu_run.sh installs the folder; it and the checkout stay below 64 MiB together.
#   bash scripts/gpu_wheels.sh [FOLDER]     # default: .whl, which git ignores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.whl}
names='annotated-types|diffusers|einops|ftfy|importlib_metadata|pydantic|pydantic_core'
names+='|typing-inspection|typing_extensions|wcwidth'
mapfile -t packages < <(grep -iE "^($names)==" constraints.txt)
mkdir -p "$folder"
rm -f "$folder"/*.whl
platforms=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]/#/--platform=}" \
    --dest "$folder" "${packages[@]}"
tree=$(git ls-files --cached --others --exclude-standard -z | du -bc --files0-from=- | tail -1 | cut -f1)
wheels=$(du -bc "$folder"/*.whl | tail -1 | cut -f1)
echo "$folder: $((wheels >> 20)) MiB of wheels, beside a checkout of $((tree >> 20)) MiB"
[ $((tree + wheels)) -lt $((64 << 20)) ] || { echo "more than 64 MiB together" >&2; exit 1; }
