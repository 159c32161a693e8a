"""The report of `scripts/gpu_run.sh` as text, from the files of its work folder.

    python scripts/gpu_report.py WORK

It uses only Python's standard library. Missing files are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(file: Path) -> Any:
    """The content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def lines(work: Path) -> Iterator[str]:
    machine = read(work / "environment.json") or {}
    yield ", ".join(
        f"{k} {machine[k]}" for k in ("gpu", "cores", "python", "torch") if k in machine
    )
    for missing in machine.get("missing", ()):
        yield f"missing: {missing}"
    yield "\npart                  seconds  ended"
    parts = work / "parts.tsv"
    for line in parts.read_text(encoding="utf-8").splitlines() if parts.exists() else ():
        name, seconds, ended = line.split("\t")
        yield f"{name:20} {seconds:>8}  {ended}"
    yield from stages(work)
    yield from full_size(work)
    yield from score(work)


def stages(work: Path) -> Iterator[str]:
    """The pace of each stage, and the last line of its log."""
    pace, plan = read(work / "run" / "pace.json") or {}, read(work / "run" / "plan.json") or {}
    if pace:
        heads = "s a step   clips/s  waits for data   GiB     steps  last step    loss"
        yield f"\n{'stage':16}  {heads}"
    for name, figures in pace.items():
        steps = plan.get(name, ["num_steps=-"])[0].partition("=")[2]
        line, metrics = {"step": "-", "loss": float("nan")}, work / "run" / name / "metrics.jsonl"
        if metrics.exists() and metrics.read_text(encoding="utf-8").strip():
            line = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
        yield (
            f"{name:16} {figures['seconds_per_step']:>9.4f} {figures['clips_per_second']:>9.0f} "
            f"{figures['data_wait']:>15.0%} {figures['memory']:>5.1f} {steps:>9} "
            f"{line['step']:>10} {line['loss']:>7.4g}"
        )


def full_size(work: Path) -> Iterator[str]:
    """The measurements at the published size."""
    files = sorted(work.glob("full_size-*.json"))
    if files:
        yield "\nfull size             s a step   s a video  GiB of tensors  GiB of the device"
    for file in files:
        found = read(file) or {}
        if "jobs" in found:  # of training
            for job in found["jobs"]:
                name = file.stem.removeprefix("full_size-")
                yield f"{name:20} {job['seconds_per_step']:>9.4f} {'':11} {job['memory']:>15.1f}"
        elif found:
            yield (
                f"{file.stem.removeprefix('full_size-'):20} {found['median_seconds_a_step']:>9.4f} "
                f"{found['seconds']:>11.2f} {found['peak_gib']:>15.2f} "
                f"{found.get('used_of_the_device_gib', ''):>18}"
            )


def score(work: Path) -> Iterator[str]:
    """The fraction of correct videos."""
    found = read(work / "run" / "score.json")
    for subject in found["subjects"] if found else ():
        for held_out in (False, True):
            videos = [v for v in subject["videos"] if v["held_out"] == held_out]
            right = {
                kind: sum(v[kind] == v[f"seen_{kind}"] for v in videos)
                for kind in ("motion", "thing")
            }
            if videos:
                pairs = "held out" if held_out else "trained"
                figures = ", ".join(f"{kind} {n / len(videos):.1%}" for kind, n in right.items())
                yield f"\n{subject['role']}, {pairs} pairs: {figures} of {len(videos)} videos"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
