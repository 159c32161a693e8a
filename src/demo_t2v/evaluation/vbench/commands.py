"""The shell commands that install and run VBench in an environment of its own.

They are those of VBench's README, with its version pinned.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from demo_t2v.evaluation.vbench.export import PROMPTS, VIDEOS, Export
from demo_t2v.evaluation.vbench.suite import DETECTRON, FLICKERING, VERSION

_TORCH: Final = "torch torchvision --index-url https://download.pytorch.org/whl/cu118"
_DETECTRON: Final = "'detectron2@git+https://github.com/facebookresearch/detectron2.git'"


def vbench_commands(export: Export, out: Path) -> list[str]:
    """The lines of a shell script that measures the folder `out` and imports the results.

    VBench runs inside `out`, because it passes paths to a second shell without quoting them. It
    measures each dimension by itself, so that one that fails does not stop the others.
    """
    custom = f" --mode custom_input --prompt_file {PROMPTS}" if not export.coverage else ""
    dimensions = export.dimensions
    lines = [
        "# VBench needs CUDA, and Python 3.11 or older.",
        "python3.11 -m venv vbench-env",
        "source vbench-env/bin/activate",
        f"pip install {_TORCH}",
        f"pip install vbench=={VERSION}",
        *([f"pip install {_DETECTRON}"] if DETECTRON & {*dimensions} else []),
        f"cd {shlex.quote(str(out))}",
    ]
    for dimension in dimensions:
        videos = VIDEOS
        if dimension == FLICKERING:
            lines.append(f"vbench static_filter --videos_path {VIDEOS}")
            videos = "filter_results/filtered_videos"
        lines.append(f"vbench evaluate --videos_path {videos} --dimension {dimension}{custom}")
    return [
        *lines,
        "deactivate",
        "demo-t2v evaluate vbench import evaluation_results/*_eval_results.json --export . "
        f"--vbench-version {VERSION} --out results.json",
    ]
