"""The score of one video."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from demo_t2v.evaluation.report import VideoScore
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import SpritePrompt


def score_video(prompt: SpritePrompt, frames: NDArray[np.uint8]) -> VideoScore:
    """What a video (F, H, W, 3) shows, beside what its prompt requests.

    Raises EvaluationError for a shape that `classify_video` does not take.
    """
    found = classify_video(frames)
    return VideoScore(
        id=prompt.id,
        prompt=prompt.prompt,
        held_out=prompt.held_out,
        thing=prompt.thing,
        motion=prompt.motion,
        background=prompt.background,
        seen_thing=found.thing,
        seen_motion=found.motion,
        seen_background=found.background,
        share=float(found.share.mean()),
        deviation=found.deviation,
    )
