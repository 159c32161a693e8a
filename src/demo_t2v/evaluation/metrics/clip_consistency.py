"""CLIP temporal consistency: how similar neighbouring frames are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demo_t2v.evaluation.metrics.clip_embeddings import ClipEmbedder
from demo_t2v.evaluation.metrics.metric import Better, VideoClip, VideoMetric, check_frames


class ClipConsistency(VideoMetric):
    """Mean cosine between the CLIP embeddings of neighbouring frames (arXiv 2310.11440)."""

    better: Better = "higher"
    notes = ("still videos have 1",)

    def __init__(self, embedder: ClipEmbedder) -> None:
        super().__init__()
        self.name = f"CLIP temporal consistency ({embedder.name})"
        self._embedder = embedder

    def measure(self, clip: VideoClip) -> float:
        """The value of one video, in [-1, 1]. Raises EvaluationError for a single frame."""
        check_frames(clip, 2)
        frames = self._embedder.frames(clip)
        return float((frames[:-1] * frames[1:]).sum(dim=1).mean())

    def depends_on(self) -> Mapping[str, Any]:
        """The CLIP."""
        return self._embedder.depends_on
