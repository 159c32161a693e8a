"""Measures videos: each is read once, for all metrics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demo_t2v.evaluation.metrics.metric import Metric, TooFewVideosError
from demo_t2v.evaluation.results import MetricResult, Results, package_versions
from demo_t2v.evaluation.video_files import ClipFormat, VideoFile


def measure(
    metrics: Sequence[Metric],
    videos: Sequence[VideoFile],
    *,
    subject: str,
    real: Sequence[VideoFile] = (),
    real_subject: str = "",
    form: ClipFormat = ClipFormat(),  # noqa: B008 (frozen)
    settings: Mapping[str, Any] | None = None,
    not_computed: Sequence[MetricResult] = (),
    on_video: Callable[[], None] | None = None,
) -> Results:
    """All metrics on `videos`, compared with `real` where a metric needs it.

    One video is in memory at a time. `not_computed` are metrics that could not be made. Raises
    EvaluationError for a video that cannot be read or measured.
    """
    compared = [metric for metric in metrics if metric.needs_real]
    if compared:
        for video in real:
            clip = video.read(form)
            for metric in compared:
                metric.update(clip, real=True)
            if on_video:
                on_video()
    rows = []
    for video in videos:
        clip = video.read(form)
        values = {metric.name: metric.update(clip) for metric in metrics}
        frames, height, width, _ = clip.frames.shape
        rows.append(
            {
                "name": video.name,
                "prompt": video.prompt,
                "sha256": video.sha256,
                "frames": frames,
                "height": height,
                "width": width,
                "fps": clip.fps,
                **({} if video.seed is None else {"seed": video.seed}),
                **{name: value for name, value in values.items() if value is not None},
            }
        )
        if on_video:
            on_video()
    return Results(
        subject,
        real_subject,
        dict(settings or {}),
        [*map(_result, metrics), *not_computed],
        rows,
        package_versions(),
        folder=os.path.abspath(videos[0].folder) if videos else "",  # noqa: PTH100 (keeps links)
        real_sha256=_combined_hash(real) if compared and real else "",
    )


def _combined_hash(videos: Sequence[VideoFile]) -> str:
    hashes = sorted(video.sha256 for video in videos)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _result(metric: Metric) -> MetricResult:
    try:
        figure, problem = metric.compute(), ""
    except TooFewVideosError as error:
        figure, problem = None, str(error)
    return MetricResult(metric.name, figure, metric.depends_on(), problem, metric.better)
