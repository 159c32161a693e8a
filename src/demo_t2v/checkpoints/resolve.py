"""Where a model name leads: the built-in model, a folder, or a repository on the hub."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from demo_t2v.checkpoints.fingerprint import MODEL_FILES, cache, fingerprint
from demo_t2v.checkpoints.readers import PUBLISHED, read_object
from demo_t2v.conditioning.speed import FILE as SPEED_FILE
from demo_t2v.conditioning.speed import SpeedCalibration
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.config.inference import PRESETS, SET_BY_PRESET, Preset
from demo_t2v.core.atomic_io import describe_broken_link, path_exists
from demo_t2v.core.devices import SHARED_MEMORY, check_dtype, resolve_device
from demo_t2v.diffusion.guidance import ALL_NOISE_LEVELS, Interval, Scale
from demo_t2v.model_folder import (
    ModelError,
    base_folder,
    class_name,
    first_line,
    only_variant,
    weight_files,
)

if TYPE_CHECKING:
    from demo_t2v.pipeline import DemoPipeline

_ASSETS: Final = Path(__file__).parent.parent / "assets" / "sprites"
BUILT_IN: Final[Mapping[str, Path]] = {
    "sprites": _ASSETS / "model",
    "sprites-fast": _ASSETS / "fast",  # its student of four steps
    "sprites-base": _ASSETS / "base",  # the base denoiser that DEMO is compared with
}
HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_CONVERSION: Final = 2  # raised where the same published files become another folder

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelDefaults:
    """What a model makes by default; sizes in pixels."""

    steps: int
    guidance: float
    guidance_interval: Interval
    negative_prompt: str
    frames: int
    side: int

    @classmethod
    def of(cls, pipeline: DemoPipeline) -> Self:
        """The defaults of a loaded model, which are those of its folder."""
        return cls(
            steps=pipeline.config.num_inference_steps,
            guidance=pipeline.config.guidance_scale,
            guidance_interval=pipeline.config.guidance_interval,
            negative_prompt=pipeline.config.negative_prompt,
            frames=pipeline.unet.config.sample_frames,
            side=pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
        )

    def complete(self, config: InferenceConfig) -> InferenceConfig:
        """The configuration with these values where it has none, and with those of its preset.

        Raises ConfigError for windows that leave frames out, and for a preset that another option
        contradicts or that the model cannot have.
        """
        preset = self._preset(config)
        own = {
            "height": self.side,
            "width": self.side,
            "num_frames": self.frames,
            "num_inference_steps": max(1, round(preset.steps * self.steps)),
            "scheduler": preset.scheduler,
            "guidance_scale": self.guidance,
            "guidance_interval": preset.guidance_interval or self.guidance_interval,
            "negative_prompt": self.negative_prompt,
        }
        changes = {key: value for key, value in own.items() if getattr(config, key) is None}
        changes["preset"] = None
        complete: InferenceConfig = load(InferenceConfig, None, (), config.model_dump() | changes)
        window = complete.window_frames or self.frames
        if complete.window_stride is not None and complete.window_stride > window:
            raise ConfigError(
                f"window_stride: should be at most the window's {window} frames, "
                f"not {complete.window_stride}"
            )
        return complete

    def _preset(self, config: InferenceConfig) -> Preset:
        """The preset of a configuration, by default `balanced`. Raises ConfigError."""
        if config.preset is None:
            return PRESETS["balanced"]
        for key in SET_BY_PRESET:
            if getattr(config, key) is not None:
                raise ConfigError(
                    f"preset {config.preset} and {key} are both given: give one of them"
                )
        if config.preset != "balanced" and self.guidance <= 1:
            raise ConfigError(
                f"preset {config.preset}: {config.model} is made for {self.steps} steps without "
                "guidance; leave preset out"
            )
        return PRESETS[config.preset]


@dataclass(frozen=True)
class ResolvedModel:
    """A model's name and the folder that it leads to; what is in the folder is read once."""

    name: str
    folder: Path

    @cached_property
    def defaults(self) -> ModelDefaults:
        """What the model makes by default. Raises ModelError."""
        return read_defaults(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the model's files. Raises ModelError."""
        return fingerprint(self.folder)

    @cached_property
    def has_motion(self) -> bool:
        """Whether the denoiser has motion transformers. Raises ModelError."""
        return bool(read_object(self.folder / "unet" / "config.json").get("motion", True))

    @cached_property
    def speed_calibration(self) -> SpeedCalibration | None:
        """The calibration of `speed`, if the model has one. Raises SpeedError."""
        return SpeedCalibration.read(self.folder)

    def load(
        self,
        device: str = "auto",
        dtype: Dtype = "auto",
        *,
        offload: Literal["none", "model", "sequential"] = "none",
        without: Sequence[str] = (),
    ) -> DemoPipeline:
        """Load the model, ready to be called, in the precision that it runs in.

        `device` and `dtype` as for `devices.resolve_device`. `offload` keeps networks or single
        layers in the CPU's memory until a GPU needs them; `without` names components to leave out.
        Raises ModelError, DeviceError.
        """
        read_defaults(self.folder)
        device, precision = resolve_device(device, dtype)
        import torch

        if offload != "none":
            _check_offload(offload, device)
        check_dtype(device, precision)
        quieten_libraries()
        _check_safetensors(self.folder, without)
        pipeline = _from_pretrained(self.folder, precision, without)
        pipeline.set_progress_bar_config(disable=True)
        # By number: of a bare kind, diffusers would take the first device for every process.
        if offload == "none":
            pipeline.to(device)
        elif offload == "model":
            pipeline.enable_model_cpu_offload(device=torch.device(device))
        else:
            pipeline.enable_sequential_cpu_offload(device=torch.device(device))
        return pipeline


def resolve(name: str, to_train: bool = False) -> ResolvedModel:
    """Find a model: built in (`sprites`), a folder, or a hub repository (downloaded).

    A folder with the published `.pth` files, the denoiser's file of such a one, a list of files
    with commas (`PublishedFiles.find`) and the published repositories' names are good too: they
    are converted, once, into a folder below `cache()`. `to_train` makes it one that DEMO's training
    can begin from: with motion transformers, and with CLIP's image tower. Raises ModelError when
    there is no such model, ConnectionError when the hub cannot be reached.
    """
    return ResolvedModel(name, _find(name, to_train))


def _find(name: str, to_train: bool) -> Path:
    folder = BUILT_IN.get(name, Path(name))
    if name and (folder / "model_index.json").is_file():
        return _complete(folder)
    if is_published(name):
        return _converted(name, to_train)
    if name not in BUILT_IN and not path_exists(folder) and HUB_ID.fullmatch(name):
        return _download(name)
    remedy = "use sprites, a folder with model_index.json, or a hub repository as org/name"
    what = "is a folder without model_index.json" if name and folder.is_dir() else "is no model"
    what = describe_broken_link(folder) or what
    raise ModelError(f"{name or 'an empty name'}: {what}; {remedy}")


def _complete(folder: Path) -> Path:
    """The folder, or for an adapted model that of the complete one."""
    base = base_folder(folder, read_object(folder / "model_index.json"))
    if base is None:
        return folder
    from demo_t2v.checkpoints.adapted import complete_folder

    quieten_libraries()
    return complete_folder(folder, base)


def is_published(name: str) -> bool:
    """Whether a name is of published files: on this machine, or on the hub."""
    path, suffix = Path(name), Path(name).suffix
    if suffix == ".pth" or (suffix == ".bin" and "," in name):
        return True
    if name and path.is_dir():
        return any(any(path.glob(pattern)) for pattern in ("*.pth", "*/*.pth"))
    return name in PUBLISHED


def _converted(name: str, to_train: bool) -> Path:
    """The folder that published files become, made anew when one of them has changed."""
    from filelock import FileLock

    from demo_t2v.checkpoints.original.download import downloaded
    from demo_t2v.checkpoints.original.files import PublishedFiles
    from demo_t2v.checkpoints.original.importer import convert

    is_local = Path(name).exists() or name not in PUBLISHED
    files = PublishedFiles.find(Path(name)) if is_local else downloaded(name)
    if files is None:
        raise ModelError(f"{name}: has .pth files, but no denoiser among them")
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = json.dumps([_CONVERSION, states, "to train"] if to_train else [_CONVERSION, states])
    folder = cache() / hashlib.sha256(key.encode()).hexdigest()[:16]
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of several processes one converts
        if not folder.exists():
            starts = to_train and files.motion_encoder is None
            convert(files, folder, start_motion=starts, image_tower=to_train)
    return folder


def download(name: str, patterns: Sequence[str]) -> Path:
    """The files of a hub repository that match `patterns`, in the hub's cache.

    Raises ModelError for a name without a repository and for a path that exists, ConnectionError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if path_exists(Path(name)):
        raise ModelError(f"{name}: is no folder of a model")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"{name}: is neither a folder here nor a repository on the hub that you may read"
        ) from None
    except Exception as error:  # the client passes on whatever its network library raises
        raise ConnectionError(
            f"{name}: is no folder here, and the hub does not give it ({first_line(error)})"
        ) from None


def _download(name: str) -> Path:
    folder = download(name, [*MODEL_FILES, SPEED_FILE])
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{name}: the hub's repository is no diffusers model (no model_index.json)"
        )
    return _complete(folder)


def read_defaults(folder: Path) -> ModelDefaults:
    """What the model in `folder` was made for, without loading it. Raises ModelError."""
    index = read_object(folder / "model_index.json")
    if (found := class_name(index)) != "DemoPipeline":
        raise ModelError(f"{folder}: holds a {found}; a DemoPipeline is needed")
    unet, vae = (read_object(folder / part / "config.json") for part in ("unet", "vae"))
    try:
        return ModelDefaults(
            steps=int(index["num_inference_steps"]),
            guidance=float(index["guidance_scale"]),
            guidance_interval=_read_guidance_interval(index),
            negative_prompt=read_negative_prompt(folder),
            frames=int(unet["sample_frames"]),
            side=int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: its configuration has no usable {error}") from None


def _read_guidance_interval(index: Mapping[str, Any]) -> Interval:
    """The default guidance interval in a model's index; all noise levels where it has none.

    Raises ValueError, TypeError.
    """
    low, high = index.get("guidance_interval", ALL_NOISE_LEVELS)
    return Scale(1.0, (float(low), float(high))).interval


def read_negative_prompt(folder: Path) -> str:
    """The default negative prompt of the model in `folder`; the empty text where it names none.

    Raises ModelError.
    """
    file = folder / "model_index.json"
    prompt = read_object(file).get("negative_prompt", "")
    if not isinstance(prompt, str):
        raise ModelError(f"{file}: negative_prompt should be a text, not {prompt!r}")
    return prompt


def load_pipeline(name: str, device: str = "auto", dtype: Dtype = "auto") -> DemoPipeline:
    """`resolve(name).load(device, dtype)`, with the errors of both."""
    return resolve(name).load(device, dtype)


def _check_offload(offload: str, device: str) -> None:
    """Raise ModelError where nothing can be offloaded."""
    from diffusers.utils import is_accelerate_available

    kind = device.partition(":")[0]
    if kind in SHARED_MEMORY:
        raise ModelError(
            f"offload {offload}: needs a GPU with memory of its own; on {kind} use none"
        )
    if not is_accelerate_available():
        raise ModelError(f"offload {offload}: needs accelerate; run `pip install accelerate`")


def _from_pretrained(folder: Path, precision: str, without: Sequence[str]) -> DemoPipeline:
    """The pipeline on the CPU. Raises ModelError."""
    import torch
    from diffusers.utils import is_accelerate_available

    from demo_t2v.pipeline import DemoPipeline

    try:
        pipeline: DemoPipeline = DemoPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, precision),
            low_cpu_mem_usage=is_accelerate_available(),
            **dict.fromkeys(without),
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded ({first_line(error)})") from error
    return pipeline


def _check_safetensors(folder: Path, without: Sequence[str]) -> None:
    """Raise ModelError for weights in pickle files, which no fingerprint covers."""
    variant = only_variant(folder)
    for part in (part for part in folder.glob("*/") if part.name not in without):
        files = weight_files(part, variant)
        if files and files[0].suffix == ".bin":
            raise ModelError(
                f"{files[0]}: only safetensors are read; DemoPipeline.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER) in Python writes them"
            )


def quieten_libraries() -> None:
    """Turn off the libraries' progress bars, and their reports about loaded weights and devices.

    A text tower that is loaded from a CLIP folder leaves the image tower's weights unused, which
    transformers reports at length. Missing weights are an error of `DemoPipeline.from_pretrained`
    and of `load_network`. Saving imports DeepSpeed, which warns of a machine without a GPU.
    """
    from diffusers.utils.logging import disable_progress_bar as quieten_diffusers
    from transformers.utils.logging import disable_progress_bar as quieten_transformers

    quieten_diffusers()
    quieten_transformers()  # type: ignore[no-untyped-call]
    for name in ("transformers.modeling_utils", "diffusers.models.modeling_utils", "DeepSpeed"):
        logging.getLogger(name).addFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    reports = (
        "LOAD REPORT",
        "were not initialized from the model checkpoint",
        "Setting accelerator to CPU",
    )
    return not any(words in record.getMessage() for words in reports)
