"""The metrics that `demo-t2v evaluate` computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from demo_t2v.evaluation.metrics.clip_consistency import ClipConsistency
from demo_t2v.evaluation.metrics.clip_embeddings import ClipEmbedder
from demo_t2v.evaluation.metrics.clipsim import ClipSim
from demo_t2v.evaluation.metrics.dynamic_degree import DynamicDegree
from demo_t2v.evaluation.metrics.flicker import TemporalFlickering
from demo_t2v.evaluation.metrics.flow import VideoFlow
from demo_t2v.evaluation.metrics.flow_score import FlowScore
from demo_t2v.evaluation.metrics.metric import Metric, MissingWeightsError
from demo_t2v.evaluation.metrics.warp_error import WarpError
from demo_t2v.evaluation.results import MetricResult

Makers = list[tuple[str, Callable[[], Metric]]]


def make_metrics(
    *, with_real: bool, clip: str = "", raft: Path | None = None
) -> tuple[list[Metric], list[MetricResult]]:
    """The metrics that can be computed here, and the reasons why others cannot.

    Metrics that compare with real videos need `with_real`. `clip` and `raft` are as for
    `single_video_metrics`.
    """
    makers = single_video_metrics(clip, raft)
    metrics: list[Metric] = []
    missing = []
    for name, make in makers:
        try:
            metric = make()
        except MissingWeightsError as error:
            missing.append(MetricResult(name, None, {}, str(error)))
            continue
        if metric.needs_real and not with_real:
            reason = "compares with real videos: name their folder by --real"
            missing.append(MetricResult(name, None, {}, reason))
        else:
            metrics.append(metric)
    return metrics, missing


def single_video_metrics(clip: str = "", raft: Path | None = None) -> Makers:
    """The metrics that have a value for each video, by name.

    `clip` is a folder or a repository of the hub with a CLIP, `raft` a file of RAFT's weights.
    Embeddings and flow of a video are computed once for all of them.
    """
    embedder = cache(partial(ClipEmbedder, clip))
    makers: Makers = [
        ("CLIPSIM", lambda: ClipSim(embedder())),
        ("CLIP temporal consistency", lambda: ClipConsistency(embedder())),
        (TemporalFlickering.name, TemporalFlickering),
    ]
    flows = {
        "Lucas-Kanade": cache(VideoFlow.lucas_kanade),
        "RAFT": cache(partial(VideoFlow.raft, raft)),
    }
    for estimator, flow in flows.items():
        for kind in (FlowScore, DynamicDegree, WarpError):
            makers.append((f"{kind.title} ({estimator})", partial(_with_flow, kind, flow)))
    return makers


def _with_flow(
    kind: type[FlowScore | DynamicDegree | WarpError], flow: Callable[[], VideoFlow]
) -> Metric:
    return kind(flow())
