"""Requests of the page's form: their limits, checks, and command lines."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from demo_t2v.checkpoints.resolve import ModelDefaults
from demo_t2v.conditioning.blend import MotionPromptError
from demo_t2v.conditioning.timeline import Timeline, parse_motion
from demo_t2v.config import InferenceConfig
from demo_t2v.config.inference import (
    PRESETS,
    CacheName,
    PresetName,
    SchedulerName,
    flag,
    label,
)
from demo_t2v.inference.grid import Grid
from demo_t2v.web.fields import Bound, Choice, Field, NoiseLevels, RequestError

if TYPE_CHECKING:
    from demo_t2v.pipeline import DemoPipeline

Tab = Literal["generate", "compare", "decompose", "grid", "attention"]
"""The tabs that make videos."""

PROMPT_LENGTH: Final = 300
"""Characters; CLIP reads the first 75 tokens."""
MAX_VIDEOS: Final = 4
GRID_SIDE: Final = 3
"""The most rows, and the most columns, of a grid."""
_MARKUP: Final = re.compile(r"<\s*[a-z/!?]", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


ADVANCED: Final = ("scheduler", "guidance_interval", "cache", "cache_interval")
"""The fields of the advanced settings."""
SAMPLING: Final = ("num_inference_steps", "scheduler", "guidance_interval")
"""The fields that a preset sets."""


@dataclass(frozen=True)
class Limits:
    """The fields of the form, in its order; the names are the options'.

    `advanced` are the fields `ADVANCED`, `handles` those that only the tab `decompose` has, by
    key. `presets` are the values of `SAMPLING` by preset; a model that is made
    for few steps without guidance has none.
    """

    seed: Bound
    repeat_times: Bound
    num_inference_steps: Bound
    num_frames: Bound
    width: Bound
    height: Bound
    fps: Bound
    guidance_scale: Bound
    advanced: Mapping[str, Field]
    handles: Mapping[str, Bound]
    presets: Mapping[PresetName, tuple[Any, ...]]

    @classmethod
    def of(cls, pipeline: DemoPipeline, config: InferenceConfig) -> Limits:
        """The fields for a model: up to twice its frames and its side.

        At first they have the values of `config`, or those of the model.
        """
        own = ModelDefaults.of(pipeline)
        step = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        pixels = Bound(min(2 * step, own.side), 2 * own.side, own.side, step)
        return cls(
            seed=Bound(0, 2**32 - 1, config.seed),
            repeat_times=Bound(1, MAX_VIDEOS, config.infer_dataset.repeat_times),
            num_inference_steps=Bound(1, max(100, 2 * own.steps), own.steps),
            num_frames=Bound(2, 2 * own.frames, own.frames),
            width=pixels,
            height=pixels,
            fps=Bound(1, 30, config.fps),
            guidance_scale=Bound(1, 20, own.guidance, 0.5),
            advanced={
                "scheduler": Choice(get_args(SchedulerName), config.scheduler, "model's own"),
                "guidance_interval": NoiseLevels(own.guidance_interval),
                "cache": Choice(get_args(CacheName), config.cache, "none"),
                "cache_interval": Bound(1, max(8, config.cache_interval), config.cache_interval),
            },
            handles={
                "motion_strength": Bound(0, 3, config.motion_strength, 0.1),
                "motion_crossfade": Bound(0, own.frames // 2, config.motion_crossfade),
                "content_guidance_scale": Bound(0, 20, own.guidance, 0.5),
                "motion_guidance_scale": Bound(0, 20, own.guidance, 0.5),
                "bypass_guidance_scale": Bound(0, 5, config.bypass_guidance_scale, 0.1),
            }
            | _speed_factors(pipeline),
            presets={name: _sampling(own, name) for name in PRESETS} if own.guidance > 1 else {},
        )

    @property
    def settings(self) -> dict[str, Bound]:
        """The bounds of the numbers that all tabs have, by name."""
        return {name: getattr(self, name) for name in setting_names()}

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name, in the order of the form."""
        return {**self.settings, **self.advanced, **self.handles}

    def values(self, **others: Any) -> list[Any]:
        """The form's values of all fields: the first ones, or `others` by name."""
        return [field.shown(others.get(name, field.start)) for name, field in self.fields.items()]

    def form(self, request: GenerationRequest) -> tuple[Any, ...]:
        """The values of the form that make a request, as `read_form` takes them."""
        values = self.values(**request.settings, **request.advanced, **request.handles)
        return (request.prompt, request.motion_prompt, *values)

    def preset_values(self, preset: PresetName) -> list[Any]:
        """The form's values of `SAMPLING` for a preset."""
        fields = self.fields
        values = zip(SAMPLING, self.presets[preset], strict=True)
        return [fields[name].shown(value) for name, value in values]

    def preset(self, *values: Any) -> PresetName | None:
        """The preset that has the form's values of `SAMPLING`, if one has."""
        return next((name for name in self.presets if self.preset_values(name) == [*values]), None)

    def preset_of(self, request: GenerationRequest) -> PresetName | None:
        """The preset that a request has, if it has one."""
        values = dict(zip(self.fields, self.form(request)[2:], strict=True))
        return self.preset(*(values[name] for name in SAMPLING))

    def read_form(
        self,
        tab: Tab,
        prompt: Any,
        motion_prompt: Any,
        *others: Any,
        motion_words: Collection[str] = (),
    ) -> GenerationRequest:
        """The request of a form's values, `others` in the order of `fields`.

        Motion prompt and handles apply to the tab `decompose` only, the number of videos to the
        tab `generate` only. An advanced setting or a handle at its start is not set. The tab `grid`
        has up to GRID_SIDE prompts, and as many motion prompts, one a line.

        Motion prompts may have the loaded `motion_words` as `<name>`, other tags are refused.
        Raises RequestError.
        """
        values = {
            name: field.check(label(option_key(name)), value)
            for (name, field), value in zip(self.fields.items(), others, strict=True)
        }
        advanced, handles = (
            {
                name: value
                for name, field in each.items()
                if (value := values.pop(name)) != field.start
            }
            for each in (self.advanced, self.handles)
        )
        if tab == "grid":
            content = _read_lines("content prompt", prompt)
            motion = _read_lines("motion prompt", motion_prompt, motion_words)
        else:
            content = _read_text("prompt", prompt)
            if not content:
                raise RequestError("Describe what the video should show, or select an example.")
            motion = ""
        if tab == "decompose":
            motion = _read_text("motion prompt", motion_prompt, motion_words)
        else:
            handles = {}
        if tab != "generate":
            values["repeat_times"] = 1
        request = GenerationRequest(
            tab, content, motion, **values, advanced=advanced, handles=handles
        )
        for number, text in enumerate(motion.splitlines(), start=1):
            try:
                timeline = parse_motion(text, request.fps)
                if isinstance(timeline, Timeline):
                    crossfade = handles.get("motion_crossfade", 0.0)
                    timeline.frame_weights(request.num_frames, crossfade)
            except MotionPromptError as error:
                where = f"motion prompt {number}: " if tab == "grid" else ""
                raise RequestError(f"{where}{error}") from None
        return request


