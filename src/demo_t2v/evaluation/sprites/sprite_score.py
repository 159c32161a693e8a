"""The sprite score as a metric among others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.metrics.metric import Better, Figure, VideoClip, VideoMetric
from demo_t2v.evaluation.report import BENCHMARK_VERSION, VideoScore, accuracies
from demo_t2v.evaluation.sprites.prompts import SpritePrompt
from demo_t2v.evaluation.sprites.video_folder import score_clip


class SpriteScore(VideoMetric):
    """Percent of the videos that show the requested thing and motion: 100 or 0 for each video.

    Videos belong to `prompts` by their text. The figure's `extra` has the percent of each criterion
    for trained and for held-out pairs.
    """

    name = "sprite score"
    better: Better = "higher"

    def __init__(self, prompts: Iterable[SpritePrompt]) -> None:
        super().__init__()
        self._prompts = {prompt.prompt: prompt for prompt in prompts}
        self._scores: list[VideoScore] = []

    def measure(self, clip: VideoClip) -> float:
        """The value of one video. Raises EvaluationError for another prompt or a wrong shape."""
        prompt = self._prompts.get(clip.prompt)
        if prompt is None:
            raise EvaluationError(f"{clip.name}: {clip.prompt!r} is no prompt of the sprite score")
        try:
            score = score_clip(prompt, clip)
        except EvaluationError as error:
            raise EvaluationError(f"{clip.name}: {error}") from None
        self._scores.append(score)
        return 100.0 * score.right["both"]

    def compute(self) -> Figure:
        """The mean over the videos. Raises TooFewVideosError for none."""
        figure = super().compute()
        extra = {}
        for label, held_out in (("trained", False), ("held out", True)):
            scores = [score for score in self._scores if score.held_out == held_out]
            if scores:
                for criterion, share in accuracies(scores).items():
                    extra[f"{criterion}, {label}"] = 100 * share.right / share.count
        return replace(figure, extra=extra)

    def depends_on(self) -> Mapping[str, Any]:
        """The version of the benchmark."""
        return {"benchmark version": BENCHMARK_VERSION}
