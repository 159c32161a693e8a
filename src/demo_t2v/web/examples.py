"""The example videos that the page opens with. `scripts/example_videos.py` makes their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.outputs import slug
from demo_t2v.web.request import GenerationRequest, Limits, Tab

EXAMPLES_FOLDER: Final = BUILT_IN["sprites"].parent / "examples"


@dataclass(frozen=True)
class Example:
    """The settings of a finished video of the built-in model; others are the model's defaults."""

    name: str
    prompt: str
    seed: int
    motion_prompt: str = ""
    handles: Mapping[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Its video."""
        return EXAMPLES_FOLDER / f"{slug(self.name, 60)}.mp4"

    @property
    def tab(self) -> Tab:
        """The tab that makes it."""
        return "decompose" if self.motion_prompt or self.handles else "generate"

    def request(self, limits: Limits) -> GenerationRequest:
        """The request that makes this video again."""
        values = limits.values(seed=self.seed, **self.handles)
        return limits.read_form(self.tab, self.prompt, self.motion_prompt, *values)


EXAMPLES: Final = (
    Example("a rocket takes off", "a rocket moves up and to the right in the sky", 0),
    Example("a frog bounces", "a frog bounces on the grass", 0),
    Example(
        "a frog: left, then up",
        "a frog in the sky",
        0,
        "0: a frog moves to the left in the sky; 8: a frog moves up in the sky",
    ),
    Example("a bell swings", "a bell swings in the snow", 0),
    Example("a butterfly circles", "a butterfly circles in the sky", 0),
    Example(
        "a fish: down, then left",
        "a fish in the sky",
        0,
        "0: a fish moves down in the sky; 8: a fish moves to the left in the sky",
    ),
    Example("a car drives off", "a car moves to the left quickly on the sand", 0),
    Example(
        "a mushroom moves like a car",
        "a mushroom on the grass",
        0,
        "a car moves to the right on the grass",
    ),
)

SPRITE_PROMPTS: Final = (
    "a rocket moves up and to the right in the sky",
    "a frog bounces on the grass",
    "a butterfly circles in the sky",
    "a whale grows quickly at night",
    "a car moves to the left on the sand",
)
PROMPTS: Final = (
    "slow motion flower petals fall from a blossom",
    "a horse gallops along a beach at sunset",
    "a paper boat drifts down a stream",
    "clouds roll over a mountain range",
)


def example_videos(config: InferenceConfig) -> tuple[Example, ...]:
    """The example videos of a page's model; only the built-in model as it is shipped has some."""
    changed = (config.lora, config.scheduler, config.cache) != (None, None, None)
    return EXAMPLES if config.model == "sprites" and not changed else ()


def example_prompts(config: InferenceConfig) -> tuple[str, ...]:
    """The example prompts of a page's model."""
    return SPRITE_PROMPTS if config.model in BUILT_IN else PROMPTS
