"""Throughput of each metric of `demo-t2v evaluate`, and how memory grows with the videos.

    python benchmarks/metric_speed.py --videos 300             metrics without weights
    python benchmarks/metric_speed.py --videos 300 --clip FOLDER --raft FILE --i3d FILE
    python benchmarks/metric_speed.py --videos 8 --random-weights full --only FVD
    python benchmarks/metric_speed.py --memory 100 1000 --random-weights small

Videos are drawn one by one from the sprite world; the time to draw them and to load networks does
not count. Metrics that share embeddings, features or flow compute them for themselves here. A
metric that compares with real videos measures each video twice, once as a real one.

With `--random-weights` each network that is not given has random weights. The rates are those of
the real network if the size is `full`. The metrics' values mean nothing, and are not shown.

With `--memory` all metrics measure that many videos together, and the peak memory is that of the
process up to then. Several numbers are measured one after another, so the peaks can only rise.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import random_networks
from timing import environment

from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.data.sprites import draw_clip
from demo_t2v.evaluation.distribution_metrics import Extractors
from demo_t2v.evaluation.metrics.metric import (
    Metric,
    MissingWeightsError,
    TooFewVideosError,
    VideoClip,
)
from demo_t2v.evaluation.single_video_metrics import single_video_metrics

WARM_UP = 1


@dataclass(frozen=True)
class Networks:
    """Files and folders of networks; None: not here."""

    clip: str | None
    raft: Path | None
    inception: Path | None
    i3d: Path | None
    videomae: str | None
    image_frames: int | None

    def makers(self) -> list[tuple[str, Callable[[], Metric]]]:
        """Names of all metrics and functions that make them, each with networks of its own."""
        extractors = Extractors(
            self.inception, self.i3d, self.videomae, image_frames=self.image_frames
        )
        return [*single_video_metrics(self.clip, self.raft), *extractors.metrics()]

    def with_random(self, folder: Path, frames: int, small: bool) -> Networks:
        """These, and files of random weights in `folder` for those that are None.

        Networks whose package is not installed stay None, and so do those that are never small.
        """
        found = self
        if self.clip is None:
            random_networks.write_clip(folder / "clip", small)
            found = replace(found, clip=str(folder / "clip"))
        if self.videomae is None:
            random_networks.write_videomae(folder / "videomae", frames, small)
            found = replace(found, videomae=str(folder / "videomae"))
        if small:
            return found
        for name, write in (
            ("i3d", random_networks.write_i3d),
            ("raft", random_networks.write_raft),
            ("inception", random_networks.write_inception),
        ):
            if getattr(self, name) is None:
                try:
                    write(folder / name)
                except (ImportError, RuntimeError) as error:
                    print(f"{name}: {str(error).partition(chr(10))[0]}")
                else:
                    found = replace(found, **{name: folder / name})
        return found


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


def rates(networks: Networks, only: str, count: int, size: tuple[int, int]) -> dict[str, float]:
    """Videos a second of each metric whose name contains `only`."""
    found = {}
    for name, _ in networks.makers():
        if only.lower() not in name.lower():
            continue
        make = dict(networks.makers())[name]  # its own networks, which are freed after it
        try:
            measure([make()], WARM_UP, *size)
            found[name] = count / measure([make()], count, *size)
        except MissingWeightsError as error:
            print(f"{name}: {error}")
        else:
            print(f"{name}: {found[name]:.3g} videos/s", flush=True)
    return found


def peaks(networks: Networks, counts: Sequence[int], size: tuple[int, int]) -> dict[int, float]:
    """MiB at the peak after each number of videos, with all metrics at once."""
    found = {}
    for count in counts:
        metrics = []
        for _, make in networks.makers():
            try:
                metrics.append(make())
            except MissingWeightsError:
                continue
        measure(metrics, count, *size)
        found[count] = peak_mebibytes()
        print(f"{count} videos: peak memory {found[count]:.0f} MiB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--only", default="", help="metrics whose name contains this")
    parser.add_argument("--memory", type=int, nargs="+", help="measure memory, not speed")
    parser.add_argument("--random-weights", choices=("full", "small"), help="for speed alone")
    parser.add_argument("--clip", help="folder or hub repository of a CLIP")
    parser.add_argument("--raft", type=Path, help="RAFT's weights from torchvision")
    parser.add_argument("--inception", type=Path, help="weights of torch-fidelity")
    parser.add_argument("--i3d", type=Path, help="TorchScript file")
    parser.add_argument("--videomae", help="folder or hub repository of a VideoMAE")
    parser.add_argument("--image-frames", type=int, help="frames of a video for FID, KID, IS")
    parser.add_argument("--json", type=Path, help="file for all values")
    options = parser.parse_args()

    networks = Networks(**{name: getattr(options, name) for name in Networks.__annotations__})
    size = (options.resolution, options.frames)
    with tempfile.TemporaryDirectory() as folder:
        if options.random_weights:
            print("random weights: the rates are of networks that were never trained")
            networks = networks.with_random(
                Path(folder), options.frames, options.random_weights == "small"
            )
        values: dict[str, object] = {"random weights": options.random_weights, **environment()}
        values |= {"resolution": options.resolution, "frames": options.frames}
        if options.memory:
            values["peak MiB by videos"] = peaks(networks, options.memory, size)
        else:
            values["videos"] = options.videos
            values["videos/s"] = rates(networks, options.only, options.videos, size)
    if options.json:
        with atomic_write(options.json) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
