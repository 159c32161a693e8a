"""Throughput of each metric of `demo-t2v evaluate`, and how memory grows with the videos.

    python benchmarks/metric_speed.py --videos 300
    python benchmarks/metric_speed.py --videos 1000 --memory-only --clip FOLDER --raft FILE

Videos are drawn one by one from the sprite world; the time to draw them does not count. Metrics
that share embeddings or flow compute them for themselves here, and once in the row of all metrics.
A metric that compares with real videos measures each video twice, once as a real one.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import draw_clip
from demo_t2v.evaluation.all_metrics import make_metrics
from demo_t2v.evaluation.metrics.metric import Metric, TooFewVideosError, VideoClip

WARM_UP = 8


def peak_mebibytes() -> float:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(metrics: Sequence[Metric], count: int, resolution: int, frames: int) -> float:
    """The seconds that the metrics take for `count` videos."""
    rng = np.random.default_rng(0)
    seconds = 0.0
    for number in range(count):
        drawn = draw_clip(rng, resolution, frames)
        clip = VideoClip(str(number), drawn.frames, 8, drawn.caption)
        start = time.perf_counter()
        for metric in metrics:
            if metric.needs_real:
                metric.update(clip, real=True)
            metric.update(clip)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    for metric in metrics:
        try:
            metric.compute()
        except TooFewVideosError as error:
            print(f"{metric.name}: {error}")
    return seconds + time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--memory-only", action="store_true", help="only the row of all metrics")
    parser.add_argument("--clip", help="folder or hub repository of a CLIP")
    parser.add_argument("--raft", type=Path, help="RAFT's weights from torchvision")
    parser.add_argument("--json", type=Path, help="file for all values")
    options = parser.parse_args()

    def metrics() -> list[Metric]:
        return make_metrics(with_real=True, clip=options.clip, raft=options.raft)[0]

    size = (options.resolution, options.frames)
    measure(metrics(), WARM_UP, *size)
    warm = peak_mebibytes()
    rates = {}
    if not options.memory_only:
        for index, metric in enumerate(metrics()):
            alone = [metrics()[index]]
            rates[metric.name] = options.videos / measure(alone, options.videos, *size)
            print(metric.name, f"{rates[metric.name]:.3g} videos/s", flush=True)
    rates["all metrics"] = options.videos / measure(metrics(), options.videos, *size)
    peak = peak_mebibytes()
    table = Table("metric", "videos/s", title=f"{options.videos} videos of {options.frames} frames")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.3g}")
    console = Console()
    console.print(table)
    console.print(f"peak memory: {warm:.0f} MiB at {WARM_UP} videos, {peak:.0f} MiB in the end")
    if options.json:
        values = {"videos/s": rates, "MiB at the start": warm, "MiB in the end": peak}
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
