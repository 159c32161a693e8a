"""The metrics that `demo-t2v evaluate` computes."""

from __future__ import annotations

from pathlib import Path

from demo_t2v.evaluation.distribution_metrics import Extractors
from demo_t2v.evaluation.metrics.metric import Metric, MissingWeightsError
from demo_t2v.evaluation.results import MetricResult
from demo_t2v.evaluation.single_video_metrics import single_video_metrics


def make_metrics(
    *,
    with_real: bool,
    clip: str | None = None,
    raft: Path | None = None,
    extractors: Extractors = Extractors(),  # noqa: B008 (frozen)
) -> tuple[list[Metric], list[MetricResult]]:
    """The metrics that can be computed here, and the reasons why others cannot.

    Metrics that compare with real videos need `with_real`. `clip` and `raft` are as for
    `single_video_metrics`. A network that the hub does not give is missing, too.
    """
    makers = [
        *single_video_metrics(clip, raft, extractors.cache),
        *extractors.metrics(),
    ]
    metrics: list[Metric] = []
    missing = []
    for name, make in makers:
        try:
            metric = make()
        except (MissingWeightsError, ConnectionError) as error:
            missing.append(MetricResult(name, None, {}, str(error)))
            continue
        if metric.needs_real and not with_real:
            reason = "compares with real videos: name their folder by --real"
            missing.append(MetricResult(name, None, {}, reason))
        else:
            metrics.append(metric)
    return metrics, missing
