"""CLIPSIM: how well the frames of a video fit its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from demo_t2v.evaluation.metrics.clip_embeddings import ClipEmbedder
from demo_t2v.evaluation.metrics.metric import (
    Better,
    Figure,
    TooFewVideosError,
    VideoClip,
    VideoMetric,
)


class ClipSim(VideoMetric):
    """Mean over the frames of the cosine between CLIP's embeddings of frame and prompt.

    (GODIVA, arXiv 2104.14806.) Videos without a prompt do not count, which a note says.
    """

    better: Better = "higher"

    def __init__(self, embedder: ClipEmbedder) -> None:
        super().__init__()
        self.name = f"CLIPSIM ({embedder.name})"
        self._embedder = embedder
        self._without_prompt = 0

    def update(self, clip: VideoClip, real: bool = False) -> float | None:
        """The value of a video, None without a prompt."""
        if not clip.prompt:
            self._without_prompt += not real
            return None
        return super().update(clip, real)

    def measure(self, clip: VideoClip) -> float:
        """The value of one video, in [-1, 1]."""
        return float((self._embedder.frames(clip) @ self._embedder.prompt(clip.prompt)).mean())

    def compute(self) -> Figure:
        """The mean over the videos with a prompt. Raises TooFewVideosError for none."""
        if not self._values:
            raise TooFewVideosError("needs prompts: no video has one; name a file by --prompts")
        figure = super().compute()
        if not self._without_prompt:
            return figure
        return replace(figure, notes=(f"{self._without_prompt} videos have no prompt",))

    def depends_on(self) -> Mapping[str, Any]:
        """The CLIP."""
        return self._embedder.depends_on
