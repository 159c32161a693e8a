"""The metrics that have a value for each video."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from demo_t2v.evaluation.metrics.clip_consistency import ClipConsistency
from demo_t2v.evaluation.metrics.clip_embeddings import ClipEmbedder
from demo_t2v.evaluation.metrics.clipsim import ClipSim
from demo_t2v.evaluation.metrics.dynamic_degree import DynamicDegree
from demo_t2v.evaluation.metrics.flicker import TemporalFlickering
from demo_t2v.evaluation.metrics.flow import VideoFlow
from demo_t2v.evaluation.metrics.flow_score import FlowScore
from demo_t2v.evaluation.metrics.metric import Metric
from demo_t2v.evaluation.metrics.warp_error import WarpError

Network = TypeVar("Network")


def single_video_metrics(
    clip: str | None = None, raft: Path | None = None, feature_cache: Path | None = None
) -> list[tuple[str, Callable[[], Metric]]]:
    """Names of metrics, and functions that make them or raise MissingWeightsError.

    `clip` is a folder or a repository of the hub with a CLIP, `raft` a file of RAFT's weights.
    Embeddings and flow of a video are computed once for all metrics, and kept in the folder
    `feature_cache` if they come from a network. A function raises EvaluationError for a network
    that is there and cannot be used.
    """
    embedder = _once(partial(ClipEmbedder, clip, feature_cache))
    lucas_kanade = cache(VideoFlow.lucas_kanade)
    raft_flow = cache(partial(VideoFlow.raft, raft, feature_cache))
    return [
        ("CLIPSIM", lambda: ClipSim(embedder())),
        ("CLIP temporal consistency", lambda: ClipConsistency(embedder())),
        (TemporalFlickering.name, TemporalFlickering),
        ("flow score (Lucas-Kanade)", lambda: FlowScore(lucas_kanade())),
        ("dynamic degree (Lucas-Kanade)", lambda: DynamicDegree(lucas_kanade())),
        ("warp error (Lucas-Kanade)", lambda: WarpError(lucas_kanade())),
        ("flow score (RAFT)", lambda: FlowScore(raft_flow())),
        ("dynamic degree (RAFT)", lambda: DynamicDegree(raft_flow())),
        ("warp error (RAFT)", lambda: WarpError(raft_flow())),
    ]


def _once(load: Callable[[], Network]) -> Callable[[], Network]:
    """A function that loads a network at its first call; an error of the hub is raised again.

    The hub's client tries for half a minute.
    """
    attempt = cache(partial(_attempt, load))

    def loaded() -> Network:
        found = attempt()
        if isinstance(found, ConnectionError):
            raise found
        return found

    return loaded


def _attempt(load: Callable[[], Network]) -> Network | ConnectionError:
    try:
        return load()
    except ConnectionError as error:
        return error
