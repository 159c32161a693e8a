"""Guidance: the combination of predictions for different prompts in one denoising step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:  # the command line imports this file, and torch loads slowly
    from torch import Tensor

Denoiser = Callable[["Tensor", "Tensor"], "Tensor"]
"""(latents (B, C, F, H, W), timestep) -> a prediction of the same shape."""
GuidanceOrder = Literal["content", "motion"]
Interval = tuple[float, float]
"""Lowest and highest noise level, as fractions of the training's timesteps; both are included."""
ALL_NOISE_LEVELS: Final[Interval] = (0.0, 1.0)


@dataclass(frozen=True)
class Scale:
    """A guidance scale, and the noise levels at which it acts (arXiv 2404.07724).

    Raises ValueError for a scale that is negative or not finite, and for an interval that is not
    within [0, 1].
    """

    value: float
    interval: Interval = ALL_NOISE_LEVELS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"guidance scale {self.value}: must be finite, and 0 or more")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(
                f"guidance interval {self.interval}: must be two noise levels from 0 to 1, the "
                "lower one first"
            )

    def at(self, noise_level: float, neutral: float) -> float:
        """The scale at a noise level in [0, 1]; `neutral` outside the interval."""
        low, high = self.interval
        return self.value if low <= noise_level <= high else neutral


_ONE: Final = Scale(1.0)


class Condition(NamedTuple):
    """What a prediction is conditioned on: the prompt (True) or the negative prompt (False)."""

    content: bool
    motion: bool
    bypass: bool = False
    """Whether the motion branch is left out, as with a motion strength of 0."""


_NEGATIVE: Final = Condition(False, False)
_POSITIVE: Final = Condition(True, True)
_BYPASS: Final = Condition(True, True, bypass=True)


@dataclass(frozen=True)
class ContentMotionGuidance:
    """Classifier-free guidance with one scale for the content and one for the motion prompt.

    With the prompts c (content) and m (motion) and their negatives nc and nm, the result is

        eps(nc, nm) + s_c [eps(c, nm) - eps(nc, nm)] + s_m [eps(c, m) - eps(c, nm)]

    as InstructPix2Pix does for image and text (arXiv 2211.09800, eq. 3). With `first` "motion" the
    motion prompt stands in the first bracket and the content prompt in the second. Equal scales are
    classifier-free guidance (arXiv 2207.12598, eq. 6 with scale 1 + w) and need two predictions.

    Bypass guidance adds s_b [eps(c, m) - eps(c, m) without the motion branch]. Its weak model is a
    part of the network, as in spatio-temporal skip guidance (arXiv 2411.18664).
    """

    content: Scale = _ONE
    motion: Scale = _ONE
    bypass: Scale = Scale(0.0)
    first: GuidanceOrder = "content"

    @property
    def uses_negative(self) -> bool:
        """Whether a prediction is conditioned on a negative prompt."""
        return not (self.content.value == self.motion.value == 1)

    @property
    def separates(self) -> bool:
        """Whether it treats content and motion differently, which a base model cannot."""
        return self.content != self.motion or self.bypass.value != 0

    @property
    def max_predictions(self) -> int:
        """The most predictions in a step that run the complete network."""
        return (2 if self.content == self.motion else 3) if self.uses_negative else 1

    def __call__(
        self, predict: Callable[[Sequence[Condition]], Sequence[Tensor]], noise_level: float
    ) -> Tensor:
        """The guided prediction (B, C, F, H, W) at a noise level in [0, 1].

        `predict` is called once and returns a prediction (B, C, F, H, W) for each condition.
        """
        start, differences = self._terms(noise_level)
        conditions = dict.fromkeys([start])
        for _, towards, away in differences:
            conditions |= {away: None, towards: None}
        predictions = dict(zip(conditions, predict(list(conditions)), strict=True))
        guided = predictions[start]
        for scale, towards, away in differences:
            guided = guided + scale * (predictions[towards] - predictions[away])
        return guided

    def _terms(
        self, noise_level: float
    ) -> tuple[Condition, list[tuple[float, Condition, Condition]]]:
        """The condition that the sum starts from, and (scale, towards, away) of each difference.

        Differences with equal scales are one; a scale of 1 at the start moves the start.
        """
        content, motion = (scale.at(noise_level, 1.0) for scale in (self.content, self.motion))
        between = Condition(self.first == "content", self.first == "motion")
        first, second = (content, motion) if between.content else (motion, content)
        if first == second:
            differences = [(first, _POSITIVE, _NEGATIVE)]
        else:
            differences = [(first, between, _NEGATIVE), (second, _POSITIVE, between)]
        start = _NEGATIVE
        if differences[0][0] == 1:
            start = differences.pop(0)[1]
        bypass = self.bypass.at(noise_level, 0.0)
        if bypass:
            differences.append((bypass, _POSITIVE, _BYPASS))
        return start, differences


def make_guidance(
    guidance_scale: float,
    content_guidance_scale: float | None = None,
    motion_guidance_scale: float | None = None,
    bypass_guidance_scale: float = 0.0,
    guidance_order: GuidanceOrder = "content",
    guidance_interval: Interval = ALL_NOISE_LEVELS,
    content_guidance_interval: Interval | None = None,
    motion_guidance_interval: Interval | None = None,
    bypass_guidance_interval: Interval = ALL_NOISE_LEVELS,
) -> ContentMotionGuidance:
    """The guidance of the options with these names.

    `guidance_scale` and `guidance_interval` are those of both prompts, where theirs are None. A
    `guidance_scale` below 1 counts as 1, which is no guidance. Raises ValueError for scales and
    intervals that Scale refuses.
    """
    both = max(Scale(guidance_scale).value, 1.0)
    content = both if content_guidance_scale is None else content_guidance_scale
    motion = both if motion_guidance_scale is None else motion_guidance_scale
    return ContentMotionGuidance(
        Scale(content, content_guidance_interval or guidance_interval),
        Scale(motion, motion_guidance_interval or guidance_interval),
        Scale(bypass_guidance_scale, bypass_guidance_interval),
        guidance_order,
    )