def _sampling(own: ModelDefaults, preset: PresetName) -> tuple[Any, ...]:
    """The values of `SAMPLING` that a preset has for a model."""
    config = own.complete(InferenceConfig(preset=preset))
    return tuple(getattr(config, name) for name in SAMPLING)


def _speed_factors(pipeline: DemoPipeline) -> dict[str, Bound]:
    """The bound of `speed`, as a factor of the usual one, for a model with a calibration."""
    calibration = pipeline.speed_calibration
    if calibration is None:
        return {}
    low, high = calibration.factors[0], calibration.factors[-1]
    rounded = math.ceil(low * 20) / 20, math.floor(high * 20) / 20
    return {"speed": Bound(*rounded, start=1.0, step=0.05)}


def setting_names() -> list[str]:
    """The names of the numbers that all tabs have, in the order of the form."""
    others = ("advanced", "handles", "presets")
    return [field.name for field in fields(Limits) if field.name not in others]


def option_key(name: str) -> str:
    """The dotted key of the option that a field of the form sets."""
    return "infer_dataset.repeat_times" if name == "repeat_times" else name


@dataclass(frozen=True)
class GenerationRequest:
    """The checked values of the form; sizes in pixels.

    The motion prompt may be a timeline, as in `0: rises; 8: falls`, or a blend, as in
    `falls:0.7 + rises:0.3`; empty is the prompt. A grid has its prompts and its motion prompts one
    a line. `advanced` are the advanced settings that are set, `handles` the options of the tab
    `decompose` that are set, by key.
    """

    tab: Tab
    prompt: str
    motion_prompt: str
    seed: int
    repeat_times: int
    num_inference_steps: int
    num_frames: int
    width: int
    height: int
    fps: int
    guidance_scale: float
    advanced: Mapping[str, Any] = field(default_factory=dict)
    handles: Mapping[str, float] = field(default_factory=dict)

    @property
    def grid(self) -> Grid | None:
        """The grid of the tab `grid`; its ids are those that `demo-t2v grid` gives texts."""
        if self.tab != "grid":
            return None
        columns, rows = (
            [(str(number), line) for number, line in enumerate(text.splitlines(), start=1)]
            for text in (self.prompt, self.motion_prompt)
        )
        return Grid(columns, rows)

    @property
    def timeline(self) -> Timeline | None:
        """The motion prompt's timeline, if it is one. Raises MotionPromptError."""
        motion = parse_motion(self.motion_prompt, self.fps)
        return motion if isinstance(motion, Timeline) else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt, and the motion prompt or timeline if there is one."""
        return (self.prompt, self.motion_prompt) if self.motion_prompt else (self.prompt,)

    @property
    def strengths(self) -> list[float]:
        """The motion strengths of its variants; a comparison has two."""
        return [0.0, 1.0] if self.tab == "compare" else [self.handles.get("motion_strength", 1.0)]

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers that all tabs have, by name."""
        return {name: getattr(self, name) for name in setting_names()}

    def _options(self) -> dict[str, Any]:
        """The handles as values of their options."""
        return {
            name: f"{number:g}x" if name == "speed" else number
            for name, number in self.handles.items()
        }

    def config(self, base: InferenceConfig, strength: float) -> InferenceConfig:
        """`base`, which has the model and the device, with this request's settings."""
        settings = self.settings | dict(self.advanced) | self._options()
        settings["motion_strength"] = strength
        del settings["repeat_times"]
        return base.model_copy(update=settings)

    def command(self, base: InferenceConfig) -> str:
        """Shell command lines that make the same videos, one for each motion strength."""
        return "\n".join(shlex.join(self._words(base, strength)) for strength in self.strengths)

    def _words(self, base: InferenceConfig, strength: float) -> Iterator[str]:
        settings, grid = self.settings, self.grid
        if grid:
            yield from ("demo-t2v", "grid", *(f"--content={text}" for _, text in grid.columns))
            yield from (f"--motion={text}" for _, text in grid.rows)
            del settings["repeat_times"]
        else:
            yield from ("demo-t2v", "generate")
            # A space before the prompt prevents its use as an option or as `key=value`.
            ambiguous = self.prompt.startswith("-") or "=" in self.prompt
            yield f" {self.prompt}" if ambiguous else self.prompt
        for name, number in settings.items():
            text = f"{number:g}" if isinstance(number, float) else str(number)
            yield from (flag(option_key(name)), text)
        if not grid and (timeline := self.timeline):
            for start, prompt in zip(timeline.starts, timeline.prompts, strict=True):
                yield f"{flag('motion')}={start}: {prompt}"
        elif self.motion_prompt and not grid:
            yield f"{flag('motion_prompt')}={self.motion_prompt}"
        options = self._options() | ({"motion_strength": strength} if strength != 1 else {})
        for name, value in options.items():
            yield from (flag(name), value if isinstance(value, str) else f"{value:g}")
        if self.tab == "compare":  # both videos have the same file name
            yield from ("--out", f"outputs/motion-{strength:g}")
        default, config = InferenceConfig(), self.config(base, strength)
        for key in ("model", "lora", *ADVANCED, "device", "dtype"):
            if (value := getattr(config, key)) != getattr(default, key):
                text = "{:g}-{:g}".format(*value) if isinstance(value, tuple) else value
                yield f"{flag(key)}={text}"
        for source in base.motion_word or ():
            yield f"{flag('motion_word')}={source}"


def _read_lines(name: str, text: Any, motion_words: Collection[str] = ()) -> str:
    """The lines of the text that are not empty, 1 to GRID_SIDE. Raises RequestError."""
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    if not 1 <= len(lines) <= GRID_SIDE:
        raise RequestError(f"{len(lines)} {name}s: write 1 to {GRID_SIDE}, one a line.")
    return "\n".join(
        _read_text(f"{name} {number}", line, motion_words)
        for number, line in enumerate(lines, start=1)
    )


def _read_text(name: str, text: Any, motion_words: Collection[str] = ()) -> str:
    """The text on one line, without tags except `motion_words`. Raises RequestError."""
    line = " ".join(str(text or "").split())
    if len(line) > PROMPT_LENGTH:
        raise RequestError(f"The {name} is longer than {PROMPT_LENGTH} characters: shorten it.")
    if _UNPRINTABLE.search(line):
        raise RequestError(f"The {name} contains characters that cannot be printed.")
    if _MARKUP.search(reduce(lambda rest, word: rest.replace(f"<{word}>", ""), motion_words, line)):
        raise RequestError(f"The {name} contains a tag; write it without < and >.")
    return line
