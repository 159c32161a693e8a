"""What a visitor asks for: bounded, checked, and as a command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from demo_t2v.config import InferenceConfig
from demo_t2v.core.errors import UserError

if TYPE_CHECKING:
    from demo_t2v.pipeline import DemoPipeline

Tab = Literal["generate", "compare", "apart", "inside"]
"""The tabs that make videos."""

PROMPT_LENGTH: Final = 300
"""Characters; CLIP hears 75 tokens."""
MOST_VIDEOS: Final = 4
_MARKUP: Final = re.compile(r"<\s*[a-z/!?]", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class WishError(UserError):
    """Something that cannot be made; one line for the visitor."""


@dataclass(frozen=True)
class Bound:
    """The range of a number that a visitor may choose, both ends included, and where it begins."""

    low: float
    high: float
    start: float
    step: float = 1

    def check(self, name: str, value: Any) -> Any:
        """The value, an int where the range is one of ints. Raises WishError."""
        number = value if isinstance(value, int | float) else self.low - 1
        if not self.low <= number <= self.high:  # not a number (nan) lands here too
            raise WishError(f"{name}: choose from {self.low:g} to {self.high:g}")
        if self.step != int(self.step):
            return float(number)
        if number % self.step:
            raise WishError(f"{name}: choose a multiple of {self.step:g}")
        return int(number)


@dataclass(frozen=True)
class Limits:
    """The numbers of a wish and their bounds, in the order in which a form gives them."""

    seed: Bound
    videos: Bound
    steps: Bound
    frames: Bound
    width: Bound
    height: Bound
    fps: Bound
    guidance: Bound
    motion_strength: Bound

    @classmethod
    def of(cls, pipeline: DemoPipeline) -> Limits:
        """What one visitor may ask of this model: up to twice its frames and its side."""
        unet, known = pipeline.unet.config, pipeline.config
        side = unet.sample_size * pipeline.vae_scale_factor
        step = pipeline.vae_scale_factor * 2 ** (len(unet.block_out_channels) - 1)
        pixels = Bound(min(2 * step, side), 2 * side, side, step)
        return cls(
            seed=Bound(0, 2**32 - 1, 0),
            videos=Bound(1, MOST_VIDEOS, 1),
            steps=Bound(1, max(100, known.num_inference_steps), known.num_inference_steps),
            frames=Bound(2, 2 * unet.sample_frames, unet.sample_frames),
            width=pixels,
            height=pixels,
            fps=Bound(1, 30, InferenceConfig().fps),
            guidance=Bound(1, 20, known.guidance_scale, 0.5),
            motion_strength=Bound(0, 3, 1, 0.1),
        )

    def wish(self, tab: Tab, prompt: Any, motion_prompt: Any, *numbers: Any) -> Wish:
        """A form's values, `numbers` in this class's order, as a wish. Raises WishError.

        Only taking motion apart has a motion prompt and strength, only generating several videos.
        """
        values = {
            field.name: getattr(self, field.name).check(field.name.replace("_", " "), number)
            for field, number in zip(fields(self), numbers, strict=True)
        }
        spoken = _read_text("prompt", prompt)
        if not spoken:
            raise WishError("Write what the video should show, or take one of the examples.")
        heard = _read_text("motion prompt", motion_prompt) if tab == "apart" else ""
        if tab != "apart":
            values["motion_strength"] = 1.0
        if tab != "generate":
            values["videos"] = 1
        return Wish(tab, spoken, heard, **values)


@dataclass(frozen=True)
class Wish:
    """One press of a button; sizes in pixels. An empty motion prompt is the prompt's own text."""

    tab: Tab
    prompt: str
    motion_prompt: str
    seed: int
    videos: int
    steps: int
    frames: int
    width: int
    height: int
    fps: int
    guidance: float
    motion_strength: float

    @property
    def strengths(self) -> list[float]:
        """The motion strengths to make it with, in turn: comparing is without, and with."""
        return [0.0, 1.0] if self.tab == "compare" else [self.motion_strength]

    @property
    def form(self) -> tuple[Any, ...]:
        """The values of the form, as `Limits.wish` takes them."""
        return astuple(self)[1:]

    def config(self, base: InferenceConfig, strength: float) -> InferenceConfig:
        """`base`, which names model and device, with this wish's settings."""
        return base.model_copy(
            update={
                "seed": self.seed,
                "num_inference_steps": self.steps,
                "num_frames": self.frames,
                "height": self.height,
                "width": self.width,
                "fps": self.fps,
                "guidance_scale": self.guidance,
                "motion_prompt": self.motion_prompt or None,
                "motion_strength": strength,
            }
        )

    def command(self, base: InferenceConfig) -> str:
        """The command lines, quoted for a shell, that make the same videos; one a strength."""
        return "\n".join(shlex.join(self._words(base, strength)) for strength in self.strengths)

    def _words(self, base: InferenceConfig, strength: float) -> Iterator[str]:
        yield from ("demo-t2v", "generate")
        # After a space, a prompt that begins like an option or reads like `key=value` is none.
        hidden = self.prompt.startswith("-") or "=" in self.prompt
        yield f" {self.prompt}" if hidden else self.prompt
        numbers = {
            "seed": self.seed,
            "repeat": self.videos,
            "steps": self.steps,
            "guidance": self.guidance,
            "frames": self.frames,
            "width": self.width,
            "height": self.height,
            "fps": self.fps,
        }
        for name, number in numbers.items():
            yield from (f"--{name}", f"{number:g}" if isinstance(number, float) else str(number))
        if self.motion_prompt:
            yield f"--motion-prompt={self.motion_prompt}"
        if strength != 1:
            yield from ("--motion-strength", f"{strength:g}")
        if self.tab == "compare":  # both would have the same file name
            yield from ("--out", f"outputs/motion-{strength:g}")
        default = InferenceConfig()
        for option, key in (
            ("model", "model"),
            *((k, k) for k in ("lora", "device", "dtype")),
        ):
            if getattr(base, key) != getattr(default, key):
                yield f"--{option}={getattr(base, key)}"


def _read_text(name: str, text: Any) -> str:
    """One line of words. Raises WishError."""
    line = " ".join(str(text or "").split())
    if len(line) > PROMPT_LENGTH:
        raise WishError(f"The {name} is longer than {PROMPT_LENGTH} characters: shorten it.")
    if _UNPRINTABLE.search(line):
        raise WishError(f"The {name} has characters that cannot be printed.")
    if _MARKUP.search(line):
        raise WishError(f"The {name} has a tag in it; say it in words, without < and >.")
    return line
