"""The options of inference, each declared once.

The command line's flags, the page's form, the YAML keys and the table of the documentation derive
from `InferenceConfig`. Names are diffusers'; those of the paper's release are aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from demo_t2v.config.loader import Aliases, Option, Strict
from demo_t2v.config.yaml_text import OptionalPath, PathOrName, UnquotedScalar, none_if_off

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", re.ASCII | re.IGNORECASE)


def parse_size(text: Any) -> Any:
    """Bytes of a size such as 8GB (8 * 10^9), 512MB or 7.5GiB (7.5 * 2^30); an int is bytes."""
    if isinstance(text, UnquotedScalar) and text.isdecimal():
        return int(text)
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise PydanticCustomError("size", "should be a size such as 8GB, 512MB or 7.5GiB")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(letter.upper()) + 1))


def _check_device(name: str) -> str:
    if not re.fullmatch(r"[a-z]+(:\d{1,4})?", name, re.ASCII):
        raise ValueError(f"should be auto, cpu, cuda, cuda:1, mps, xpu or alike, not {name!r}")
    return name


def _timeline_entries(value: Any) -> Any:
    """Entries `FRAME: PROMPT` from a text with semicolons, a mapping, or a list of these."""
    if isinstance(value, Mapping):
        value = [f"{frame}: {prompt}" for frame, prompt in value.items()]
    if isinstance(value, str):
        return [str(entry).strip() for entry in value.split(";") if entry.strip()]
    if isinstance(value, (list, tuple)):
        entries = [_timeline_entries(one) for one in value]
        return [entry for one in entries for entry in (one if isinstance(one, list) else [one])]
    return value


def _interval(value: Any) -> Any:
    """Two numbers of a text such as `0.3-1`, or of a list with one such text."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str):
        return value
    low, dash, high = value.partition("-")
    if not dash:
        raise PydanticCustomError("interval", "should be two noise levels, as in 0.3-1")
    return [low.strip(), high.strip()]


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"should have the lower noise level first, not {interval[0]:g}")
    return interval


NoiseLevel = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[
    tuple[NoiseLevel, NoiseLevel], BeforeValidator(_interval), AfterValidator(_check_interval)
]
"""Lowest and highest noise level, as fractions of the training's timesteps."""
ALL_NOISE_LEVELS: Final = (0.0, 1.0)


def _as_list(value: Any) -> Any:
    """A single text as a list."""
    return [value] if isinstance(value, str) else value


Side = Annotated[int, Field(ge=8, le=8192)]
"""Height or width of a video in pixels."""
SchedulerName = Literal["dpm++", "ddim", "unipc", "euler", "euler_a", "heun", "lcm", "ddpm"]
"""Names of `demo_t2v.diffusion.schedulers.make_scheduler`."""
CacheName = Literal["deep", "forecast"]
"""Names of `demo_t2v.diffusion.caching.CacheConfig`."""
PresetName = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Preset:
    """A choice between speed and quality, relative to the model's own defaults.

    None is the model's own value.
    """

    steps: float = 1.0
    """Number of steps as a multiple of the model's own."""
    scheduler: SchedulerName | None = None
    guidance_interval: Interval | None = None


PRESETS: Final[Mapping[PresetName, Preset]] = {
    "fast": Preset(steps=0.5, scheduler="dpm++", guidance_interval=(0.5, 1.0)),
    "balanced": Preset(),
    "best": Preset(steps=2.0, guidance_interval=ALL_NOISE_LEVELS),
}
SET_BY_PRESET: Final = (
    "num_inference_steps",
    "scheduler",
    "guidance_interval",
    "content_guidance_interval",
    "motion_guidance_interval",
)
"""The options that a preset sets, and the two that replace one of them."""


class InferDataset(Strict):
    """The file of prompts, with the columns `id,prompt`: CSV, JSON lines or Parquet.

    The keys are those of the release.
    """

    type: Literal["csv"] = "csv"
    csv_path: Annotated[
        OptionalPath,
        Option("File with id,prompt: CSV, JSON lines or Parquet.", "prompts", "FILE|-"),
    ] = None
    repeat_times: Annotated[
        int, Field(ge=1), Option("Videos for each prompt.", "repeat", label="Videos")
    ] = 1


