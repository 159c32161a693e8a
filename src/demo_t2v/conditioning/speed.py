"""A dial for the speed of a motion, calibrated by measurement.

A knob moves the motion states along a line: those of the prompt with the word "slowly" at -1, of
the plain prompt at 0, of the prompt with "quickly" at 1, linear between them and beyond. Directions
between the embeddings of two prompts control an attribute continuously, as Concept Sliders
(arXiv 2311.12092) do with weights. A calibration has the speeds that a model shows at some knobs;
the inverse, from a speed to its knob, is piecewise linear.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from demo_t2v.conditioning.blend import Blend
from demo_t2v.conditioning.timeline import MotionPrompt, Timeline, as_blend
from demo_t2v.core.errors import UserError

FILE: Final = "speed.json"
"""The calibration's file in a model folder."""
_SPEED: Final = re.compile(r"(\d+\.?\d*|\.\d+)\s*(px|sides/s|x)", re.ASCII)

_ROUNDED: Final = 0.005
"""Share by which a number of three digits may differ: the ends of a range are named by three."""


class SpeedError(UserError):
    """A speed that cannot be had; the message is one line."""


@dataclass(frozen=True)
class SpeedWords:
    """The words of a model's captions for speed, and where they stand."""

    slow: str
    """The word at knob -1."""
    fast: str
    """The word at knob 1."""
    before: tuple[str, ...] = ()
    """Phrases before which the word stands; without one of them it ends the prompt."""

    def steer(self, prompt: MotionPrompt, knob: float) -> Blend | Timeline:
        """A motion prompt at a knob: a blend, or a timeline of blends.

        Where a prompt has one of the words, it is replaced.
        """
        if isinstance(prompt, Timeline):
            blends = tuple(self._steer_blend(as_blend(one), knob) for one in prompt.prompts)
            return replace(prompt, prompts=blends)
        return self._steer_blend(as_blend(prompt), knob)

    def _steer_blend(self, blend: Blend, knob: float) -> Blend:
        share, word = abs(knob), self.slow if knob < 0 else self.fast
        prompts: list[str] = []
        weights: list[tuple[float, float]] = []
        for prompt, (first, last) in zip(blend.prompts, blend.ends, strict=True):
            prompts += [self._with_word(prompt, ""), self._with_word(prompt, word)]
            weights += [(part * first, part * last) for part in (1 - share, share)]
        return Blend(tuple(prompts), tuple(weights))

    def _with_word(self, prompt: str, word: str) -> str:
        """The prompt with `word` in place of a word of speed."""
        words = "|".join(map(re.escape, (self.slow, self.fast)))
        plain = re.sub(rf"\s*\b({words})\b", "", prompt).strip()
        if not word:
            return plain
        found = [plain.find(f" {phrase}") for phrase in self.before]
        at = min((start for start in found if start > 0), default=len(plain.rstrip(" .")))
        return f"{plain[:at]} {word}{plain[at:]}"


@dataclass(frozen=True)
class SpeedCalibration:
    """The speeds of a model's videos at K knobs, at its own size and default settings.

    Raises SpeedError for numbers that are not finite or do not rise, and for lists that differ in
    length.
    """

    words: SpeedWords
    knobs: tuple[float, ...]
    sides_per_frame: tuple[float, ...]
    """Speed of a thing that moves across, in frame sides a frame, at each knob."""
    factors: tuple[float, ...]
    """Speed of other motions at each knob, relative to that at knob 0."""

    def __post_init__(self) -> None:
        curves = (self.knobs, self.sides_per_frame, self.factors)
        if len(self.knobs) < 2 or len(set(map(len, curves))) > 1:
            raise SpeedError("each list should have as many numbers, 2 or more")
        import numpy as np  # too slow for a command's help

        if not np.isfinite(curves).all() or not (np.diff(curves) > 0).all():
            raise SpeedError("knobs and speeds should be finite and rise")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The calibration in a model folder, if it has one. Raises SpeedError."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            words = entries.pop("words")
            words = SpeedWords(**(words | {"before": tuple(words["before"])}))
            return cls(words, **{key: tuple(curve) for key, curve in entries.items()})
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise SpeedError(f"{file}: is no speed calibration ({error})") from None

    def write(self, folder: Path) -> None:
        """Write the file of a model folder. Raises OSError."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")

    def knob(self, speed: str, side: int, fps: float) -> float:
        """The knob of a speed: `2.5px` (pixels a frame), `0.25sides/s` (frame sides a second) or
        `1.4x` (times the usual speed).

        `side` is that of a frame in pixels, `fps` the frames per second of the file. Raises
        SpeedError for another form, and outside the calibrated range.
        """
        found = _SPEED.fullmatch(speed.strip())
        if found is None:
            raise SpeedError(
                f"speed: {speed!r} is no speed; write pixels a frame as 2.5px, frame sides a "
                "second as 0.25sides/s, or times the usual speed as 1.4x"
            )
        import numpy as np

        number, unit = float(found[1]), found[2]
        curve, scale = {
            "px": (self.sides_per_frame, side),
            "sides/s": (self.sides_per_frame, fps),
            "x": (self.factors, 1.0),
        }[unit]
        low, high = curve[0] * scale, curve[-1] * scale
        if not low * (1 - _ROUNDED) <= number <= high * (1 + _ROUNDED):
            raise SpeedError(
                f"speed: {speed.strip()} is outside the calibrated range; "
                f"choose from {low:.3g}{unit} to {high:.3g}{unit}"
            )
        return float(np.interp(number / scale, curve, self.knobs))
