"""Everything that making videos can be told. Every default stands here and nowhere else."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from demo_t2v.config.loader import Strict
from demo_t2v.config.yaml_text import PlaceName, PlaceOrNone, Plain, switched

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", re.ASCII | re.IGNORECASE)


def parse_size(text: Any) -> Any:
    """Bytes from a size such as 8GB (10^9 each), 512MB or 7.5GiB (2^30 each); bytes stay."""
    if isinstance(text, Plain) and text.isdecimal():
        return int(text)
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise PydanticCustomError("size", "should be a size such as 8GB, 512MB or 7.5GiB")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(letter.upper()) + 1))


Side = Annotated[int, Field(ge=8, le=8192)]
"""Of a video, in pixels."""


class InferDataset(Strict):
    """Where the prompts come from: a file with the columns `id,prompt`, seen from here.

    CSV, JSON lines or Parquet, by its name; `type` and `csv_path` are called so in the release.
    """

    type: Literal["csv"] = "csv"
    csv_path: PlaceOrNone = None
    repeat_times: Annotated[int, Field(ge=1)] = 1


def _names_device(name: str) -> str:
    if not re.fullmatch(r"[a-z]+(:\d{1,4})?", name, re.ASCII):
        raise ValueError(f"should be auto, cpu, cuda, cuda:1, mps, xpu or alike, not {name!r}")
    return name


class InferenceConfig(Strict):
    """Everything that `demo-t2v generate` can be told. None means: as the model was trained."""

    infer_dataset: InferDataset = InferDataset()
    pretrained: PlaceName = "sprites"
    out: PlaceName = "outputs"
    """A folder; with Ray, also one that fsspec knows, as in `s3://bucket/videos`."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    decoder_bs: Annotated[int, Field(ge=1)] = 16
    max_frames: Annotated[int, Field(ge=1, le=256)] | None = None
    resolution: tuple[Side, Side] | None = None
    """Height and width in pixels. The release writes a list of two, and so do we."""
    guide_scale: Annotated[float, Field(ge=0)] | None = None
    ddim_timesteps: Annotated[int, Field(ge=1, le=1000)] | None = None
    negative_prompt: str | None = None
    """The prompt of both encoders on guidance's unconditional side."""
    motion_prompt: str | None = None
    """What the motion encoder hears; None: each video's own prompt."""
    motion_strength: Annotated[float, Field(ge=0)] = 1.0
    """How much of the motion branch is added: 1 as trained, 0 the base network."""
    inference_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    fps: Annotated[int, Field(ge=1, le=120)] = 8
    format: Literal["mp4", "webm", "gif", "png"] = "mp4"
    device: Annotated[str, AfterValidator(_names_device)] = "auto"
    """`auto`, `cpu` or an accelerator of torch's, as in cuda, cuda:1, mps or xpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: Literal["none", "model", "sequential"] = "none"
    """What waits in the CPU's memory while a GPU computes: whole networks, or every layer."""
    max_memory: Annotated[int, BeforeValidator(parse_size), Field(gt=0)] | None = None
    """Bytes on the device, written as 8GB; picks what to offload and how to decode."""
    lora: Annotated[PlaceName | None, BeforeValidator(switched)] = None
    """An adapter to put on the model: a file, a folder or a hub repository."""
    lora_strength: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """0 is the model without it, 1 the adapter as it was trained."""
    engine: Literal["local", "ray"] = "local"
    """Who starts the processes: a launcher, if there are several, or Ray Data on its cluster."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Actors on Ray; None: one for each GPU that the cluster has, or for each CPU."""
    deepspeed_config: PlaceOrNone = None
    """DeepSpeed's JSON (`configs/deepspeed/inference*.json`); None: without it."""