class InferenceConfig(Strict):
    """The options of `demo-t2v generate`. None selects the model's default."""

    infer_dataset: InferDataset = InferDataset()
    model: Annotated[
        PathOrName,
        Option("Model: built in, a folder, or a hub repository.", metavar="NAME|FOLDER|HUB_ID"),
        Aliases("pretrained"),
    ] = "sprites"
    lora: Annotated[
        PathOrName | None,
        BeforeValidator(none_if_off),
        Option("Adapter for the model.", metavar="FILE|FOLDER|HUB_ID", shapes_video=True),
    ] = None
    lora_strength: Annotated[
        float,
        Field(allow_inf_nan=False),
        Option("Strength of the adapter: 0 is none, 1 as trained."),
    ] = 1.0
    motion_word: Annotated[
        Annotated[tuple[PathOrName, ...], BeforeValidator(_as_list)] | None,
        Option(
            "Motion word, read as `<name>` in motion prompts. Repeatable.",
            metavar="FILE|FOLDER|HUB_ID",
            shapes_video=True,
        ),
    ] = None
    out: Annotated[
        PathOrName, Option("Output folder; with Ray also a URL of fsspec.", metavar="DIR|URL")
    ] = "outputs"
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63),
        Option("Seed. Each video's own seed comes from it.", shapes_video=True),
        Aliases("inference_seed"),
    ] = 0
    preset: Annotated[
        PresetName | None,
        Option("Speed or quality: sets steps, scheduler and guidance interval."),
    ] = None
    scheduler: Annotated[
        SchedulerName | None, Option("Sampler of the noise process.", shapes_video=True)
    ] = None
    num_inference_steps: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Option("Denoising steps.", "steps", shapes_video=True),
        Aliases("ddim_timesteps"),
    ] = None
    guidance_scale: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Option("Guidance scale; 1 or less is no guidance.", "guidance", shapes_video=True),
        Aliases("guide_scale"),
    ] = None
    content_guidance_scale: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Option(
            "Guidance scale of the content prompt (default: that of both).",
            "content-guidance",
            shapes_video=True,
        ),
    ] = None
    motion_guidance_scale: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Option(
            "Guidance scale of the motion prompt (default: that of both).",
            "motion-guidance",
            shapes_video=True,
        ),
    ] = None
    bypass_guidance_scale: Annotated[
        float,
        Field(ge=0),
        Option(
            "Guidance away from the network without its motion branch.",
            "bypass-guidance",
            shapes_video=True,
        ),
    ] = 0.0
    guidance_order: Annotated[
        Literal["content", "motion"],
        Option("The prompt that is guided first, where the scales differ.", shapes_video=True),
    ] = "content"
    guidance_interval: Annotated[
        Interval | None,
        Option("Noise levels of content and motion guidance.", metavar="LOW-HIGH"),
    ] = None
    content_guidance_interval: Annotated[
        Interval | None,
        Option(
            "Noise levels of content guidance (default: those of both).",
            metavar="LOW-HIGH",
            shapes_video=True,
        ),
    ] = None
    motion_guidance_interval: Annotated[
        Interval | None,
        Option(
            "Noise levels of motion guidance (default: those of both).",
            metavar="LOW-HIGH",
            shapes_video=True,
        ),
    ] = None
    bypass_guidance_interval: Annotated[
        Interval,
        Option("Noise levels of bypass guidance.", metavar="LOW-HIGH", shapes_video=True),
    ] = ALL_NOISE_LEVELS
    negative_prompt: Annotated[
        str | None,
        Option("Prompt of both encoders on the unconditional side.", "negative", shapes_video=True),
    ] = None
    motion_prompt: Annotated[
        str | None,
        Option("Prompt for the motion encoder (default: PROMPT).", shapes_video=True),
    ] = None
    motion: Annotated[
        Annotated[tuple[str, ...], BeforeValidator(_timeline_entries)] | None,
        Option(
            "Motion prompt from a frame or time on: `8: falls`, `0.5s: falls`. Repeatable.",
            metavar="FRAME: PROMPT",
            shapes_video=True,
        ),
    ] = None
    motion_crossfade: Annotated[
        float,
        Field(ge=0),
        Option("Frames of the cross-fade between two motion prompts.", shapes_video=True),
    ] = 0.0
    motion_strength: Annotated[
        float,
        Field(ge=0),
        Option(
            "Scale of the motion branch: 0 is the base network, 1 as trained.", shapes_video=True
        ),
    ] = 1.0
    speed: Annotated[
        str | None,
        Option(
            "Speed of the motion: pixels a frame (2.5px), frame sides a second (0.25sides/s), "
            "or times the usual speed (1.4x).",
            metavar="SPEED",
            shapes_video=True,
        ),
    ] = None
    num_frames: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Option("Frames in a video.", "frames", shapes_video=True),
        Aliases("max_frames"),
    ] = None
    window_frames: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Option("Frames that the network denoises at once (default: MODEL's).", shapes_video=True),
    ] = None
    window_stride: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Option("Frames from one window to the next (default: half a window).", shapes_video=True),
    ] = None
    height: Annotated[Side | None, Option("Height in pixels.", shapes_video=True)] = None
    width: Annotated[Side | None, Option("Width in pixels.", shapes_video=True)] = None
    fps: Annotated[
        int,
        Field(ge=1, le=120),
        Option("Frames per second of the file.", shapes_video=True, label="Frames per second"),
    ] = 8
    format: Annotated[
        Literal["mp4", "webm", "gif", "png"],
        Option("File format; png is a folder of frames.", shapes_video=True),
    ] = "mp4"
    batch_size: Annotated[int, Field(ge=1), Option("Videos at a time.")] = 4
    decode_chunk_size: Annotated[
        int, Field(ge=1), Option("Frames decoded at a time.", "decode-batch"), Aliases("decoder_bs")
    ] = 16
    cache: Annotated[
        CacheName | None,
        BeforeValidator(none_if_off),
        Option("Features that neighbouring steps reuse (default: none).", shapes_video=True),
    ] = None
    cache_interval: Annotated[
        int, Field(ge=1), Option("Steps from one that computes all features to the next.")
    ] = 2
    device: Annotated[
        str,
        AfterValidator(_check_device),
        Option("Device: auto, cpu, or an accelerator as cuda, cuda:1, mps, xpu.", metavar="NAME"),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option("Precision; auto is float16 on an accelerator.", shapes_video=True),
    ] = "auto"
    offload: Annotated[
        Literal["none", "model", "sequential"],
        Option("Networks (model) or layers (sequential) that wait in the CPU's memory."),
    ] = "none"
    max_memory: Annotated[
        Annotated[int, BeforeValidator(parse_size), Field(gt=0)] | None,
        Option("Limit of the device's memory, such as 8GB.", metavar="SIZE"),
    ] = None
    compile: Annotated[
        bool,
        Option("Compile the blocks of the denoiser: a slow first step, then faster ones."),
    ] = False
    engine: Annotated[
        Literal["local", "ray"],
        Option("What starts the processes: a launcher (local), or a Ray cluster."),
    ] = "local"
    workers: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option("Actors on Ray (default: one for each GPU, or for each CPU)."),
    ] = None
    deepspeed_config: Annotated[
        OptionalPath,
        Option("DeepSpeed's JSON (configs/deepspeed/inference*.json).", metavar="FILE"),
    ] = None

    pairs: ClassVar = {"resolution": ("height", "width")}

    @property
    def guidance(self) -> dict[str, Any]:
        """The arguments of `demo_t2v.diffusion.guidance.make_guidance`, those that are not None."""
        keys = (key for key in type(self).model_fields if "guidance_" in key)
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


def schema_options(schema: type[BaseModel]) -> dict[str, tuple[FieldInfo, Option]]:
    """The options of a schema by dotted key, in its order."""
    return dict(_options(schema, ""))


def inference_options() -> dict[str, tuple[FieldInfo, Option]]:
    """The options of `InferenceConfig` by dotted key, in the order of the schema."""
    return schema_options(InferenceConfig)


def flag(key: str) -> str:
    """The command line's flag of an option, such as `--steps` of `num_inference_steps`."""
    _, option = inference_options()[key]
    return f"--{option.flag or key.replace('_', '-')}"


def label(key: str) -> str:
    """The page's name of an option, such as `Steps` of `num_inference_steps`."""
    _, option = inference_options()[key]
    return option.label or flag(key).removeprefix("--").replace("-", " ").capitalize()


def video_settings(config: InferenceConfig) -> dict[str, Any]:
    """The options that shape a video, as JSON values for the manifest.

    `guidance_interval` is the value of the intervals of content and motion that are None.
    """
    shaping = {key for key, (_, option) in inference_options().items() if option.shapes_video}
    if config.lora is not None:
        shaping.add("lora_strength")
    if config.cache is not None:
        shaping.add("cache_interval")
    settings = config.model_dump(mode="json", include=shaping)
    for key in ("content_guidance_interval", "motion_guidance_interval"):
        settings[key] = settings[key] or list(config.guidance_interval or ALL_NOISE_LEVELS)
    return settings


def _options(model: type[BaseModel], above: str) -> Iterator[tuple[str, tuple[FieldInfo, Option]]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, f"{above}{name}.")
        for part in field.metadata:
            if isinstance(part, Option):
                yield f"{above}{name}", (field, part)
